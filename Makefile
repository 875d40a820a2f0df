# Everything a fresh machine needs is Python 3.11 or later, and make. `make help` lists the targets.

PYTHON ?= python3
# Arguments of the demo, for example: make demo ARGS="--duration 20 --policies continuous,adaserve+"
ARGS ?=
# Worker processes of the unit tests; each runs on one thread.
WORKERS ?= 2
# Where to look for torch beside the usual index. The usual Linux wheel of torch carries gigabytes of CUDA libraries; to save them,
# give the address of PyTorch's own CPU index: make demo TORCH_INDEX=ADDRESS
TORCH_INDEX ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
# The environment, so that isolated builds obey the pins too (older pips read the first name, newer ones the second).
PINS := PIP_CONSTRAINT="$(CURDIR)/constraints-cpu.txt" PIP_BUILD_CONSTRAINT="$(CURDIR)/constraints-cpu.txt" PIP_DISABLE_PIP_VERSION_CHECK=1
PIP := $(PINS) $(BIN)/python -m pip install --quiet --progress-bar off

.PHONY: help install demo test unit e2e lint types check format clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@echo "make install  set up .venv with pinned versions; the others do it too"
	@echo "make demo     set up, serve the demo pair, send a minute of mixed requests under three policies, print a table"
	@echo "make test     set up, run all tests: unit tests, then the end-to-end suite with the real SmolLM2"
	@echo "make unit     the unit tests alone (tiny random models, no downloads)"
	@echo "make e2e      the end-to-end suite alone"
	@echo "make lint     ruff and the import rules"
	@echo "make types    mypy"
	@echo "make check    test, lint and types: what .ci/run does"
	@echo "make format   let ruff format the code"
	@echo "make clean    remove .venv and caches"

$(INSTALLED): constraints-cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "AdaServe needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) -V 2>&1`. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Creating .venv"; $(PYTHON) -m venv .venv; } || \
	  { rm -rf .venv; echo "Could not create .venv: is the venv module there? (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing torch (pinned)"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	@echo "Installing adaserve and what it needs (pinned)"
	@$(PIP) --editable '.[dev]'
	@touch $@

install: $(INSTALLED)

demo: install
	$(BIN)/python -m adaserve.bench.demo $(ARGS)

test: unit e2e

unit: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m "not e2e"

e2e: install
	$(BIN)/adaserve pull demo
	$(BIN)/pytest -m e2e

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

check: test lint types

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
