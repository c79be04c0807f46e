#!/usr/bin/env bash
# The checks and measurements for a GPU that is there for a quarter of an hour, in two parts of ten minutes each:
#   bash scripts/gpu_session.sh 1|2 [OUT] [--rehearse]
# Installs nothing and needs no network: docs/gpu.md says what to bring. Another Python: PYTHON=/path/to/python3
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x "$root/.venv/bin/python" ]; then python="$root/.venv/bin/python"; fi
exec "$python" "$root/scripts/gpu_session/session.py" "$@"
