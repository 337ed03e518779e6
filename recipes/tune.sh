#!/usr/bin/env bash
# Find a beam and a length penalty on the validation set: recipes/tune.sh CORPUS MODEL (--help lists the options).
set -euo pipefail

# shellcheck source=recipes/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
exec "$python" -m recipes.cli.tune "$@"
