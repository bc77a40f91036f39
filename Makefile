# `make demo` and `make test` need Python 3.11 or newer, git and make; everything else goes into .venv.

PYTHON ?= python3
JOBS ?= 4
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# Where this is set, each of the tests' processes would compile everything anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test lint compiled bench faults docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    install what the demo needs, and run it"
	@echo "make test    install what the tests need; check format, lint and types; run the tests under coverage"
	@echo "make lint    the checks of make test without the tests"
	@echo "make bench   measure speed against the bare database"
	@echo "make faults  break the store in every way, beside dual writes, and count what is wrong afterwards"
	@echo "make docs    build the documentation as a site, in build/site"
	@echo "make clean   remove .venv and everything else that was made"

demo: $(VENV)/.demo
	@$(BIN)/memstate demo

test: $(VENV)/.dev
	@$(MAKE) --no-print-directory --jobs=2 lint compiled
	$(BIN)/python -m pytest -n $(JOBS) --cov

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What the tests import, compiled once, beside the other checks; else each of their processes would do so.
compiled: $(VENV)/.dev
	@$(BIN)/python -m pytest --collect-only -qq > /dev/null || true

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

faults: $(VENV)/.dev
	$(BIN)/python -m benchmarks.faults

docs: $(VENV)/.dev
	$(BIN)/python -m mkdocs build

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made once per environment, and again when pyproject.toml has changed. uv takes a tenth of pip's time; where it cannot
# be had, or pip has been told of other places than it knows, pip does it.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "Installing MemState and what '$*' needs into $(VENV) ..."
	@{ $(PIP) uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[$*]"; } \
	  || $(PIP) --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "MemState needs Python 3.11 or newer, and '$(PYTHON)' is not. Name another one: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed. Debian and Ubuntu keep it in a package of its own: apt-get install python3-venv" >&2; \
	  exit 1; }
