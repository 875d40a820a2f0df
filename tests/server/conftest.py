"""One real server on a tiny random model, shared by all tests that leave it as they found it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.launch import Server
from tests.server.tiny import write_model, write_profile

KEY = "correct horse"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def options(tiny_model: Path) -> list[str]:
    """Options that every test server has."""
    profile = write_profile(tiny_model / "profile.json")
    return [
        str(tiny_model), "--served-model-name", "tiny", "alias", "--dtype", "float64", "--threads", "1", "--draft", "ngram",
        "--profile", str(profile), "--kv-tokens", "20000", "--log-level", "info",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def server(options: list[str]) -> Iterator[Server]:
    """The shared server: a key, SLO classes, a tier."""
    classes = ["--slo-class", "easy=tpot:60000,ttft:60000", "--slo-class", "hard=tpot:0.001", "--slo-class", "twice=tpot:2x"]
    running = Server([*options, "--api-key", KEY, *classes, "--service-tier", "priority=easy"], KEY)
    try:
        yield running.wait_until_ready()
    finally:
        assert running.stop() == 0
