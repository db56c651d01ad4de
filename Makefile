# The targets make their own environment, .venv, from the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart notebooks test mutants lint clean

quickstart: .venv/installed
	$(BIN)/python examples/quickstart.py

notebooks: .venv/installed
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Mistakes put into the package one by one, each of which a test must notice; MUTANTS="word word" runs some of them.
mutants: .venv/installed
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch goes first and alone: without it, other requirements may pull a build for another device.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed. Run: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[examples,test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
