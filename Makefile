# The targets make their own environment, .venv, from the pinned constraints.
PYTHON ?= python3
BIN := .venv/bin
PIP ?= $(BIN)/python -m pip
CONSTRAINTS ?= constraints.txt

.PHONY: quickstart notebooks docs test test-fast mutants compatibility lint format clean

quickstart: .venv/installed
	$(BIN)/python examples/quickstart.py

notebooks: .venv/installed
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

docs: .venv/installed
	$(BIN)/python docs/generate.py

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-fast: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m 'not slow'

# Mistakes put into the package one by one, each of which a test must notice; MUTANTS="word word" runs some of them.
mutants: .venv/installed
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

# Pruned folders under other versions of transformers, and served folders in programs that load them, each in an
# environment without this package.
SERVING := onnxruntime openvino optimum-onnx transformers.js
compatibility: .venv/installed $(patsubst %,.compatibility/%/installed,4.57.6 5.0.0 newest $(SERVING))
	$(BIN)/python -m pytest tests/end_to_end/test_compatibility.py tests/end_to_end/test_served_folders.py

.compatibility/onnxruntime/installed .compatibility/openvino/installed: .compatibility/%/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $* tokenizers numpy
	touch $@

.compatibility/optimum-onnx/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $$(grep ^torch= constraints.txt) numpy
	$(@D)/bin/python -m pip install --quiet 'optimum-onnx[onnxruntime]==0.1.0' sentence-transformers
	touch $@

# Without scripts: that of onnxruntime-node loads libraries for GPUs.
.compatibility/transformers.js/installed:
	mkdir -p $(@D)
	npm install --prefix $(@D) --ignore-scripts @huggingface/transformers
	touch $@

.compatibility/%/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $$(grep ^torch= constraints.txt) numpy
	$(@D)/bin/python -m pip install --quiet transformers$(patsubst ==newest,,==$*)
	touch $@

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first and alone: without it, other requirements may pull a build for another device.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed. Run: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint $(CONSTRAINTS) torch
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[examples,test]'
	touch $@

clean:
	rm -rf .venv .compatibility dist
