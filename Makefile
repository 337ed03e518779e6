# make quickstart   prepare, train and score a small translation system; ends with its BLEU score
# make test         the tests
# make lint         formatting, style, types and shell scripts
# make format       format the Python files
# Each creates .venv and installs what is missing. PYTHON chooses the Python (3.11 or 3.12) that .venv is made from.

PYTHON ?= python3
JOBS ?= 2

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: quickstart test lint format clean

venv := .venv
bin := $(venv)/bin
stamp := $(venv)/installed
native := $(wildcard attn2d/csrc/*)
scripts := $(wildcard recipes/*.sh) .ci/run

quickstart: $(stamp)
	@recipes/quickstart.sh

test: $(stamp)
	@$(bin)/python -m pytest -n $(JOBS)

lint: $(stamp)
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy
	@for script in $(scripts); do bash -n "$$script"; done
	@$(bin)/shellcheck $(scripts)

format: $(stamp)
	@$(bin)/ruff format .
	@$(bin)/ruff check --fix .

clean:
	rm -rf $(venv) build *.egg-info attn2d/_C*.so

# PyTorch first: the native operators are compiled against the one they will run with.
$(stamp): pyproject.toml setup.py constraints.txt $(native)
	@command -v $(PYTHON) > /dev/null || { echo "error: no $(PYTHON) here; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else \
	  f"error: Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}; name another: make PYTHON=python3.12")'
	@test -x $(bin)/python || { echo "creating $(venv)"; $(PYTHON) -m venv $(venv); }
	@echo "installing into $(venv); the first time, PyTorch is downloaded"
	@$(bin)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools
	@$(bin)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation \
	  -e '.[recipes,dev]'
	@touch $@
