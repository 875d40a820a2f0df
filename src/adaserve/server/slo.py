"""SLOs as people write them: `tpot:50,ttft:500` on the command line, `slo`, headers and `service_tier` over HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from adaserve.errors import InvalidConfig, InvalidRequest
from adaserve.request import SLO

MAX_CLASS_NAME = 64
MAX_MS = 1e9
MAX_MULTIPLE = 1e6

HEADERS = {
    "x-slo-tpot-ms": "tpot_ms",
    "x-llm-d-slo-tpot-ms": "tpot_ms",
    "x-slo-ttft-ms": "ttft_ms",
    "x-llm-d-slo-ttft-ms": "ttft_ms",
}
"""Request headers that state a target, and the SLO's field that each stands for."""

BUILT_IN_TIERS = ("auto", "default")
"""OpenAI's service tiers that mean nothing in particular; unmapped, they leave the default SLO in place."""


def parse_slo(text: str) -> SLO:
    """Read `tpot:50,ttft:500` (milliseconds) or `tpot:1.2x` (times the baseline). Raises InvalidRequest."""
    fields: dict[str, float] = {}
    for part in text.split(","):
        name, colon, value = part.strip().partition(":")
        if not colon or name not in ("tpot", "ttft"):
            raise InvalidRequest(f"an SLO reads like tpot:50,ttft:500 or tpot:1.2x, got {text!r}", "slo")
        multiple = value.endswith("x")
        if multiple and name == "ttft":
            raise InvalidRequest(f"only tpot can be a multiple of the baseline, got {part.strip()!r}", "slo")
        key = f"{name}_{'multiple' if multiple else 'ms'}"
        if f"{name}_ms" in fields or f"{name}_multiple" in fields:
            raise InvalidRequest(f"{name} is given twice in {text!r}", "slo")
        fields[key] = _number(value.removesuffix("x"), name)
    return SLO(**fields)


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"{name} must be a number, got {text[:40]!r}", name) from None


def parse_class(text: str) -> tuple[str, SLO]:
    """Read `NAME=tpot:50,ttft:500`. Raises InvalidConfig."""
    name, equals, slo = text.partition("=")
    if not equals or not name or len(name) > MAX_CLASS_NAME or not name.isprintable() or name != name.strip():
        raise InvalidConfig(f"an SLO class reads like coding=tpot:50,ttft:500, got {text!r}")
    try:
        return name, parse_slo(slo)
    except InvalidRequest as error:
        raise InvalidConfig(f"SLO class {name!r}: {error}") from None


def parse_tier(text: str) -> tuple[str, str]:
    """Read `TIER=CLASS`. Raises InvalidConfig."""
    tier, equals, name = text.partition("=")
    if not equals or not tier or not name:
        raise InvalidConfig(f"a service tier reads like priority=coding, got {text!r}")
    return tier, name


@dataclass(frozen=True)
class SLOBook:
    """The SLO classes of a server, and how a request's SLO is found among them.

    classes: by name. default: the class of requests that ask for nothing, or None for no targets.
    tiers: OpenAI's service tiers, mapped to class names.
    Raises InvalidConfig when a default or a tier names a class that does not exist.
    """

    classes: Mapping[str, SLO] = field(default_factory=dict)
    default: str | None = None
    tiers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for label, name in [("--default-slo", self.default), *((f"service tier {t!r}", c) for t, c in self.tiers.items())]:
            if name is not None and name not in self.classes:
                raise InvalidConfig(f"{label} names the SLO class {name!r}, which does not exist; {self._known()}")

    def choose(
        self, body: str | Mapping[str, float] | None, headers: Mapping[str, str], tier: str | None
    ) -> tuple[str | None, SLO]:
        """Find a request's class and SLO.

        Numbers win over class names, the body over the headers: each target comes from the first of the body's numbers, the
        headers' numbers, the named class (the body's `slo`, else the one that the service tier stands for). A request that
        names neither numbers nor a class gets the default class. Raises InvalidRequest.
        """
        name = body if isinstance(body, str) else self._of_tier(tier)
        stated = SLO(**self._of_headers(headers))
        if body is not None and not isinstance(body, str):
            stated = _over(SLO(**body), stated)
        if name is None and stated == SLO():
            name = self.default
        if name is not None and name not in self.classes:
            raise InvalidRequest(f"unknown SLO class {name[:MAX_CLASS_NAME]!r}; {self._known()}", "slo")
        chosen = stated if name is None else _over(stated, self.classes[name])
        return name, _bounded(chosen)

    def _of_headers(self, headers: Mapping[str, str]) -> dict[str, float]:
        found: dict[str, float] = {}
        for header, target in HEADERS.items():
            if header in headers and target not in found:
                found[target] = _number(headers[header], header)
                try:
                    SLO(**{target: found[target]})
                except InvalidRequest:
                    raise InvalidRequest(
                        f"header {header} must be a finite positive number, got {headers[header][:40]!r}", header
                    ) from None
        return found

    def _of_tier(self, tier: str | None) -> str | None:
        if tier is None or tier in self.tiers:
            return None if tier is None else self.tiers[tier]
        if tier in BUILT_IN_TIERS:
            return None
        known = ", ".join(sorted({*self.tiers, *BUILT_IN_TIERS}))
        raise InvalidRequest(f"unknown service_tier {tier[:MAX_CLASS_NAME]!r}; this server knows {known}", "service_tier")

    def _known(self) -> str:
        return f"this server knows {', '.join(sorted(self.classes))}" if self.classes else "this server has no SLO classes"


def _bounded(slo: SLO) -> SLO:
    """Refuse targets so large that arithmetic on them would overflow; whoever has no target states none."""
    for name, most in (("tpot_ms", MAX_MS), ("ttft_ms", MAX_MS), ("tpot_multiple", MAX_MULTIPLE)):
        value = getattr(slo, name)
        if value is not None and value > most:
            raise InvalidRequest(f"slo.{name} must be at most {most:g}, got {value:g}", f"slo.{name}")
    return slo


def _over(first: SLO, second: SLO) -> SLO:
    """Take each target from `first`, and those it leaves open from `second`."""
    tpot = second if first.tpot_ms is None and first.tpot_multiple is None else first
    ttft = first.ttft_ms if first.ttft_ms is not None else second.ttft_ms
    return SLO(tpot_ms=tpot.tpot_ms, tpot_multiple=tpot.tpot_multiple, ttft_ms=ttft)
