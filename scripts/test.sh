#!/usr/bin/env bash
# Sets the virtual environment up if needed (with the dev extra), then lint, types, import contracts, tests.
# Arguments go to pytest: bash scripts/test.sh -k sampler
# Three workers for two cores, each with whole files: a test waits a good third of its time for processes, so that two
# workers would leave the cores idle at times. -n 0 runs all in one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment dev
bin="$PWD/.venv/bin"
# The tests start hundreds of processes: without its byte code each would compile the packages again.
unset PYTHONDONTWRITEBYTECODE
"$bin/ruff" check .
"$bin/ruff" format --check .
PYTHONPATH=. "$bin/lint-imports"

# mypy runs beside the tests. Its output comes last; either fails the script.
types_output=$(mktemp)
trap 'rm -f "$types_output"' EXIT
"$bin/mypy" >"$types_output" 2>&1 &
types=$! status=0
PATH="$bin:$PATH" "$bin/python" -m pytest --durations=30 --durations-min=5 -n 3 --dist loadfile --no-loadscope-reorder "$@" ||
    status=$?
wait "$types" || status=$?
cat "$types_output"
exit "$status"
