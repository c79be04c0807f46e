#!/usr/bin/env bash
# Sets the virtual environment up if needed, then plans and trains: python launch.py --auto "$@".
# Paths in "$@" are relative to the folder it is called from.
set -euo pipefail
here="$PWD"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
source scripts/environment.sh
prepare_environment ""
cd "$here"
exec "$root/.venv/bin/python" "$root/launch.py" --auto "$@"
