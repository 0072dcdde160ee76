# make demo, make test, make check: each works from a fresh clone with Python and make alone.
# The packages go to .venv: several GB, because nnU-Net brings torch with CUDA. Another Python: make test PYTHON=python3.12
# Arguments for the command behind a target: make demo ARGS="--help", make test ARGS="-k doctor"
# Tests run in two processes, each on one core. More cores, more processes (1 GB of memory each): make test WORKERS=8

PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help demo example-report test test-fast check docs format clean

help:
	@echo 'make demo            train, predict and evaluate on a small made-up dataset'
	@echo 'make example-report  train on phantoms and write docs/report_example.html and .png'
	@echo 'make test            run all tests'
	@echo 'make test-fast       run the fast tests, in under three minutes'
	@echo 'make check           look for faults without running anything: ruff, mypy'
	@echo 'make docs            build the documentation: docs/_build/html/index.html'
	@echo 'make format          let ruff format the code'
	@echo 'make clean           remove .venv and what the tools left behind'

demo: $(STAMP)
	$(BIN)/nnunet_collab demo $(ARGS)

example-report: $(STAMP)
	$(BIN)/python benchmarks/example_report.py $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

test-fast: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow" $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html $(ARGS)
	@echo 'open docs/_build/html/index.html'

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build dist docs/_build

$(STAMP): pyproject.toml
	@test -n '$(PYTHON)' || { echo 'No Python from 3.10 to 3.13 found. Name one: make PYTHON=/path/to/python' >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[test,dev]'
	@touch $@
