# make demo: the whole chain on simulated radiographs.  make test: the tests.  Both install what they need first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test test-slow check format clean

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

.venv/.installed: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sternum needs Python 3.11 or newer; call make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .[dev]
	touch $@

install: .venv/.installed ## make .venv and install the pinned dependencies (done by the others when needed)

demo: install ## run everything on simulated radiographs, in about five minutes on two cores
	$(BIN)/sternum demo

test: install ## run the default tests, two files at a time
	$(BIN)/pytest -m "not slow" --numprocesses=2 --dist=loadfile --no-loadscope-reorder

test-slow: install ## run the tests that take minutes, one after the other
	$(BIN)/pytest -m slow

check: install ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## format the code and mend what lint can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the tools left, not .venv
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build
