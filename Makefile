# `demo` and `test` need nothing but Python 3.11 to 3.13, make and git: they set up .venv themselves.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST_PROCESSES := 2

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test soak lint format benchmarks clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile
	@echo "PYTHON=/path/to/python3.12 names the interpreter that .venv is made from (after make clean)."

demo: $(READY) ## Train, evaluate and predict on a local Ray
	$(BIN)/python examples/digits.py

test: lint ## Lint, then run every test and every notebook
	$(BIN)/python -m pytest tests/programs tests/ranks tests/engine tests/stores tests/unit -m "not ray and not soak" --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest tests -m "ray and not soak"
	$(BIN)/python -m pytest --nbmake examples/notebooks

soak: $(READY) ## What takes too long for each change: twenty kills of each kind, more data than memory
	$(BIN)/python -m pytest tests -m "soak or kills" --kills=20

lint: $(READY) ## ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

benchmarks: $(READY) ## Run every benchmark, one after the other
	@set -e; for benchmark in benchmarks/[!_]*.py; do echo "== $$benchmark"; $(BIN)/python "$$benchmark"; done

clean: ## Remove .venv, builds and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml tools/bootstrap.sh
	@sh tools/bootstrap.sh
	@touch $@
