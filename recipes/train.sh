#!/usr/bin/env bash
# Train MODEL on CORPUS, or resume: recipes/train.sh CORPUS MODEL [options] (--help lists them).
set -euo pipefail

# shellcheck source=recipes/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
exec "$python" -m recipes.cli.train "$@"
