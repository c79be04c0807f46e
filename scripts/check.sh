#!/usr/bin/env bash
# Checks the installation and the machine: sets the virtual environment up if needed, then python launch.py --doctor "$@".
set -euo pipefail
here="$PWD"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
source scripts/environment.sh
prepare_environment ""
cd "$here"
exec "$root/.venv/bin/python" "$root/launch.py" --doctor "$@"
