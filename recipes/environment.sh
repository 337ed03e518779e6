# Sourced by the recipes' scripts: sets `root`, the checkout, and `python`, that of its .venv, else $PYTHON, else python3.
# shellcheck shell=bash

root="$(CDPATH="" cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd)"
python="$root/.venv/bin/python"
[[ -x $python ]] || python="${PYTHON:-python3}"
# Modules are looked for in the checkout, and not in the folder that this is called from.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
needed='import importlib.util as u, sys
packages = "yaml", "sentencepiece", "sacremoses", "subword_nmt", "fairseq"
sys.exit(sys.version_info < (3, 11) or not all(map(u.find_spec, packages)))'
if ! "$python" -c "$needed" 2>/dev/null; then
    echo "error: $python lacks what this needs (Python 3.11 and the packages); make quickstart installs it into .venv," \
        "or set PYTHON to the Python of an environment that has it" >&2
    exit 1
fi
