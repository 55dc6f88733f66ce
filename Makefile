# `make demo` and `make test` need nothing but Python 3.10 or newer and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
KERNELS = $(wildcard tpcli/pooling/backends/c/*.[ch])

.PHONY: demo test test-long plain sanitize lint dist docs docs-check clean

demo: $(VENV)/installed
	$(BIN)/tpcli pareto --out pareto.png
	@echo "open pareto.html for the whole report"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto

test-long: $(VENV)/installed-dev # every architecture, export and budget; interpreter, machine code, ranks, long commands
	$(BIN)/python -m pytest -n auto --dist load -m 'long and not slow and not third_party and not gpu'

plain: # the wheel without extras in a fresh environment: every command, bare
	PYTHON=$(PYTHON) .ci/plain

sanitize: $(VENV)/installed-dev # the compiled loops under the sanitizers of gcc
	PYTHON=$(abspath $(BIN))/python .ci/sanitize

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dist: $(VENV)/installed-release # what PyPI takes: build/dist
	PYTHON=$(abspath $(BIN))/python .ci/dist

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-check: docs $(VENV)/installed # commands in README and docs run, and print what is shown
	$(BIN)/python docs/check.py

$(VENV)/installed: pyproject.toml $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-%: pyproject.toml $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build
