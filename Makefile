# The targets make their own environment, .venv, from the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart notebooks test compatibility lint clean

quickstart: .venv/installed
	$(BIN)/python examples/quickstart.py

notebooks: .venv/installed
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Pruned folders under other versions of transformers, each in an environment without this package.
compatibility: .venv/installed $(patsubst %,.compatibility/%/installed,4.57.6 5.0.0 newest)
	$(BIN)/python -m pytest tests/test_compatibility.py

.compatibility/%/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $$(grep ^torch= constraints.txt) numpy
	$(@D)/bin/python -m pip install --quiet transformers$(patsubst ==newest,,==$*)
	touch $@

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
	rm -rf .venv .compatibility build dist *.egg-info
