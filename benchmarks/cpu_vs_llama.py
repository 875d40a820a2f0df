"""AdaServe against llama.cpp's server on a CPU: the same GGUF file, prompts, cores and machine, turn by turn in one run.

    python benchmarks/cpu_vs_llama.py --server llama-server --model smollm2.gguf [--draft draft.gguf] [--rounds 2]

A round starts the server plain and, with --draft, speculating (3 tokens), asks each for one text at a time and the plain one for
32 at once, stops it, and then runs this engine with each setting of cpu_vs_vllm.py. Code prompts of the project's own, greedy, 64
output tokens, end of text ignored, prompts not reused. TPOT of the server is its own `predicted_per_token_ms`, without HTTP.
Medians over rounds; the last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from cpu_vs_vllm import TOKENS, ours

from adaserve.workload.prompts import prompts

CROWD = 32
ALONE = 5
"""Texts asked for one after the other, the first of which does not count."""


@contextmanager
def serving(command: list[str], port: int) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=5).read()
                    break
                except (urllib.error.URLError, OSError):
                    if process.poll() is not None:
                        raise SystemExit(f"the server ended at once: {' '.join(command)}") from None
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def complete(url: str, prompt: str) -> dict[str, Any]:
    """One text; the server's answer."""
    body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
    request = urllib.request.Request(f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return dict(json.load(answer))


def alone(url: str) -> dict[str, float]:
    """Texts one after the other."""
    texts = prompts("coding")
    timings = [complete(url, texts[i % len(texts)])["timings"] for i in range(ALONE)][1:]
    return {"tpot_ms": statistics.median(t["predicted_per_token_ms"] for t in timings)}


def crowd(url: str) -> dict[str, float]:
    """Texts at once, the second time that they are asked for."""
    texts = prompts("coding")
    with ThreadPoolExecutor(CROWD) as pool:
        for _ in range(2):
            begin = time.perf_counter()
            answers = list(pool.map(lambda i: complete(url, texts[i % len(texts)]), range(CROWD)))
            seconds = time.perf_counter() - begin
    tokens = sum(answer["timings"]["predicted_n"] for answer in answers)
    return {
        "tpot_ms": statistics.median(a["timings"]["predicted_per_token_ms"] for a in answers),
        "tokens_per_s": tokens / seconds,
    }


def peer(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """A round of the server's settings."""
    threads = str(os.cpu_count())
    command = [args.server, "-m", args.model, "-t", threads]
    found = {}
    with serving([*command, "-np", str(CROWD), "-c", str(CROWD * 512)], args.port) as url:
        found["llama.cpp, 1 request"] = alone(url)
        found[f"llama.cpp, {CROWD} requests"] = crowd(url)
    if args.draft:
        drafting = ["-md", args.draft, "--spec-type", "draft-simple", "--spec-draft-n-max", "3", *args.draft_options.split()]
        with serving([*command, "-np", "1", "-c", "2048", *drafting], args.port) as url:
            found["llama.cpp speculating, 1 request"] = alone(url)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="llama.cpp's llama-server")
    parser.add_argument("--model", required=True, help="the demo target's .gguf file")
    parser.add_argument("--draft", help="a draft model for the server, as .gguf")
    parser.add_argument("--draft-options", default="", help="further options of the server that speculates")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    rounds = []
    for number in range(args.rounds):
        rounds.append(peer(args) | ours(2))
        print(f"round {number + 1} of {args.rounds} done", file=sys.stderr)
    found = {name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]} for name in rounds[0]}
    for name, figures in found.items():
        rate = f"{figures['tokens_per_s']:8.0f} tokens/s" if "tokens_per_s" in figures else ""
        print(f"{name:34} TPOT {figures['tpot_ms']:7.1f} ms {rate}")
    print(json.dumps({"benchmark": "cpu_vs_llama", "rounds": args.rounds, "settings": found}))


if __name__ == "__main__":
    main()
