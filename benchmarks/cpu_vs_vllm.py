"""AdaServe against vLLM's CPU build: same weights, prompts, cores and machine, turn by turn in one run.

    .venv/bin/python benchmarks/cpu_vs_vllm.py --vllm-python vllm-env/bin/python --vllm-model FOLDER [--rounds 3]

FOLDER holds the demo target in Hugging Face layout, bfloat16, as benchmarks/export_demo.py writes it; benchmarks/cpu_peer_vllm.py
says how to set vLLM up. Code prompts
of the project's own, greedy, 64 output tokens, end of text ignored, prefix reuse off. A round runs vLLM with one request, vLLM
with 32, and then this engine with each of its settings; medians over rounds come as ratios to vLLM, for absolute times drift.

    one request    a pass must read all weights: bytes / bandwidth is the floor of plain decoding, and speculation divides it by
                   the tokens that a pass yields, less what the draft costs
    32 requests    arithmetic: 32 rows * 2 FLOPs * parameters / peak is the floor of a step; drafting buys nothing there

The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TOKENS = 64
OURS = {
    "plain, 1 request": ("continuous", 1, {}),
    "speculation, 1 request": ("adaserve", 1, {"depth": 3, "width": 1, "budget": 4}),
    "speculation 2x2, 1 request": ("adaserve", 1, {"depth": 2, "width": 2, "budget": 5}),
    "adaserve as shipped, 1 request": ("adaserve", 1, {}),
    "plain, 32 requests": ("continuous", 32, {}),
    "adaserve as shipped, 32 requests": ("adaserve", 32, {}),
}


def ours(repeats: int) -> dict[str, dict[str, float]]:
    """Measure every setting of this engine, on one loaded model."""
    from adaserve.bench.replay import replay, to_requests
    from adaserve.build import load_parts
    from adaserve.config import EngineConfig
    from adaserve.request import SLO
    from adaserve.workload import Arrival, Workload
    from adaserve.workload.prompts import prompts

    parts = load_parts(EngineConfig("demo", max_num_seqs=32, prefix_caching=False), lambda line: print(line, file=sys.stderr))
    texts = prompts("coding")
    found = {}
    for name, (policy, count, fixed) in OURS.items():
        settings = EngineConfig("demo", policy=policy, prefix_caching=False, **fixed)
        engine = parts.engine(parts.with_config(settings).policy())
        arrivals = tuple(
            Arrival(0.0, texts[i % len(texts)], "coding", SLO(tpot_ms=1.0), TOKENS, ignore_eos=True) for i in range(count)
        )
        timed = to_requests(Workload(arrivals), parts.tokenizer, 1.0, (), temperature=0.0, seed=0)
        runs = [replay(engine, timed) for _ in range(repeats + 1)][1:]
        tpot = statistics.median(statistics.median(r.tpot for r in run.results if r.tpot) for run in runs)
        found[name] = {
            "tpot_ms": tpot * 1e3,
            "ms_per_token": statistics.median(run.seconds for run in runs) * 1e3 / TOKENS,
            "tokens_per_s": statistics.median(count * TOKENS / run.seconds for run in runs),
            "tokens_per_step": statistics.median(run.totals.mean_tokens_per_step or 0 for run in runs),
            "bookkeeping": statistics.median(
                sum(run.totals.step_share[phase] for phase in ("schedule", "select", "commit")) for run in runs
            ),
        }
    return found


def last_json(command: list[str]) -> dict[str, object]:
    """Run a command; the JSON object that its last line holds."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="the Python of vLLM's own environment; without it only this engine is measured")
    parser.add_argument("--vllm-model", help="the demo target as a folder in Hugging Face layout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        print(json.dumps(ours(args.repeats)))
        return

    from adaserve.workload.prompts import prompts

    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "prompts.json"
        texts.write_text(json.dumps(list(prompts("coding"))))
        for number in range(args.rounds):
            found: dict[str, dict[str, float]] = {}
            for count in (1, 32) if args.vllm_python else ():
                peer = [args.vllm_python, str(Path(__file__).with_name("cpu_peer_vllm.py")), "--model", args.vllm_model]
                options = {"requests": count, "tokens": TOKENS, "prompts": texts, "repeats": args.repeats}
                flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
                found[f"vLLM, {count} request{'s' * (count > 1)}"] = last_json([*peer, *flags])  # type: ignore[assignment]
            found |= last_json([sys.executable, __file__, "--ours", "--repeats", str(args.repeats)])  # type: ignore[arg-type]
            rounds.append(found)
            print(f"round {number + 1} of {args.rounds} done", file=sys.stderr, flush=True)
    report(rounds)


def report(rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print the table and the JSON line."""
    print(f"{'':34} {'ms/token':>9} {'TPOT ms':>9} {'tokens/s':>9} {'x vLLM':>8} {'tokens/step':>12} {'bookkeeping':>12}")
    summary = {}
    for name in rounds[0]:
        middle = {
            key: statistics.median(r[name][key] for r in rounds)
            for key, value in rounds[0][name].items()
            if isinstance(value, int | float)
        }
        peer = "vLLM, 1 request" if name.endswith(" 1 request") else "vLLM, 32 requests"
        ratio = None
        if peer in rounds[0]:
            ratio = statistics.median(r[name]["tokens_per_s"] / r[peer]["tokens_per_s"] for r in rounds)
        summary[name] = {**middle, "throughput_x_vllm": ratio}
        print(
            f"{name:34} {middle['ms_per_token']:9.1f} {middle['tpot_ms']:9.1f} {middle['tokens_per_s']:9.0f} "
            f"{'' if ratio is None else f'{ratio:.2f}':>8} {middle.get('tokens_per_step', 1):12.2f} "
            f"{middle.get('bookkeeping', 0):12.1%}"
        )
    print(json.dumps({"benchmark": "cpu_vs_vllm", "rounds": len(rounds), "settings": summary}))


if __name__ == "__main__":
    main()
