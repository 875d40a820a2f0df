"""Options become the EngineConfig that they describe."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.cli.options import add_engine_options, auto_or, engine_config
from adaserve.config import EngineConfig


def parse(*arguments: str) -> EngineConfig:
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    return engine_config(parser.parse_args(arguments))


def test_no_options_mean_the_defaults() -> None:
    assert parse() == EngineConfig()


def test_options_are_heard() -> None:
    heard = parse(
        "m", "--draft", "none", "--policy", "spec:2", "--budget", "64", "--depth", "0", "--width", "auto", "--seed", "9"
    )
    assert heard == EngineConfig(model="m", draft="none", policy="spec:2", budget=64, depth=0, width=None, seed=9)
    assert parse("--draft", "demo+ngram", "--lookup", "tenant") == EngineConfig(draft="demo+ngram", lookup="tenant")
    assert parse("--no-prefix-caching", "--kv-tokens", "100") == EngineConfig(prefix_caching=False, kv_tokens=100)


@given(st.integers(-100, 100), st.integers(-100, 100))
def test_auto_or_a_number(least: int, value: int) -> None:
    parse_number = auto_or(least)
    assert parse_number("auto") is None
    if value < least:
        with pytest.raises(argparse.ArgumentTypeError):
            parse_number(str(value))
    else:
        assert parse_number(str(value)) == value
