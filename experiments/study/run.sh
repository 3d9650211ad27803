#!/usr/bin/env bash
# The study of what is about to go wrong, one command. Every stage goes on where it was cut; finished ones are skipped.
#   bash experiments/study/run.sh                 all stages, in this order
#   bash experiments/study/run.sh risk            only these: collect base audit actions failures risk policies transfer report
#
#   RUN=runs/study          folder of the rollouts, and of what their audit finds
#   OUT=results/study       folder of tables and figures
#   PROCESSES=2             processes of each stage
#   INITS=0-24              start states of mini's rollouts; the others stay free for the evaluation of interventions
#   BASE_INITS=0-1          start states of mini-base's rollouts
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source experiments/setup.sh
RUN=${RUN:-runs/study} OUT=${OUT:-results/study} PROCESSES=${PROCESSES:-2} INITS=${INITS:-0-24} BASE_INITS=${BASE_INITS:-0-1}
STAGES=(collect base audit actions failures risk policies transfer report)
MIST="$(dirname "$VENV_PYTHON")/mist"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

# mini alone collides along dz almost only: three kinds of disturbance make the other dimensions collide as well.
collect() {
  "$MIST" collect --out "$RUN/mini" --inits "$INITS" --perturbations none noise0.3 push1 bias0.15 \
    --sites resid_pre:0 resid_post mlp_out attn_out --tokens action_read vision text proprio --workers "$PROCESSES"
}

base() {
  "$MIST" collect --out "$RUN/mini-base" --model mini-base --inits "$BASE_INITS" --perturbations none noise0.3 \
    --sites resid_post --tokens action_read vision --workers "$PROCESSES"
}

audit() {
  in_shards "$VENV_PYTHON" experiments/labels/audit.py --rollouts "$RUN/mini" --out "$OUT" --episodes 100000 --subsets 6
}

actions() { "$VENV_PYTHON" experiments/study/actions.py --rollouts "$RUN/mini" --out "$OUT"; }

failures() { "$VENV_PYTHON" experiments/study/failures.py --rollouts "$RUN/mini" --out "$OUT"; }

risk() { "$VENV_PYTHON" experiments/study/risk.py --rollouts "$RUN/mini" --audit --out "$OUT"; }

policies() { "$VENV_PYTHON" experiments/study/policies.py --rollouts "$RUN/mini" "$RUN/mini-base" --out "$OUT"; }

transfer() { "$VENV_PYTHON" experiments/study/transfer.py --rollouts "$RUN/mini" "$RUN/mini-base" --out "$OUT"; }

report() { "$VENV_PYTHON" experiments/study/report.py --results "$OUT"; }

mkdir -p "$RUN" "$OUT"
for stage in "${@:-${STAGES[@]}}"; do
  case $stage in
    collect | base | audit | actions | failures | risk | policies | transfer | report) ;;
    *) _stop "unknown stage '$stage'; possible: ${STAGES[*]}" ;;
  esac
  _say "$stage"
  $stage
done
