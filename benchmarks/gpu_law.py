"""The first law in bfloat16: where speculation changes a token, the two tokens were as good as equal. On one GPU.

In float64 speculation gives every token that plain decoding gives (tests/test_law.py). In bfloat16 it cannot: passes of other
sizes take other kernels, which add the same products in another order and round to eight bits in other places, so the same known
tokens get slightly other logits. Two tokens whose scores are nearer than that may change places, and from the first such *flip*
on two texts have nothing in common. What can be asked is that every flip is of this kind. So:

    differences   of the logits of the same known tokens, read in passes of one row and of more. Each way of reading has keys
                  and values of its own behind it, as in an engine. `margin`: how much the two best of a row change against each
                  other, which is what a flip needs
    texts         of the same requests, plainly decoded and in other ways; up to each one's first difference
    gaps          at every flip, how far the worse of the two tokens stood below the best, in one more pass over what the texts
                  have in common. Above temperature 0 scores are logits plus the keyed noise of the draws (kernels/gumbel.py)
    control       tokens changed by hand must be found out by the same measure

No gap may exceed four times the 99th percentile of the differences. The exit status is 1 if one does, if the control finds too
little, or if too few draft tokens were accepted for speculation to have been tried. Plain decoding of eight at a time beside all
at once tells how many flips batching alone brings about.

    python benchmarks/gpu_law.py --model smollm2.gguf
    python benchmarks/gpu_law.py --shape tiny --device cpu --dtype float32 --requests 12 --prompt 40 --output 32

The models are those of gpu_models.py. The last line is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpu_differences import Differences, measure
from gpu_models import Bench, add_model_options, build
from gpu_reading import Reader, in_passes
from gpu_serve import PAGE, Bed, Setting, requests_of
from gpu_timing import free_memory
from torch import Tensor

from adaserve.assembly import Models, Sizes, make_executor
from adaserve.clock import WallClock
from adaserve.models.decoder import Decoder
from adaserve.request import Request
from adaserve.runtime.noise import gumbel_noise
from adaserve.runtime.table import signed_word
from adaserve.step import Chunk

Texts = dict[str, tuple[int, ...]]

FACTOR = 4.0
"""A gap may be so many times the 99th percentile of the differences."""
LEAST_ACCEPTED = 0.25
"""Draft tokens per request and step below which nothing was tried."""
LEAST_CAUGHT = 0.9
"""Of the tokens changed by hand: some may be as good by chance."""
FEW = 8
"""Requests at once when plain decoding is compared with itself."""
ROWS = 4096
"""Of a pass over known tokens."""


@dataclass(frozen=True)
class Flip:
    """A request's first token that differs: `at` tokens of output before it agree."""

    request: Request
    at: int
    plain: int
    other: int


def first_differences(requests: Sequence[Request], plain: Texts, other: Texts) -> tuple[list[Flip], int]:
    """Find every request's first difference, and how many tokens were compared, those that differ included."""
    flips, compared = [], 0
    for request in requests:
        pairs = list(zip(plain[request.id], other[request.id], strict=True))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if at is None:
            compared += len(pairs)
        else:
            compared += at + 1
            flips.append(Flip(request, at, *pairs[at]))
    return flips, compared


@torch.inference_mode()
def gaps(target: Decoder, flips: Sequence[Flip], plain: Texts) -> list[float]:
    """How far the worse token of every flip stands below the best, after the tokens that the texts have in common."""
    if not flips:
        return []
    known = [(*flip.request.prompt, *plain[flip.request.id][: flip.at]) for flip in flips]
    reader = Reader(target, known)
    found = []
    for chunks in in_passes([Chunk(slot, 0, len(text)) for slot, text in enumerate(known)], ROWS):
        ends = torch.tensor([chunk.length for chunk in chunks]).cumsum(0) - 1  # [C]
        logits = target.logits(reader(chunks)[ends.to(target.device)])  # [C, V]
        here = [flips[chunk.slot] for chunk in chunks]
        score = scores(logits, here, [chunk.length for chunk in chunks])  # [C, V]
        pair = torch.tensor([[flip.plain, flip.other] for flip in here], device=score.device)  # [C, 2]
        found += (score.amax(1) - score.gather(1, pair).amin(1)).tolist()
    return found


def scores(logits: Tensor, flips: Sequence[Flip], position: Sequence[int]) -> Tensor:
    """What the draw compares: logits [C, V], and above temperature 0 the noise of the token at each position.  [C, V] float64"""
    requests = [flip.request for flip in flips]
    words = ([signed_word(r.seed) for r in requests], [r.choice for r in requests], position)
    seed, choice, where = (torch.tensor(word, device=logits.device) for word in words)  # [C]
    temperature = torch.tensor([r.sampling.temperature for r in requests], dtype=torch.float64, device=logits.device)  # [C]
    return logits.double() + temperature[:, None] * gumbel_noise(seed, choice, where, logits.shape[1])


