"""How many tokens a request must gain in a step to be on target (paper, section 3: A_i)."""

from adaserve.request import RequestState


def need(state: RequestState, now: float, step_time: float, pace: float = 1.0) -> float:
    """A_i = (l_i + t) / tau_i - o_i, in tokens; 0 for a request without a TPOT target.

    l_i is the time since the first token, o_i the tokens produced since then, both counted as TPOT counts them: the first token
    opens the interval and is not one of the tokens that must be paid for. pace: aim at this share of the target instead of all.
    """
    tpot = state.request.targets.tpot
    if tpot is None or state.decoding_since is None:
        return 0.0
    elapsed = now - state.decoding_since
    produced = state.produced - 1
    return (elapsed + step_time) / (pace * tpot) - produced
