"""A recorded run survives the file, and the simulator agrees with a run that a simulator made."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaserve.bench.fidelity import Fidelity, acceptance, bent, fidelity
from adaserve.bench.recorded_run import Figures, RecordedRun, RunRecorder, free_path
from adaserve.bench.replay import replay
from adaserve.errors import InvalidConfig
from adaserve.executor.shipped import profile_named, recording_named
from adaserve.latency import LatencyModel
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import make_policy
from adaserve.policy.policy import Policy
from adaserve.request import Request, SamplingParams
from adaserve.simulate import Machine, scripts_for, simulated_engine, to_requests
from adaserve.workload import DEMO_MIX, generate
from tests.engines import Setting, engine_for, random_requests, tiny_models

PROFILE = profile_named("h200-32b")
RECORDING = recording_named("smollm2-demo-t0", 0)
MACHINE = Machine(PROFILE, slots=16, kv_tokens=20_000)


def policy() -> Policy:
    return make_policy("spec:2", Constants(verify_rows=64, draft_rows=32))


def requests(count: int) -> Sequence[tuple[float, Request]]:
    workload = generate(DEMO_MIX, 4.0, 60.0, np.random.default_rng(0)).until(count / 4)
    workload = replace(workload, arrivals=tuple(replace(a, ignore_eos=True) for a in workload.arrivals))
    return to_requests(workload, MACHINE.baseline, seed=0)


def simulated_run(seed: int) -> RecordedRun:
    """A run on a machine whose steps take twice what the profile says."""
    timed = requests(60)
    machine = replace(MACHINE, residuals=(2.0,))
    engine = simulated_engine(policy(), machine, RECORDING, scripts_for([r for _, r in timed], RECORDING, seed, {}), seed)
    recorder = RunRecorder(timed)
    played = replay(engine, timed, on_step=recorder.on_step)
    return recorder.finish("spec:2", played, slots=MACHINE.slots, kv_tokens=MACHINE.kv_tokens, page_size=MACHINE.page_size)


def test_a_run_survives_the_file(tmp_path: Path) -> None:
    run = simulated_run(0)
    path = free_path(tmp_path / "new", run.policy)
    run.save(path)
    assert RecordedRun.load(path) == run
    assert path.name == "spec-2.1.json" and free_path(tmp_path / "new", run.policy).name == "spec-2.2.json"
    path.write_text(path.read_text()[:1000])
    with pytest.raises(InvalidConfig, match="is not what `adaserve bench --record` writes"):
        RecordedRun.load(path)
    with pytest.raises(InvalidConfig, match="cannot read"):
        RecordedRun.load(tmp_path / "nowhere.json")


def test_residuals_are_what_the_profile_does_not_know() -> None:
    assert simulated_run(0).residuals(PROFILE) == pytest.approx([2.0] * len(simulated_run(0).steps))


def test_a_simulation_of_a_simulated_run_is_within() -> None:
    runs = [simulated_run(0), simulated_run(1)]
    found = fidelity(runs, policy, PROFILE, RECORDING, seeds=[0])
    assert found.within and found.real == tuple(run.figures for run in runs)
    wrong = fidelity([replace(run, steps=[(s, t / 2) for s, t in run.steps]) for run in runs], policy, PROFILE, RECORDING, [0])
    assert not wrong.within and wrong.tpot_error < -0.3


@pytest.mark.parametrize(
    ("real", "simulated", "within"),
    [
        ((0.90, 0.90), 0.925, True),
        ((0.90, 0.90), 0.94, False),
        ((0.88, 0.92), 0.95, True),
        ((0.88, 0.92), 0.97, False),
    ],
)
def test_attainment_is_within_three_points_or_twice_the_gap(real: tuple[float, ...], simulated: float, within: bool) -> None:
    runs = tuple(Figures(a, 20.0) for a in real)
    assert Fidelity("p", runs, (Figures(simulated, 20.9),) * 2).within is within
    assert not Fidelity("p", runs, (Figures(simulated, 21.1),) * 2).within


def test_a_run_is_simulated_with_what_another_one_taught() -> None:
    run = simulated_run(0)
    fast = replace(run, steps=[(shape, seconds / 2) for shape, seconds in run.steps])
    one, other = fidelity([run, fast], policy, PROFILE, RECORDING, seeds=[0]).simulated
    assert (one.tpot_p50_ms or 0.0) < 0.7 * (other.tpot_p50_ms or 0.0)


def test_a_draft_reads_a_real_run_s_outputs() -> None:
    models = tiny_models()
    assert models.draft is not None
    greedy = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    timed = [(0.0, request) for request in random_requests(random.Random(0), 4, [greedy])]
    recorder = RunRecorder(timed)
    played = replay(engine_for(models, Setting("continuous")), timed, on_step=recorder.on_step)
    run = recorder.finish("continuous", played, slots=4, kv_tokens=1000, page_size=16)
    assert {name: len(tokens) for name, tokens in run.outputs.items()} == {r.id: r.output_tokens for r in played.results}
    found = acceptance(run, models.draft, pair="tiny", temperature=0.0, vocabulary=None)
    assert len(found.rank) == sum(len(run.outputs[request.id]) for _, request in timed)
    assert set(found.classes) == {str(request.slo_class) for _, request in timed}


def test_the_profile_bends_to_a_run() -> None:
    run = simulated_run(0)
    model = LatencyModel(bent(PROFILE, run))
    predicted, measured = (sum(model.predict(shape) for shape, _ in run.steps), sum(seconds for _, seconds in run.steps))
    assert predicted == pytest.approx(measured, rel=0.05)
    assert bent(PROFILE, replace(run, steps=run.steps[:1])) == PROFILE  # one step says nothing
