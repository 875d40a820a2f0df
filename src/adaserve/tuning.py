"""The constants of a policy: found by a search for this machine, shipped for a known model, or guessed from the profile."""

import json
import re
from pathlib import Path

from adaserve.config import EngineConfig
from adaserve.devices import device_of
from adaserve.errors import InvalidConfig
from adaserve.models.registry import KNOWN
from adaserve.pair import tuning_path
from adaserve.policy.adaptive import Constants
from adaserve.profile import Profile, budget_from

TUNINGS = Path(__file__).parent / "data" / "tuning"
"""Shipped constants: MODEL-DEVICE.json for known models, PROFILE.json for simulated machines."""


def machine_constants(config: EngineConfig, profile: Profile, policy: str | None = None) -> Constants:
    """A policy's constants: from the tuning named, else cached, else shipped for a known model, else from the profile.

    policy: None for the configured one.
    """
    policy = policy or config.policy
    if config.tuning is not None:
        return load_constants(config.tuning, policy)
    shipped = TUNINGS / f"{config.model}-{device_of(config).type}.json"
    own_draft = config.draft_model in (None, config.model)
    for path in (tuning_path(config), shipped if config.model in KNOWN and own_draft else None):
        if path is not None and path.is_file():
            return load_constants(path, policy)
    budgets = budget_from(profile, requests=1)
    return Constants(verify_rows=budgets.verify, draft_rows=budgets.draft)


def load_constants(path: Path | str, policy: str) -> Constants:
    """Read a policy's constants from a tuning file: `constants`, and over them what `policies` says for that policy.

    A policy with parts left out or added (adaserve+:no-priced) has the constants of the usual one.

    Raises InvalidConfig for a file that is missing, broken or of unknown fields.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        own = data.get("policies", {}).get(re.sub(r":(no|with)-.*", "", policy), {})
        return Constants(**{**data["constants"], **own})
    except OSError as error:
        raise InvalidConfig(f"cannot read tuning {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidConfig(f"tuning {path} is not what `adaserve tune` writes: {error}") from error
