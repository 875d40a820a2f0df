import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.request import SamplingParams
from adaserve.runtime import processors
from tests.oracles import sampling as oracle


def column(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(
    st.lists(st.integers(0, 11), max_size=8),
    st.lists(st.integers(0, 11), max_size=8),
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.dictionaries(st.integers(0, 11), st.floats(-100, 100), max_size=4),
    st.integers(0, 10**6),
)
def test_penalties_and_bias_equal_the_oracle(
    prompt: list[int], output: list[int], repetition: float, frequency: float, presence: float, bias: dict[int, float], seed: int
) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    ids = torch.tensor([[*bias, *([0] * (4 - len(bias)))]])
    numbers = column([[*bias.values(), *([0.0] * (4 - len(bias)))]])
    seen = torch.tensor([[*prompt, *output]], dtype=torch.int64)
    count = torch.tensor([[output.count(token) for token in [*prompt, *output]]], dtype=torch.int32)
    found = logits.clone()
    processors.add_bias(found, ids, numbers)
    processors.penalise(found, seen, count, column([repetition]), column([frequency]), column([presence]))
    sampling = SamplingParams(
        temperature=0, repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias
    )
    torch.testing.assert_close(
        found[0], column(oracle.process(logits[0].tolist(), sampling, prompt, output, [])), rtol=1e-12, atol=1e-12
    )


def test_forbidden_ids_are_impossible_only_where_active() -> None:
    found = torch.zeros(2, 5)
    processors.forbid(found, torch.tensor([[1, 3, 1], [2, 2, 2]]), torch.tensor([True, False]))
    assert found.isfinite().tolist() == [[True, False, True, False, True], [True] * 5]
