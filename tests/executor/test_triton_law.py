"""The first law with the kernels that surround a pass on a GPU, in Triton's interpreter: they decide what their twins decide.

They stand where the twins do; models, attention and draws stay the CPU's, so that equality is exact.
"""

import random

import pytest

from adaserve import tree
from adaserve.assembly import Sizes, make_executor
from adaserve.clock import WallClock
from adaserve.executor import check
from adaserve.kernels import places
from adaserve.policy.library import Overrides
from adaserve.policy.plus import selection
from adaserve.runtime import slots
from adaserve.speculation import verifier
from tests.devices import DEVICE, needs_triton
from tests.engines import Setting, engine_for, random_requests, run, tiny_models
from tests.test_law import PLAIN, SAMPLING, small

pytestmark = [needs_triton, pytest.mark.skipif(DEVICE.type == "cuda", reason="on a GPU test_cuda.py has these kernels run")]
SETTINGS = {
    "chain": Setting("spec:4", captured=True),
    "deep and wide": Setting(
        "adaserve", overrides=Overrides(depth=7, width=9), constants=small(verify_rows=400, per_request=63), captured=True
    ),
    "pre-empted": Setting("adaserve", pages=40, padded=True),
    "both sources": Setting("adaserve", draft="model+ngram", overrides=Overrides(depth=4, width=2), captured=True),
    "ours, coupled": Setting("adaserve+", captured=True),
}


@pytest.fixture
def kernels_used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Puts the kernels in place; which of them ran."""
    from adaserve.kernels import triton_places, triton_trees
    from adaserve.policy.plus import triton_selection

    used: set[str] = set()

    def put(where: object, name: str, kernel, twin, takes) -> None:
        def call(*arguments):
            if not takes(*arguments):
                return twin(*arguments)
            used.add(name)
            return kernel(*arguments)

        monkeypatch.setattr(where, name, call)

    put(check, "pack", triton_trees.pack, tree.pack, lambda trees, chosen, *_: chosen.shape[1] > 0)
    put(check, "edge_prob", triton_trees.edge_prob, tree.edge_prob, lambda trees: True)
    put(verifier, "walk", triton_trees.walk, None, lambda *_: True)
    put(slots, "tree_rows", triton_places.tree_rows, places.tree_rows_reference, lambda *given: len(given[5]) > 0)
    put(slots, "padded_moves", triton_places.padded_moves, None, lambda *_: True)
    put(slots, "padded_gain", triton_places.padded_gain, None, lambda *_: True)
    put(selection, "surplus_reference", triton_selection.surplus, None, lambda *_: True)
    return used


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", SETTINGS)
def test_law(kernels_used: set[str], name: str, temperature: float) -> None:
    requests = random_requests(random.Random(temperature), 10, SAMPLING[temperature])
    models, setting = tiny_models(), SETTINGS[name]
    plain = run(engine_for(models, PLAIN), requests, check=False)
    kernels_used.clear()
    assert run(engine_for(models, setting), requests, burst=3).tokens == plain.tokens
    expected = {"pack", "edge_prob", "walk", "tree_rows", "padded_moves", "padded_gain"}
    assert kernels_used == expected | ({"surplus_reference"} if setting.policy == "adaserve+" else set())


def test_getting_ready_runs_them_all(kernels_used: set[str]) -> None:
    """So that none is compiled later; edges, of which a tree alone is told, and trees of other widths are trees.compile_all's."""
    make_executor(tiny_models(), Sizes(2, 40, 20, 4), WallClock(), padded=True)._check.prepare()
    assert kernels_used == {"pack", "walk", "tree_rows", "padded_moves", "padded_gain"}
