"""Options that the commands share, and the EngineConfig that they make. Names follow vLLM where the meaning is the same."""

import argparse
from collections.abc import Callable

from adaserve.config import DEVICES, DTYPES, LOOKUPS, ORDERS, EngineConfig

DEFAULTS = EngineConfig()


def auto_or(least: int) -> Callable[[str], int | None]:
    """Make a type for options that take `auto` or an integer of at least `least`; auto is None."""

    def parse(text: str) -> int | None:
        if text == "auto":
            return None
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be auto or an integer, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be auto or at least {least}, got {value}")
        return value

    return parse


def add_engine_options(parser: argparse.ArgumentParser, model: bool = True, policy: bool = True) -> None:
    """Add what an engine is started with. model: add the positional MODEL too; policy: add --policy, one name."""
    if model:
        parser.add_argument(
            "model",
            nargs="?",
            default=DEFAULTS.model,
            metavar="MODEL",
            help="a folder or hub id in Hugging Face layout, a .gguf file, or a known name (default: demo)",
        )
    group = parser.add_argument_group("engine")
    group.add_argument("--draft", metavar="MODEL[+ngram]|ngram|none", help="what drafts (default: the model's own draft, if any)")
    group.add_argument(
        "--lookup",
        choices=LOOKUPS,
        default=DEFAULTS.lookup,
        help="where ngram looks: in the request's own text, or also in those of the same API key (default: %(default)s)",
    )
    group.add_argument(
        "--draft-vocabulary", type=auto_or(0), metavar="auto|N", help="propose only the first N tokens; 0 for all of them"
    )
    group.add_argument(
        "--coupled",
        action=argparse.BooleanOptionalAction,
        help="rank drafts by the noise of the target's draws (default: the policy decides)",
    )
    if policy:
        group.add_argument("--policy", default=DEFAULTS.policy, help="who gets how much of each step (default: %(default)s)")
    add_scheduling_options(group)
    group.add_argument("--dtype", choices=DTYPES, default=DEFAULTS.dtype, help="type of the weights (default: %(default)s)")
    group.add_argument("--device", choices=DEVICES, default=DEFAULTS.device, help="where to run (default: %(default)s)")
    group.add_argument("--max-model-len", type=auto_or(1), metavar="N", help="most tokens of prompt and output together")
    group.add_argument("--no-prefix-caching", action="store_true", help="do not reuse the prefixes of earlier prompts")
    group.add_argument(
        "--tensor-parallel-size",
        type=int,
        default=DEFAULTS.tensor_parallel_size,
        metavar="N",
        help="GPUs that share the model, a process each (default: %(default)s)",
    )
    group.add_argument("--threads", type=auto_or(1), metavar="auto|N", help="CPU threads (default: all cores)")
    group.add_argument("--profile", metavar="FILE", help="measured step times (default: the cached ones, or a measurement)")
    group.add_argument("--tuning", metavar="FILE", help="tuned policy constants (default: the cached ones)")
    group.add_argument(
        "--seed", type=int, default=DEFAULTS.seed, metavar="N", help="where the seeds of requests without their own come from"
    )


def add_scheduling_options(group: argparse._ArgumentGroup) -> None:
    """Add what bounds a policy's steps, on a real machine or a simulated one."""
    group.add_argument("--budget", type=auto_or(1), metavar="auto|N", help="rows of a verification pass")
    group.add_argument("--depth", type=auto_or(0), metavar="auto|N", help="draft steps; 0 is plain decoding")
    group.add_argument("--width", type=auto_or(1), metavar="auto|N", help="nodes kept per draft step")
    group.add_argument("--chunk-rows", type=auto_or(1), metavar="auto|N", help="most prompt rows a step")
    group.add_argument(
        "--order", choices=ORDERS, default=DEFAULTS.order, help="whom the SLO phase serves first (default: %(default)s)"
    )
    group.add_argument(
        "--max-num-seqs",
        type=int,
        default=DEFAULTS.max_num_seqs,
        metavar="N",
        help="most requests at once (default: %(default)s)",
    )
    group.add_argument("--kv-tokens", type=auto_or(1), metavar="auto|N", help="tokens that the KV cache holds")


def engine_config(args: argparse.Namespace, max_queue: int = DEFAULTS.max_queue) -> EngineConfig:
    """Make the EngineConfig that the options describe; raises InvalidConfig for options that contradict each other."""
    return EngineConfig(
        model=args.model,
        draft=args.draft,
        draft_vocabulary=args.draft_vocabulary,
        dtype=args.dtype,
        device=args.device,
        policy=args.policy,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        kv_tokens=args.kv_tokens,
        chunk_rows=args.chunk_rows,
        budget=args.budget,
        depth=args.depth,
        width=args.width,
        prefix_caching=not args.no_prefix_caching,
        max_queue=max_queue,
        seed=args.seed,
        threads=args.threads,
        tensor_parallel_size=args.tensor_parallel_size,
        profile=args.profile,
        tuning=args.tuning,
        order=args.order,
        coupled=args.coupled,
        lookup=args.lookup,
    )
