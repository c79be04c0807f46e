#!/usr/bin/env bash
# Sets the virtual environment up if needed (with the dev extra), then lint, types, import contracts, tests.
# Arguments go to pytest: bash scripts/test.sh -k sampler
# Two workers, each with whole files: a test waits half its time for processes. -n 0 runs all in one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment dev
bin="$PWD/.venv/bin"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
PYTHONPATH=. "$bin/lint-imports"
PATH="$bin:$PATH" exec "$bin/python" -m pytest --durations=30 --durations-min=5 -n 2 --dist loadfile --no-loadscope-reorder "$@"
