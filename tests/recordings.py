"""Made-up acceptance recordings for tests."""

import numpy as np

from adaserve.executor.acceptance import RecordedOutput, Recording, join

CLASSES = ("coding", "chat", "summarization")


def random_recording(
    rng: np.random.Generator, outputs: int = 5, length: int = 40, width: int = 8, vocabulary: int = 30, sharpness: float = 3.0
) -> Recording:
    """Outputs of a target that draws from the very distribution that its draft predicts: f is the probability of acceptance."""
    made: dict[str, list[RecordedOutput]] = {}
    for number, name in enumerate(CLASSES):
        for output in range(outputs):
            prob = rng.dirichlet(np.full(vocabulary, 1 / sharpness), size=length)
            prob = np.sort(prob, axis=1)[:, ::-1]  # [length, V]
            rank = (rng.random((length, 1)) > prob.cumsum(1)).sum(1)  # [length]
            prompt = (number, output)
            made.setdefault(name, []).append(RecordedOutput(prob[:, :width], np.minimum(rank, width), prompt))
    return join(made, pair="a toy with itself", temperature=1.0, source="tests")