def changed_by_hand(plain: Texts, vocabulary: int) -> Texts:
    """The texts with their middle tokens changed to whatever follows them in the vocabulary."""
    return {
        name: (*text[: len(text) // 2], (text[len(text) // 2] + 1) % vocabulary, *text[len(text) // 2 + 1 :])
        for name, text in plain.items()
    }


def compared(bench: Bench, requests: Sequence[Request], plain: Texts, other: Texts, bound: float) -> dict[str, Any]:
    """Compare texts with those of plain decoding."""
    flips, tokens = first_differences(requests, plain, other)
    found = gaps(bench.target, flips, plain)
    free_memory()
    return {
        "tokens": tokens,
        "flips": len(flips),
        "rate": len(flips) / tokens,
        "gaps": [float(f"{gap:.4g}") for gap in sorted(found)],
        "beyond": sum(gap > bound for gap in found),
    }


def ways(bed: Bed, count: int, temperature: float, requests: list[Request]) -> tuple[Texts, dict[str, tuple[Texts, float]]]:
    """Texts of plain decoding, and of other ways by name, with the draft tokens that were accepted per request and step."""
    plain_setting = Setting("continuous", count, 0, 1)
    _, plain = bed.run(plain_setting, requests)
    few: Texts = {}
    for start in range(0, count, FEW):
        few |= bed.run(plain_setting, requests[start : start + FEW])[1]
    found = {f"plain, {FEW} at once": (few, 0.0)}
    for setting in (Setting("spec:4", 5 * count, None, None), Setting("adaserve", 6 * count, 4, 3)):
        served, texts = bed.run(setting, requests)
        found[str(setting)] = texts, served.tokens_a_step - 1
        print(
            f"  temperature {temperature:g}, {setting}: {served.tokens_a_step:.2f} tokens a step, {served.seconds:.1f} s",
            flush=True,
        )
    return plain, found


def examine(bench: Bench, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run everything; what was found, and what is wrong with it."""
    count, prompt, output = args.requests, args.prompt, args.output
    each = -(-(prompt + output + 16) // PAGE)
    models, sizes = Models(bench.target, bench.draft), Sizes(count, prompt + output + 16, count * each + count, PAGE)
    bed = Bed(models, sizes, make_executor(models, sizes, WallClock()))
    texts: dict[float, tuple[list[Request], Texts, dict[str, tuple[Texts, float]]]] = {}
    for temperature in (0.0, 1.0):
        requests = requests_of(bench, count, prompt, output, temperature)
        texts[temperature] = (requests, *ways(bed, count, temperature, requests))
    del bed
    free_memory()

    requests, plain, _ = texts[0.0]
    differences = measure(bench.target, [(*r.prompt, *plain[r.id]) for r in requests], output // 2)
    bound = FACTOR * differences.p99
    print_differences(differences, bound)
    found: dict[str, Any] = {"differences": differences.to_json(), "bound": bound}
    wrong = []
    for temperature, (requests, plain, others) in texts.items():
        for name, (other, accepted) in others.items():
            title = f"temperature {temperature:g}, {name}"
            one = found[title] = compared(bench, requests, plain, other, bound) | {"accepted": accepted}
            print_flips(title, one)
            if one["beyond"]:
                wrong.append(f"{title}: {one['beyond']} gaps beyond {bound:.3g}")
            if not name.startswith("plain") and accepted < LEAST_ACCEPTED:
                wrong.append(f"{title}: only {accepted:.2f} draft tokens accepted a step: nothing was tried")
        title = f"temperature {temperature:g}, changed by hand"
        one = compared(bench, requests, plain, changed_by_hand(plain, bench.target.config.vocab_size), bound)
        found[title] = {"changed": one["flips"], "found out": one["beyond"]}
        print(f"  {title}: {one['beyond']} of {one['flips']} found out")
        if one["beyond"] < LEAST_CAUGHT * one["flips"]:
            wrong.append(f"{title}: {one['flips'] - one['beyond']} of {one['flips']} would have passed")
    return found, wrong


def print_differences(differences: Differences, bound: float) -> None:
    print(f"  logits of {differences.rows} known tokens, against passes of one row:")
    for name, (every, margin) in differences.ways.items():
        print(f"    {name:>8}: {every};  margin of the two best: {margin}")
    print(f"    together: p99 {differences.p99:.3g}; a gap may be {FACTOR:g} times that, {bound:.3g}", flush=True)


def print_flips(title: str, one: Mapping[str, Any]) -> None:
    rate = f"{one['flips']} flips in {one['tokens']} tokens ({one['rate']:.3%})"
    print(f"  {title}: {rate}, {one['beyond']} beyond the bound, {one['accepted']:.2f} draft tokens accepted a step")
    if one["gaps"]:
        print("    gaps " + " ".join(f"{gap:.3g}" for gap in one["gaps"]), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.set_defaults(shape="8b", scale=8.0)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens of each output")
    args = parser.parse_args()
    begin = time.perf_counter()
    found, wrong = examine(build(args), args)
    for line in wrong:
        print(f"WRONG: {line}")
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    about = {"torch": torch.__version__, "device": device, "shape": args.shape, "dtype": args.dtype, "draft": args.draft}
    print(json.dumps(about | found | {"wrong": wrong, "seconds": time.perf_counter() - begin}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
