#!/usr/bin/env bash
# Translate a test set and score it: recipes/evaluate.sh CORPUS MODEL [options] (--help lists them).
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
[[ -x $python ]] || python="${PYTHON:-python3}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
exec "$python" -m recipes.evaluate "$@"
