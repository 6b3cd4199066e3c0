# Everything a contributor runs; `make` alone lists it.

VENV ?= .venv
PYTHON ?= python3
# A wheel index for torch alone, such as https://download.pytorch.org/whl/cpu on a Linux machine without a GPU.
TORCH_INDEX ?=
# Where the tools of `check` stand: empty for the active environment, `some/venv/bin/` for another.
BIN ?=

# Without --no-compile pip would compile all of torch and transformers; Python compiles what it comes to import.
INSTALL := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-compile -c constraints.txt
SOURCES := $(wildcard src tests benchmarks experiments scripts)
export PYTHONPATH := src
export OMP_NUM_THREADS := 1

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# -- environment -------------------------------------------------------------------------------------------------

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("dreamllm needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; run make again with PYTHON=/path/to/a/newer/python")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Torch goes first and alone, so that TORCH_INDEX decides its build and every later install finds it settled.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(INSTALL) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.package $@

.PHONY: venv
venv: $(VENV)/.dev ## Create .venv with everything a contributor needs (some minutes, once)

.PHONY: demo
demo: $(VENV)/.package ## Install the package into .venv and run the demo
	$(VENV)/bin/dreamllm demo

# -- checks ------------------------------------------------------------------------------------------------------

.PHONY: test
test: venv ## Run every check in .venv; this is what CI runs
	$(MAKE) check BIN=$(VENV)/bin/

.PHONY: check
check: static ## Run every check in the active environment
	$(BIN)python -m pytest -n 2

.PHONY: check-fast
check-fast: static ## The same without the slow tests
	$(BIN)python -m pytest -n 2 -m 'not slow'

.PHONY: static
static: lint types layers

.PHONY: lint
lint: ## Check style and formatting
	$(BIN)ruff check $(SOURCES)
	$(BIN)ruff format --check $(SOURCES)

.PHONY: types
types: ## Check types
	$(BIN)mypy

.PHONY: layers
layers: ## Check that rooms import only the rooms before them
	$(BIN)lint-imports

.PHONY: format
format: ## Rewrite the sources in the project's style
	$(BIN)ruff check --fix $(SOURCES)
	$(BIN)ruff format $(SOURCES)

.PHONY: clean
clean: ## Remove .venv and everything the tools wrote
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
