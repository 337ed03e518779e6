#!/usr/bin/env bash
# Find a threshold of a model with exits: recipes/calibrate.sh CORPUS MODEL [options] (--help lists them).
set -euo pipefail

# shellcheck source=recipes/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
exec "$python" -m recipes.cli.calibrate "$@"
