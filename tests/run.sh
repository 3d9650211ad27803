#!/usr/bin/env bash
# One command for all checks: set-up, ruff, mypy, pytest. Arguments go to pytest, e.g.  bash tests/run.sh tests/unit -k layers
# Every check runs even if an earlier one failed; the exit code says whether all passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source experiments/setup.sh
BIN=$ROOT/.venv/bin

# Each test process gets one core's worth of threads: oversubscribed OpenMP teams are several times slower than none.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=agg
FAILED=()

check() {
  local name=$1 start=$SECONDS
  shift
  printf '\n\033[1m[%s]\033[0m\n' "$name"
  "$@" || FAILED+=("$name")
  printf '[%s: %d s]\n' "$name" $((SECONDS - start))
}

check "ruff check" "$BIN/ruff" check .
check "ruff format" "$BIN/ruff" format --check .
check "mypy" "$BIN/mypy"
# Two processes, each with whole files, the long ones of tests/sim first. A suite that hangs ends as an error, not as silence.
check "pytest" timeout --kill-after=30 "${PYTEST_SECONDS:-1500}" "$BIN/python" -m pytest \
  --numprocesses "${PROCESSES:-2}" --dist loadfile --no-loadscope-reorder --durations=15 "$@"

if [ ${#FAILED[@]} -gt 0 ]; then
  printf '\nfailed: %s\n' "$(printf '%s, ' "${FAILED[@]}" | sed 's/, $//')" >&2
  exit 1
fi
