# make install      create .venv and install everything into it; the other targets do it when needed
# make quickstart   prepare, train and score a small translation system; ends with its BLEU score
# make check        lint and the fast unit tests, under two minutes on two cores: the inner loop
# make test         all tests that this machine can run
# make stress       tests that kill, resume and compare for minutes
# make lint         formatting, style, types, C++ format and shell scripts
# make format       format the Python and C++ files
# make browser      install a headless Chromium into .venv for the tests of the report; `make test` does it
# make dist         build the sdist and the wheel into dist/ and check what they contain
# make cuda-check   compile the CUDA kernels for every architecture; needs nvcc, but no GPU
# make sanitize     test the native operators under AddressSanitizer and UndefinedBehaviorSanitizer
# make results      write the tables of docs/RESULTS.md again from results/*.json
# make clean        remove .venv and everything that was built
# PYTHON chooses the Python (3.11 or 3.12) that .venv is made from, JOBS the number of test processes (default 2).

PYTHON ?= python3
JOBS ?= 2
# The data that `make stress` reads; what is missing there is not compared, and the output says so.
STRESS_DATA ?= ../shared/data

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: install quickstart check test stress browser lint format cuda-check sanitize dist results clean

venv := .venv
bin := $(venv)/bin
stamp := $(venv)/installed
native := $(wildcard native/* attn2d/csrc/* depth_adaptive/csrc/* memory_layers/csrc/* memory_layers/csrc/cuda/*)
native_sources := $(wildcard native/*.h */csrc/*.h */csrc/*.cpp */csrc/cuda/*.h */csrc/cuda/*.cpp */csrc/cuda/*.cu \
  tests/support/simt/*)
scripts := $(wildcard recipes/*.sh) .ci/run
packages := thoth_core fairseq_compat attn2d depth_adaptive memory_layers

install: $(stamp)
	@echo "installed into $(venv); source $(bin)/activate puts fairseq's commands on the PATH"

quickstart: $(stamp)
	@recipes/quickstart.sh

check: lint
	@$(bin)/python -m pytest -n $(JOBS) -m "unit and not slow" tests/unit

# The tests of the report need Chromium. Where it cannot be installed, they are left out, and the output says so.
test: $(stamp)
	@marks="not stress"; $(bin)/python tests/support/install_chromium.py || { marks="$$marks and not browser"; \
	  echo "warning: no Chromium, so the tests marked 'browser' do not run" >&2; }; \
	  $(bin)/python -m pytest -n $(JOBS) -m "$$marks"

browser: $(stamp)
	@$(bin)/python tests/support/install_chromium.py

stress: $(stamp)
	@$(bin)/python -m tests.stress --data "$(STRESS_DATA)"

lint: $(stamp)
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy
	@$(bin)/clang-format --dry-run --Werror $(native_sources)
	@for script in $(scripts); do bash -n "$$script"; done
	@$(bin)/shellcheck $(scripts)

format: $(stamp)
	@$(bin)/ruff format .
	@$(bin)/clang-format -i $(native_sources)
	@$(bin)/ruff check --fix .

cuda-check:
	@$(PYTHON) memory_layers/csrc/cuda/check.py

# In a copy of the checkout. Python itself is built without sanitizers, so their libraries are loaded before it. It keeps
# memory until it ends, so leaks are not looked for.
sanitize: $(stamp)
	@rm -rf build/sanitize && mkdir -p build/sanitize
	@cp -R $(packages) recipes native tests benchmarks pyproject.toml README.md LICENSE setup.py build/sanitize/
	@rm -f build/sanitize/*/_C*.so
	@cd build/sanitize && MEMORY_LAYERS_BUILD=cpu NATIVE_FLAGS="-O1 -g -fno-omit-frame-pointer \
	  -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all" \
	  $(abspath $(bin))/python setup.py --quiet build_ext --inplace
	@cd build/sanitize && PYTHONPATH=. ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  $(abspath $(bin))/python -m pytest -p no:cacheprovider tests/unit/memory_layers/test_kernels.py \
	  tests/unit/attn2d/ops tests/unit/depth_adaptive/test_ops.py

dist: $(stamp)
	@rm -rf dist build/dist && mkdir -p dist build/dist
	@$(bin)/python setup.py --quiet sdist --dist-dir dist
	@$(bin)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	@$(bin)/python tests/support/check_dist.py dist
	@ls -l dist

results: $(stamp)
	@$(bin)/python -m recipes.reporting.results_tables

clean:
	rm -rf $(venv) build dist *.egg-info */_C*.so

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
