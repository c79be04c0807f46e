#!/usr/bin/env bash
# Checks the installation and the machine: sets the virtual environment up if needed, then python launch.py --doctor "$@".
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" --doctor "$@"
