#!/usr/bin/env bash
# Compare what exits cost and give: recipes/exits.sh EVALUATION... (--help lists the options).
set -euo pipefail

# shellcheck source=recipes/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
exec "$python" -m recipes.cli.plot_exits "$@"
