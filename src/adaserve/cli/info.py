"""Print versions, devices, kernels in use and the models in the cache."""

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from adaserve.models.registry import KNOWN, cache_folder

EXAMPLES = """examples:
  adaserve info
  adaserve info --json
"""

PACKAGES = ("adaserve", "torch", "numpy", "safetensors", "transformers", "tokenizers", "fastapi", "uvicorn")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `adaserve info`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run `adaserve info`."""
    facts = gather()
    if args.json:
        print(json.dumps(facts))
        return 0
    for title, group in facts.items():
        print(title)
        for name, value in group.items():
            print(f"  {name:14} {value}")
    return 0


def gather() -> dict[str, dict[str, object]]:
    """Collect the facts, in groups."""
    return {"versions": versions(), "devices": devices(), "kernels": kernels(), "models": models()}


def versions() -> dict[str, object]:
    """Versions of this package and of what it stands on; None for what is not installed."""
    found: dict[str, object] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def devices() -> dict[str, object]:
    """Processors and accelerators, as torch sees them."""
    import torch

    cpu = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    found: dict[str, object] = {"cpu": cpu}
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return found


def kernels() -> dict[str, object]:
    """Which kernels are in use."""
    from adaserve.kernels.linear import products_status
    from adaserve.kernels.native import native_status

    return {"cpu": native_status(), "products": products_status()}


def models() -> dict[str, object]:
    """Known models, and where those in the cache lie."""
    folder = cache_folder()
    found: dict[str, object] = {"cache": str(folder)}
    for name, known in KNOWN.items():
        path = folder / known.file
        there = path.is_file()
        found[name] = f"{path} ({path.stat().st_size / 1e6:.0f} MB)" if there else f"not here; run: adaserve pull {name}"
    return found
