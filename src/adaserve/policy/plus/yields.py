"""What drafting brings: tokens and nodes per depth, and what a token is worth in seconds. Learned from every step."""

from itertools import accumulate, compress

from adaserve.policy.plus.parts import LearningConstants
from adaserve.step import StepOutcome


class Yields:
    """Running estimates, per request that drafts.

    accepted[k], nodes[k]: draft tokens accepted and nodes verified at depth k + 1. prompt_worth: of a prompt row, in tokens.
    """

    def __init__(self, deepest: int, prompt_worth: float, learning: LearningConstants) -> None:
        self._learning = learning
        self._prompt_worth = prompt_worth
        self.accepted = [learning.first_accepted * learning.next_accepted**k for k in range(deepest)]
        self.nodes = [learning.first_nodes] * deepest
        self._tokens = 0.0
        self._seconds = 0.0
        self._best = [0.0]  # f of the last step's best k nodes in all, by k

    @property
    def seconds_per_token(self) -> float | None:
        """How long the engine took of late for a token, or for as much work on prompts: what one is worth. None at first.

        Were prompts worth nothing, time would seem cheap when many wait, and be spent on nodes while slots stand idle.
        """
        return self._seconds / self._tokens if self._tokens else None

    def brought(self, k: int, usual: int) -> float:
        """Tokens that the best k nodes are expected to bring where `usual` are verified: by f, as it was in the last step."""
        best, count = self._best, len(self._best) - 1
        if not count:
            return self._learning.first_accepted * self._learning.next_accepted * min(k, usual)
        at = k * count / usual
        below = min(int(at), count)
        if below < count:
            found = best[below] + (at - below) * (best[below + 1] - best[below])
        else:  # further ones are as good as the last eighth was, or a little worse
            last = max(1, count // 8)
            found = best[count] + (at - count) * self._learning.further_worth * (best[count] - best[count - last]) / last
        return found * usual / count

    def learn(self, outcome: StepOutcome) -> None:
        """Take in a step."""
        c, plan, drafted = self._learning, outcome.plan, outcome.drafted
        if drafted.path_prob:
            self._best = [0.0, *accumulate(sorted(drafted.path_prob, reverse=True))]
        gained = sum(map(len, outcome.tokens))
        prompts = sum([chunk.length for chunk in plan.chunks])
        self._tokens = c.token_fade * self._tokens + gained + self._prompt_worth * prompts
        self._seconds = c.token_fade * self._seconds + outcome.times.total
        tried = min(plan.depth, len(self.accepted))
        if tried:
            rooms = [most for most, chunk in zip(plan.room, plan.drafting, strict=True) if chunk is not None]
            verified, accepted = drafted.depth, list(compress(drafted.depth, drafted.accepted))
            for k in range(tried):
                able = sum([most > k for most in rooms])
                if able:
                    self.accepted[k] += c.draft_rate * (accepted.count(k + 1) / able - self.accepted[k])
                    self.nodes[k] += c.draft_rate * (verified.count(k + 1) / able - self.nodes[k])
        # What was not tried is guessed from what was: no depth brings more than the one above it, and a draft that was given up
        # gets another chance in time.
        if plan.depth == 0 and self.accepted:
            self.accepted[0] += c.hope * (c.first_accepted - self.accepted[0])
            self.nodes[0] += c.hope * (c.first_nodes - self.nodes[0])
        for k in range(max(plan.depth, 1), len(self.accepted)):
            before, last = self.accepted[k - 1], self.accepted[k]
            self.accepted[k] = min(before, last + c.draft_rate * (before * c.next_accepted - last))
