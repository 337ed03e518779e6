#!/usr/bin/env bash
# Compare systems by paired tests: recipes/compare.sh RUN RUN... (--help lists the options).
set -euo pipefail

# shellcheck source=recipes/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
exec "$python" -m recipes.cli.compare "$@"
