#!/usr/bin/env bash
# Write one HTML page about systems: recipes/report.sh RUN... (--help lists the options).
set -euo pipefail

# shellcheck source=recipes/environment.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh"
exec "$python" -m recipes.cli.report "$@"
