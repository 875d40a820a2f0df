"""Profiles for tests, one whose target has stairs as a GPU's and one that rises steeply, and a strategy of curves."""

from hypothesis import strategies as st

from adaserve.profile import Profile

STAIRS = Profile(
    name="stairs",
    verify_ms_by_rows={1: 16.0, 64: 18.0, 128: 19.0, 129: 26.0, 256: 28.0, 512: 56.0},
    attention_ms_per_1000_context_tokens=0.08,
    draft_step_ms_by_rows={1: 0.5, 64: 0.5, 192: 0.6, 512: 0.9},
    draft_attention_ms_per_1000_context_tokens=0.01,
    step_overhead_ms=0.4,
    residual_cv=0.03,
    baseline_ms_per_token=17.0,
)

STEEP = Profile("steep", {1: 10.0, 32: 11.0, 64: 16.0, 256: 40.0}, 0.01, {1: 1.0, 64: 1.2}, 0.0, 0.2, 0.0, 10.0)

curves = st.dictionaries(st.integers(1, 600), st.floats(0.01, 500), min_size=1, max_size=12)
