"""The house rules that a linter cannot see: what importing costs, who reads clocks, what documents promise."""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import adaserve
from adaserve.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "adaserve"
MODULES = sorted(SOURCE.rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MACHINERY = ("executor", "speculation", "runtime", "cache", "attention", "kernels", "models", "parallel")

CLOCKS: dict[str, set[str] | None] = {
    "time": {
        "time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time", "process_time_ns",
        "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns", "gmtime", "localtime", "strftime", "ctime",
    },
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "timeit": {"default_timer", "timeit"},
}  # fmt: skip
DANGEROUS: dict[str, set[str] | None] = {
    "pickle": None, "dill": None, "cloudpickle": None, "marshal": None, "shelve": None,
    "torch": {"load"},
    "os": {"system", "popen"},
    "yaml": {"load", "unsafe_load", "full_load"},
    "builtins": {"eval", "exec"},
}  # fmt: skip
DRAWS = {
    "random", "randint", "randrange", "choice", "choices", "shuffle", "sample", "uniform", "gauss", "getrandbits", "seed",
    "rand", "randn", "permutation", "normal",
}  # fmt: skip
GLOBAL_RANDOMNESS: dict[str, set[str] | None] = {
    "random": DRAWS,
    "np.random": DRAWS,
    "torch": {"manual_seed", "seed"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dotted(node: ast.expr) -> str:
    """`a.b.c` for a chain of names, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def uses(tree: ast.AST, banned: dict[str, set[str] | None]) -> Iterator[str]:
    """Yield uses of banned names: `module.name`, `from module import name`; None bans the whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names = banned.get(node.module or "", set())
                if names is None or alias.name in names:
                    yield f"line {node.lineno}: from {node.module} import {alias.name}"
        elif isinstance(node, ast.Import):
            yield from (f"line {node.lineno}: import {a.name}" for a in node.names if banned.get(a.name, set()) is None)
        elif isinstance(node, ast.Attribute):
            owner = dotted(node.value).removeprefix("datetime.") or "?"
            if node.attr in (banned.get(owner) or ()):
                yield f"line {node.lineno}: {owner}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in (banned.get("builtins") or ()):
            yield f"line {node.lineno}: {node.func.id}()"


def found_in(paths: list[Path], banned: dict[str, set[str] | None]) -> list[str]:
    return [f"{name_of(path)} {use}" for path in paths for use in uses(ast.parse(path.read_text(encoding="utf-8")), banned)]


@pytest.mark.parametrize(
    "line",
    [
        "import time\ntime.perf_counter()",
        "from time import monotonic",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime\ndatetime.utcnow()",
    ],
)
def test_the_scan_sees_clocks(line: str) -> None:
    assert list(uses(ast.parse(line), CLOCKS))


@pytest.mark.parametrize("line", ["import pickle", "from pickle import loads", "torch.load(f)", "eval('1')", "exec(code)"])
def test_the_scan_sees_danger(line: str) -> None:
    assert list(uses(ast.parse(line), DANGEROUS))


@pytest.mark.parametrize(
    "line", ["import random\nrandom.random()", "from random import choice", "np.random.rand(3)", "torch.manual_seed(0)"]
)
def test_the_scan_sees_global_randomness(line: str) -> None:
    assert list(uses(ast.parse(line), GLOBAL_RANDOMNESS))


@pytest.mark.parametrize(
    "line", ["model.eval()", "clock.now()", "import time\ntime.sleep(1)", "self.load(path)", "random.Random(0).choice(items)"]
)
def test_the_scan_leaves_the_harmless_alone(line: str) -> None:
    assert not list(uses(ast.parse(line), CLOCKS | DANGEROUS | GLOBAL_RANDOMNESS))


def test_only_the_clock_reads_a_clock() -> None:
    assert found_in([path for path in MODULES if path != SOURCE / "clock.py"], CLOCKS) == []


def test_nothing_executable_is_read() -> None:
    assert found_in(MODULES, DANGEROUS) == []


def test_randomness_is_an_argument() -> None:
    assert found_in(MODULES, GLOBAL_RANDOMNESS) == []


def test_machinery_knows_no_requests() -> None:
    """Its part of request.py is SamplingParams; SLOs and requests' states are decisions' business."""
    paths = [path for path in MODULES if path.relative_to(SOURCE).parts[0] in MACHINERY]
    assert paths
    assert found_in(paths, {"adaserve.request": {"SLO", "Targets", "Request", "RequestState"}}) == []


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_is_light() -> None:
    loaded = imported_by("import adaserve; adaserve.SLO, adaserve.SamplingParams, adaserve.AdaServeError, adaserve.__version__")
    assert loaded.isdisjoint({"torch", "transformers", "fastapi", "uvicorn", "numpy", "scipy", "gguf", "jinja2", "httpx"})


def test_decisions_are_light() -> None:
    """Scheduling runs without a model's libraries: a simulator needs none of them."""
    loaded = imported_by("import adaserve.scheduling.scheduler, adaserve.metrics, adaserve.pages, adaserve.workload")
    assert loaded.isdisjoint({"transformers", "fastapi", "uvicorn", "gguf", "jinja2", "httpx", "safetensors"})


def test_engines_need_no_server() -> None:
    """On a GPU machine without the server's dependencies the engine and the benchmarks run."""
    loaded = imported_by("import adaserve.build, adaserve.bench.engine_runner, adaserve.bench.report, adaserve.bench.workloads")
    assert loaded.isdisjoint({"fastapi", "uvicorn", "httpx", "msgspec", "prometheus_client", "openai"})


def test_public_names_are_there() -> None:
    assert {"LLM", "SLO", "SamplingParams", "AdaServeError", "__version__"} <= set(adaserve.__all__)
    for name in adaserve.__all__:
        assert getattr(adaserve, name) is not None
    assert dir(adaserve) == sorted(adaserve.__all__)


def test_unknown_names_are_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        adaserve.Nonsense  # noqa: B018


def test_every_error_is_public() -> None:
    errors = {name for name, value in vars(adaserve.errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert errors <= set(adaserve.__all__)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(pattern: str) -> set[str]:
    """First words after `pattern` in the shell blocks of all documents."""
    return {
        match
        for path in DOCUMENTS
        for block in blocks(path, "sh")
        for line in block.splitlines()
        for match in re.findall(rf"^\s*(?:\$ )?{pattern} ([a-z][a-z-]*)", line)
    }


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    used = commands("make")
    assert {"demo", "test"} <= used
    assert used <= targets


def test_commands_in_documents_exist() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "adaserve.cli.main", "--help"], capture_output=True, text=True, check=True
    ).stdout
    used = commands(r"(?:\.venv/bin/)?adaserve")
    assert "serve" in used
    assert used <= set(re.findall(r"[a-z][a-z-]*", text))


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{name_of(path)}: {target}"
        for path in DOCUMENTS
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists()
    ]
    assert broken == []


def anchors(path: Path) -> set[str]:
    """What a link may name behind `#`: the headings, as hosts of Markdown spell them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_headings_lead_somewhere() -> None:
    links = [
        (path, target, anchor)
        for path in DOCUMENTS
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text(encoding="utf-8"))
        if "://" not in target
    ]
    assert links
    broken = [f"{name_of(p)}: {t}#{a}" for p, t, a in links if a not in anchors((p.parent / t) if t else p)]
    assert broken == []


def test_commands_in_documents_have_the_options_they_name() -> None:
    """Every `--option` of an `adaserve COMMAND` in the shell blocks is one that the command knows."""
    unknown = []
    for path in DOCUMENTS:
        for block in blocks(path, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.match(r"\s*(?:\.venv/bin/)?adaserve ([a-z]+)(.*)", line):
                    parser = argparse.ArgumentParser()
                    import_module(COMMANDS[found[1]].module).configure(parser)
                    options = re.findall(r"(?<=\s)--[a-z][a-z-]*", found[2])
                    unknown += [f"{name_of(path)}: {found[1]} {o}" for o in options if o not in parser._option_string_actions]
    assert unknown == []


def test_rooms_in_the_drawing_exist() -> None:
    """docs/architecture.md lists every package and top-level module, and nothing else."""
    drawn = set(
        re.findall(
            r"^\| `([a-z_]+)(?:\.py|/)` \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), flags=re.MULTILINE
        )
    )
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert drawn == modules | packages


@pytest.mark.parametrize("guide", ["add-a-policy.md", "benchmark.md"])
def test_the_python_examples_of_the_guides_run(guide: str) -> None:
    examples = blocks(ROOT / "docs" / "guides" / guide, "python")
    assert examples
    for example in examples:
        done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


@pytest.mark.e2e
def test_the_python_example_of_the_readme_runs() -> None:
    examples = blocks(ROOT / "README.md", "python")
    assert examples
    for example in examples:
        done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
