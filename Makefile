# make quickstart   prepare, train and score a small translation system; ends with its BLEU score
# make test         the tests
# make lint         formatting, style, types and shell scripts
# make browser      put a headless Chromium, which the tests need, into .venv if the machine has none
# make format       format the Python files
# Each creates .venv and installs what is missing. PYTHON chooses the Python (3.11 or 3.12) that .venv is made from.

PYTHON ?= python3
JOBS ?= 2

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: quickstart test browser lint format cuda-check sanitize clean

venv := .venv
bin := $(venv)/bin
stamp := $(venv)/installed
native := $(wildcard native/* attn2d/csrc/* depth_adaptive/csrc/* memory_layers/csrc/* memory_layers/csrc/cuda/*)
native_sources := $(wildcard native/*.h */csrc/*.h */csrc/*.cpp */csrc/cuda/*.h */csrc/cuda/*.cpp */csrc/cuda/*.cu tests/support/simt/*)
scripts := $(wildcard recipes/*.sh) .ci/run

quickstart: $(stamp)
	@recipes/quickstart.sh

test: $(stamp) browser
	@$(bin)/python -m pytest -n $(JOBS)

# Without one, the tests of the report fail; the others do not need it.
browser: $(stamp)
	-@$(bin)/python tests/support/install_chromium.py

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

# In a copy of the checkout. Python itself is not built with the sanitizers, so their libraries are loaded before it; and
# it keeps memory to its end, so leaks are not looked for.
sanitize: $(stamp)
	@rm -rf build/sanitize && mkdir -p build/sanitize
	@cp -R attn2d depth_adaptive thoth_core fairseq_compat memory_layers recipes native tests pyproject.toml README.md LICENSE setup.py build/sanitize/
	@rm -f build/sanitize/*/_C*.so
	@cd build/sanitize && MEMORY_LAYERS_BUILD=cpu NATIVE_FLAGS="-O1 -g -fno-omit-frame-pointer \
	  -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all" \
	  $(abspath $(bin))/python setup.py --quiet build_ext --inplace
	@cd build/sanitize && PYTHONPATH=. ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  $(abspath $(bin))/python -m pytest -p no:cacheprovider tests/unit/memory_layers/test_kernels.py tests/unit/attn2d/test_ops.py \
	  tests/unit/depth_adaptive/test_ops.py

clean:
	rm -rf $(venv) build *.egg-info */_C*.so

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
