"""How a request's SLO is found: body over headers, numbers over class names."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.errors import InvalidConfig, InvalidRequest
from adaserve.request import SLO
from adaserve.server.slo import SLOBook, parse_class, parse_slo, parse_tier

BOOK = SLOBook(
    {"coding": SLO(tpot_multiple=1.2, ttft_ms=500), "chat": SLO(tpot_ms=50), "relaxed": SLO()}, "chat", {"priority": "coding"}
)
positive = st.floats(min_value=1e-3, max_value=1e6, allow_nan=False)


@given(positive, positive)
def test_command_line_slos_are_read_as_written(tpot: float, ttft: float) -> None:
    assert parse_slo(f"tpot:{tpot!r},ttft:{ttft!r}") == SLO(tpot_ms=tpot, ttft_ms=ttft)
    assert parse_slo(f"ttft:{ttft!r}, tpot:{tpot!r}x") == SLO(tpot_multiple=tpot, ttft_ms=ttft)


@pytest.mark.parametrize(
    "text",
    ["", "tpot", "tpot:", "tpot:x", "tpot:0", "tpot:-1", "tpot:nan", "tpot:inf", "ttft:2x", "tpot:1,tpot:2x", "tps:5", "tpot:1;"],
)
def test_wrong_slos_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_slo(text)


@pytest.mark.parametrize("text", ["", "coding", "=tpot:1", "a=tpot:0", " a=tpot:1", "a" * 65 + "=tpot:1", "a\n=tpot:1"])
def test_wrong_classes_are_refused(text: str) -> None:
    with pytest.raises(InvalidConfig):
        parse_class(text)


def test_classes_and_tiers_are_read() -> None:
    assert parse_class("coding=tpot:1.2x,ttft:500") == ("coding", SLO(tpot_multiple=1.2, ttft_ms=500))
    assert parse_tier("priority=coding") == ("priority", "coding")
    with pytest.raises(InvalidConfig):
        parse_tier("priority")
    with pytest.raises(InvalidConfig, match="which does not exist"):
        SLOBook({"a": SLO()}, default="b")
    with pytest.raises(InvalidConfig, match="which does not exist"):
        SLOBook({"a": SLO()}, tiers={"flex": "b"})


@given(
    body=st.none()
    | st.sampled_from(["coding", "chat", "relaxed"])
    | st.dictionaries(st.sampled_from(["tpot_ms", "ttft_ms"]), positive),
    headers=st.dictionaries(st.sampled_from(["x-slo-tpot-ms", "x-llm-d-slo-ttft-ms"]), positive),
    tier=st.sampled_from([None, "auto", "default", "priority"]),
)
def test_precedence(body: str | dict[str, float] | None, headers: dict[str, float], tier: str | None) -> None:
    name, slo = BOOK.choose(body, {key: repr(value) for key, value in headers.items()}, tier)
    numbers = {
        "tpot_ms": headers.get("x-slo-tpot-ms"),
        "ttft_ms": headers.get("x-llm-d-slo-ttft-ms"),
    } | (body if isinstance(body, dict) else {})
    for target, value in numbers.items():
        if value is not None:
            assert getattr(slo, target) == value, "numbers win over class names, the body's over the headers'"
    stated = any(value is not None for value in numbers.values())
    expected = body if isinstance(body, str) else "coding" if tier == "priority" else None if stated else "chat"
    assert name == expected
    base = BOOK.classes[name] if name else SLO()
    if numbers["ttft_ms"] is None:
        assert slo.ttft_ms == base.ttft_ms
    if numbers["tpot_ms"] is None:
        assert (slo.tpot_ms, slo.tpot_multiple) == (base.tpot_ms, base.tpot_multiple)


@pytest.mark.parametrize("value", ["", "abc", "0", "-3", "nan", "inf", "1e999", "1e300", "0x10"])
def test_wrong_headers_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequest):
        BOOK.choose(None, {"x-slo-tpot-ms": value}, None)


@pytest.mark.parametrize(
    ("body", "tier", "param"),
    [
        ("gold", None, "slo"),
        (None, "platinum", "service_tier"),
        ({"tpot_ms": 0.0}, None, "slo.tpot_ms"),
        ({"tpot_ms": math.nan}, None, "slo.tpot_ms"),
        ({"ttft_ms": 1e300}, None, "slo.ttft_ms"),
        ({"tpot_multiple": 1e308}, None, "slo.tpot_multiple"),
        ({"tpot_ms": 1.0, "tpot_multiple": 2.0}, None, "slo"),
    ],
)
def test_wrong_bodies_name_the_field(body: object, tier: str | None, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        BOOK.choose(body, {}, tier)  # type: ignore[arg-type]
    assert caught.value.param == param
