"""Replay a trace on a simulated machine: the real engine, scheduler and policies, a recorded draft, a virtual clock.

Six minutes of trace take seconds. Options and report are those of `adaserve bench`; what does not exist is stated: how long
steps take (--profile) and which drafts are accepted (--acceptance).
"""

import argparse
from dataclasses import asdict, replace

from adaserve.bench.runs import Runner
from adaserve.bench.workloads import add_workload_options, points_from, source_from
from adaserve.cli.experiment import Stop, Subject, add_experiment_options, conduct
from adaserve.cli.options import DEFAULTS, add_scheduling_options
from adaserve.errors import InvalidConfig

EXAMPLES = """examples:
  adaserve simulate trace.json --profile h200-32b --policy adaserve continuous sarathi spec:4 --out results
  adaserve simulate trace.json --profile a100x4-70b --acceptance synthetic:0.7 --capacity
  adaserve simulate trace.json --profile profile.json --acceptance acceptance.npz --sweep rate=0.8,1.0,1.2
  adaserve simulate generated --duration 360 --rate 4 --profile h200-32b --swap-acceptance coding=chat"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_workload_options(parser)
    group = parser.add_argument_group("simulation")
    group.add_argument(
        "--profile", required=True, metavar="FILE|NAME", help="step times: a file or a built-in name, like h200-32b"
    )
    group.add_argument(
        "--believed", metavar="FILE|NAME", help="the step times that the scheduler starts from (default: the same)"
    )
    group.add_argument(
        "--acceptance",
        default="synthetic",
        metavar="FILE|NAME",
        help="which drafts are accepted: a file of `adaserve record`, a built-in recording such as smollm2-demo-t0, `synthetic`, "
        "or synthetic:0.7 for a draft that is right in 70%% of its first choices (default: %(default)s)",
    )
    group.add_argument(
        "--swap-acceptance",
        action="append",
        default=[],
        metavar="CLASS=CLASS",
        help="give a class of requests the acceptance of another recorded class; repeatable",
    )
    group.add_argument(
        "--coupled",
        action=argparse.BooleanOptionalAction,
        help="rank drafts by the noise of the target's draws, with a recording made so (default: the policy decides)",
    )
    group.add_argument(
        "--policy",
        nargs="+",
        action="extend",
        metavar="P",
        help=f"policies to run, one after the other (default: {DEFAULTS.policy})",
    )
    add_experiment_options(group)
    group.add_argument(
        "--tuning",
        action="append",
        default=[],
        metavar="[POLICY=]FILE",
        help="tuned policy constants, for all policies or for one (default: those shipped for the profile); repeatable",
    )
    add_scheduling_options(group)
    group.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes that share the runs; the figures are the same (default: 1)"
    )
    group.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N", help="of all that is drawn (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Simulate; the last line on stdout is the report."""
    if args.jobs < 1:
        raise InvalidConfig(f"--jobs must be at least 1, got {args.jobs}")
    source = source_from(args)
    points_from(args)  # what is wrong with the sweeps shows before anything slow
    stop = Stop()
    return conduct(args, source, subject(args, stop), stop, args.jobs)


def subject(args: argparse.Namespace, stop: Stop) -> Subject:
    """The simulated machine that the options describe. Raises InvalidConfig."""
    import torch

    from adaserve.executor.shipped import profile_named, recording_named
    from adaserve.policy.adaptive import Constants
    from adaserve.policy.library import Overrides, make_policy
    from adaserve.policy.plus.parts import PlusConstants
    from adaserve.policy.policy import Policy
    from adaserve.simulate import Machine, SimulatedRunner, constants_for, described
    from adaserve.step import Order
    from adaserve.tuning import load_constants

    torch.set_num_threads(1)  # tensors here are small, and other threads only wait for one another
    profile = profile_named(args.profile)
    machine = Machine(profile, believed=profile_named(args.believed) if args.believed else None, slots=args.max_num_seqs)
    if args.kv_tokens is not None:
        machine = replace(machine, kv_tokens=args.kv_tokens)
    recording = recording_named(args.acceptance, args.seed)
    policies = list(dict.fromkeys(args.policy or [DEFAULTS.policy]))
    overrides = Overrides(args.budget, args.depth, args.width, args.chunk_rows, Order(args.order), args.coupled)
    tunings = dict(_tuning(text) for text in args.tuning)
    if unused := [name for name in tunings if name is not None and name not in policies]:
        raise InvalidConfig(
            f"--tuning {unused[0]}={tunings[unused[0]]} is for a policy that does not run, only {', '.join(policies)}"
        )
    swap = dict(_swap(text, list(recording.classes)) for text in args.swap_acceptance)

    def constants_named(name: str) -> Constants:
        tuning = tunings.get(name, tunings.get(None))
        return constants_for(profile, name) if tuning is None else load_constants(tuning, name)

    def policy_named(name: str) -> Policy:
        return make_policy(name, constants_named(name), overrides.known_to(name) if len(policies) > 1 else overrides)

    made = {name: policy_named(name) for name in policies}  # a wrong name shows before the first run
    if recording.coupled and (apart := [name for name, p in made.items() if p.scheduling.deepest and not p.coupled]):
        raise InvalidConfig(f"{args.acceptance} is of coupled drafts, and those of {', '.join(apart)} are not: give --coupled")

    def runner(baseline: float) -> Runner:
        return SimulatedRunner(policy_named, machine, recording, seed=args.seed, swap=swap, stop=stop)

    return Subject(
        baseline=machine.baseline,
        runner=runner,
        policies=policies,
        device=f"simulated: {profile.name} ({profile.source})",
        conditions={
            "profile": profile.to_json(),
            "believed": machine.believed.to_json() if machine.believed else None,
            "acceptance": args.acceptance,
            "recording": {"pair": recording.pair, "temperature": recording.temperature, "source": recording.source}
            | ({"coupled": True} if recording.coupled else {}),
            "swap_acceptance": swap,
            "slots": machine.slots,
            "kv_tokens": machine.kv_tokens,
            "page_size": machine.page_size,
            "seed": args.seed,
            "policies": {name: described(policy) for name, policy in made.items()},
            "constants": {name: asdict(constants_named(name)) for name in made},
            "overrides": asdict(overrides) | {"order": args.order},
            "plus": asdict(PlusConstants()),
        },
    )


def _tuning(text: str) -> tuple[str | None, str]:
    """Read `FILE`, which is for all policies, or `POLICY=FILE`."""
    policy, equals, file = text.partition("=")
    return (policy, file) if equals else (None, text)


def _swap(text: str, classes: list[str]) -> tuple[str, str]:
    """Read `coding=chat`."""
    name, equals, other = text.partition("=")
    if not name or not equals or other not in classes:
        raise InvalidConfig(
            f"--swap-acceptance reads like coding=chat with a recorded class ({', '.join(classes)}), got {text!r}"
        )
    return name, other
