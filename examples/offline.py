"""Two prompts in one batch, each with its own target; no server.

python examples/offline.py   (after `make demo`, or: adaserve pull demo)
"""

from adaserve import LLM, SLO, SamplingParams

URGENT = "def is_leap_year(year: int) -> bool:\n"
RELAXED = "The main steps in making cheese are"

llm = LLM("demo", progress=print)
baseline = llm.built.baseline * 1e3
print(f"alone and without speculation, a token takes {baseline:.1f} ms here\n")

answers = llm.generate(
    [URGENT, RELAXED],
    SamplingParams(max_tokens=64, temperature=0),
    slo=[SLO(tpot_multiple=1.0), SLO(tpot_multiple=4.0)],
)
for answer in answers:
    result = answer.outputs[0].result
    assert result.targets.tpot is not None and result.tpot is not None
    verdict = "met" if result.attained else "missed"
    print(f"--- target {result.targets.tpot * 1e3:.1f} ms per token, took {result.tpot * 1e3:.1f} ms: {verdict}")
    print(f"{answer.prompt}{answer.text}\n")
