#!/usr/bin/env bash
# Score evaluations again, without decoding: recipes/score.sh EVALUATION... (--help lists the options).
set -euo pipefail

# shellcheck source=recipes/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
exec "$python" -m recipes.cli.score "$@"
