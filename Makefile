# The targets need only Python 3.11 to 3.13, make and git: they create .venv.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST_PROCESSES := 2
# Those with the longest tests first.
WITHOUT_RAY := tests/programs tests/ranks tests/engine tests/stores tests/unit

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test soak lint format benchmarks clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile
	@echo "PYTHON=/path/to/python3.12 selects the interpreter of .venv (after make clean)."

demo: $(READY) ## Run the example on a local Ray: train, evaluate, predict, export
	$(BIN)/python examples/digits.py

test: lint ## Lint, then run all tests and notebooks
	$(BIN)/python -m pytest $(WITHOUT_RAY) -m "not ray and not soak" --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest tests/ray tests/programs -m "ray and not soak"
	$(BIN)/python -m pytest --nbmake examples/notebooks

soak: $(READY) ## Run what takes too long for every change: twenty kills of each kind, data larger than memory
	$(BIN)/python -m pytest tests -m "soak or kills" --kills=20

lint: $(READY) ## Run ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY) ## Format the code and apply ruff's fixes
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

benchmarks: $(READY) ## Run all benchmarks one after the other
	@set -e; for benchmark in benchmarks/[!_]*.py; do echo "== $$benchmark"; $(BIN)/python "$$benchmark"; done

clean: ## Remove .venv, build files and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml tools/bootstrap.sh
	@sh tools/bootstrap.sh
	@touch $@
