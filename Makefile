# make demo: run the whole chain on simulated radiographs.  make test: run the tests.  Both install what they need first.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := infra sharding ssl_core evaluation launch sternum

.PHONY: help install demo test gpu test-slow check format structure clean

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

.venv/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sternum needs Python 3.11 or newer; run make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

install: .venv/.installed ## create .venv with all extras, at the pinned versions (the other targets do this as needed)

demo: install ## run everything on simulated radiographs, in four to seven minutes on two cores
	$(BIN)/sternum demo

# Bytecode is kept, wherever the environment says otherwise: the tests start hundreds of processes.
test: export PYTHONDONTWRITEBYTECODE =
test: install ## run the default tests, three files at a time
	$(BIN)/pytest -m "not slow" --numprocesses=3 --dist=loadfile --no-loadscope-reorder

gpu: install ## check and time everything that needs a GPU; the figures go to gpu.json
	$(BIN)/python -m benchmarks.gpu --out=gpu.json

test-slow: install ## run the tests that take minutes, one at a time
	$(BIN)/pytest -m slow

check: install ## check lint rules, formatting, types and declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.requirements > .venv/requirements.txt
	$(BIN)/deptry $(PACKAGES) --requirements-files .venv/requirements.txt

format: install ## format the code and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

structure: install ## print rooms, floors and arrows of each package, and the folder cycles
	$(BIN)/python -m tests.structure

clean: ## remove what the tools left behind, but keep .venv
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build
