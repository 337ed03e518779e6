#!/usr/bin/env bash
# Raw parallel text -> cleaned text, tokens and fairseq's binary files: recipes/prepare.sh CORPUS [options]
# (--help lists them). Uses the Python of the checkout's .venv, else $PYTHON, else python3.
set -euo pipefail

# shellcheck source=recipes/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
exec "$python" -m recipes.cli.prepare "$@"
