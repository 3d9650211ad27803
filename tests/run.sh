#!/usr/bin/env bash
# One command for all checks: set-up, ruff, mypy, pytest. Arguments go to pytest, e.g.  bash tests/run.sh tests/unit -k layers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source experiments/setup.sh
BIN=$ROOT/.venv/bin

step() { printf '\n\033[1m[%s]\033[0m\n' "$*"; }

# Each test process gets one core's worth of threads: oversubscribed OpenMP teams are several times slower than none.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=agg

step "ruff check"
"$BIN/ruff" check .
step "ruff format"
"$BIN/ruff" format --check .
step "mypy"
"$BIN/mypy"
step "pytest"
# 20 minutes is the promise for two cores; a suite that hangs ends as an error, not as silence.
timeout --kill-after=30 1200 "$BIN/python" -m pytest --durations=15 "$@" || {
  code=$?
  [ $code -ne 124 ] || echo "pytest ran past its 20 minutes" >&2
  exit $code
}
