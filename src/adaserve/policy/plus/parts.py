"""The parts of `adaserve+`, each of which can be left out, and its constants."""

from dataclasses import dataclass, fields

from adaserve.errors import InvalidConfig


@dataclass(frozen=True)
class PlusParts:
    """Which parts are in use.

    calibrated: f is what acceptance at such probabilities has been, not what the draft says.
    priced: depth and nodes follow from what they cost and bring; otherwise the paper's Eq. 8 and 9 and a fixed budget.
    attaining: the target that a request still can meet is what its tokens are for; otherwise the paper's largest need first.
    slack_chunks: prompt rows by whom they bring in time and whom they make late; otherwise a fixed number.
    admitting: slots and prompt rows go by when first tokens are due, to those that can still attain first; otherwise by arrival.
    holding: newcomers whose first tokens can wait do so while steps are longer than those who decode can bear; otherwise they
        come as soon as there is a slot. A part of `admitting`.
    coupled: drafts are ranked by the noise of the target's draws too.
    trees: drafts may be wider than one node a depth; otherwise chains.
    refusing: who comes and cannot attain beside those who are here is refused at once. Not in use unless asked for.
    """

    calibrated: bool = True
    priced: bool = True
    attaining: bool = True
    slack_chunks: bool = True
    admitting: bool = True
    holding: bool = True
    coupled: bool = True
    trees: bool = True
    refusing: bool = False

    def without(self, name: str) -> "PlusParts":
        """The same with one part left out. Raises InvalidConfig, naming the parts there are."""
        return self._with(name, False)

    def also(self, name: str) -> "PlusParts":
        """The same with one part in use. Raises InvalidConfig, naming the parts there are."""
        return self._with(name, True)

    def _with(self, name: str, used: bool) -> "PlusParts":
        names = [item.name for item in fields(self)]
        if name not in names:
            raise InvalidConfig(f"adaserve+ has no part {name!r}: choose one of {', '.join(names)}")
        return PlusParts(**{item: used if item == name else getattr(self, item) for item in names})


@dataclass(frozen=True)
class LearningConstants:
    """What is believed at first, and how fast that changes.

    draft_rate: how far what is known of a depth moves towards what one step brought, as a share of the way.
    token_fade: what a step leaves of earlier ones in the rate of tokens; of 0.98 about 50 steps count.
    hope: how far what is known of a draft that is not used moves back to the first guess in a step, as a share of the way.
    first_accepted, next_accepted: before anything was measured the first token of a draft is accepted this often, each further
        one if the one before was.
    first_nodes: before anything was measured, nodes verified at each depth for a request. A guess that is too high is never put
        right, for nobody drafts.
    further_worth: of a node that was not verified, compared with the worst that were.
    trial_fade: what a step leaves of earlier trials in the bands of temperature that it drafted for; of 0.998 about 500 steps.
    prior_trials: trials that what is expected of a cell of the calibration before it has seen any is worth.
    refit_steps: steps between two refits of the calibration.
    reading_rate: how far what reading a prompt row takes moves towards what one request's prompt took, as a share of the way.
    """

    draft_rate: float = 0.05
    token_fade: float = 0.98
    hope: float = 0.0005
    first_accepted: float = 0.6
    next_accepted: float = 0.75
    first_nodes: float = 1.0
    further_worth: float = 0.8
    trial_fade: float = 0.998
    prior_trials: float = 16.0
    refit_steps: int = 16
    reading_rate: float = 0.1


@dataclass(frozen=True)
class PlusConstants:
    """The numbers of `adaserve+`, found by benchmarks/plus_constants.py; docs/results.md says which were put back by hand.

    pace: share of a TPOT target that requests are steered to.
    urgency: how many other tokens a token is worth that a request needs to be on target.
    depth_max, width_max: of the trees. draft_rows: most rows of a draft pass after the first, which bounds the width.
    offered_rows: most prompt rows beside which depths are compared.
    prompt_worth: of a prompt row, in tokens.
    prompt_rows, idle_prompt_rows: most prompt rows a step, while requests decode and while none does.
    prompt_least: share of the prompt rows of a fixed split, as found for the machine, that are read whatever the slack.
    patience: a first token that has used up the share s of its time is worth s to this power of a request. With less of it first
        tokens come sooner, and near capacity more running requests are late for them.
    chunk_part, chunk_cheap: of a chunk whose last rows are dear at least this part is read, so far that a row costs no more than
        so many times what the cheapest does.
    prompt_stretch, free_stretch: most baselines by which prompt rows may lengthen a step while requests decode; the latter where
        none of them has a target to keep.
    read_least, read_most: fewest and most rows that a draft model that is behind may read in a step, those of prompts among them.
    catching_up: share of a step's time by which a draft model that is behind may lengthen it, whoever suffers.
    reading_margin: how many times as long as prompts usually take to be read a request must get its slot before its first token
        is due.
    reading_rows: prompt tokens yet to compute of those who have slots, from which on nobody else gets one.
    late_turn: of so many admissions one is for the request that has been late longest, if there is one: nobody waits for ever.
        The more, the more attain, and the longer the late wait.
    hold_until: share of the time until a first token is due up to which a newcomer may be held.
    hold_share: share of the running requests that may be short of what they need before newcomers are held.
    hold_pace: share of a TPOT target that counts as what they need.
    """

    pace: float = 0.98
    urgency: float = 3.0
    depth_max: int = 3
    width_max: int = 3
    draft_rows: int = 32
    offered_rows: int = 64
    prompt_worth: float = 0.7
    prompt_rows: int = 256
    prompt_least: float = 0.5
    patience: float = 5.0
    chunk_part: float = 0.5
    chunk_cheap: float = 1.05
    prompt_stretch: float = 2.0
    free_stretch: float = 4.0
    read_least: int = 64
    read_most: int = 2048
    catching_up: float = 0.05
    idle_prompt_rows: int = 512
    reading_margin: float = 1.0
    reading_rows: int = 2048
    late_turn: int = 16
    hold_until: float = 0.9
    hold_share: float = 0.05
    hold_pace: float = 0.92
    learning: LearningConstants = LearningConstants()
