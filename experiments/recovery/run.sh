#!/usr/bin/env bash
# Does steering help? The study of interventions on mini, one command. Every stage goes on where it was cut.
#   bash experiments/recovery/run.sh              all stages, in this order
#   bash experiments/recovery/run.sh main         only these: advise fit tutor arms ablations main report
#
#   RUN=runs/study          folder of the rollouts (experiments/study/run.sh collect makes them)
#   OUT=results/recovery    folder of the fit, the tables and the reports
#   PROCESSES=2             processes of each stage
#   INITS=25-44             start states of the main table; 0-12 are fitted on, 13-19 calibrate, 20-24 choose
#   DISTURBED="none push0.4"     conditions of the main table
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source experiments/setup.sh
RUN=${RUN:-runs/study} OUT=${OUT:-results/recovery} PROCESSES=${PROCESSES:-2} INITS=${INITS:-25-44}
DISTURBED=${DISTURBED:-none push0.4}
STAGES=(advise fit tutor arms ablations main report)
MIST="$(dirname "$VENV_PYTHON")/mist"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

in_shards() {
  local pids=() shard
  for ((shard = 0; shard < PROCESSES; shard++)); do
    "$@" --shard "$shard/$PROCESSES" &
    pids+=($!)
  done
  for shard in "${pids[@]}"; do wait "$shard"; done
}

recovery() { "$VENV_PYTHON" "experiments/recovery/$1.py" "${@:2}"; }

advise() { in_shards "$VENV_PYTHON" experiments/recovery/advise.py --rollouts "$RUN/mini" --out "$RUN"; }

fit() { recovery fit --rollouts "$RUN/mini" --advice "$RUN/advice" --out "$OUT/first"; }

# The expert beside the edited policy (one round of DAgger), then the fit that counts.
tutor() {
  in_shards "$VENV_PYTHON" experiments/recovery/tutor.py --fit "$OUT/first" --out "$RUN/tutored"
  recovery fit --rollouts "$RUN/mini" --advice "$RUN/advice" --tutored "$RUN/tutored" --out "$OUT/fit"
}

arms() { recovery arms --rollouts "$RUN/mini" --fit "$OUT/fit" --run "$OUT/main"; }

evaluated() { # name of the list and of the results folder, start states, conditions
  in_shards "$MIST" eval --out "$OUT/$1" --inits "$2" --perturbations ${*:3} --arms "$OUT/fit/$1.yaml" \
    --detector "$OUT/fit/gate.yaml" --videos none --no-report
}

ablations() { evaluated ablations 20-24 push0.4; }

main() { evaluated main "$INITS" $DISTURBED; }

report() {
  "$MIST" eval --out "$OUT/main" --inits "$INITS" --perturbations $DISTURBED --arms "$OUT/fit/main.yaml" \
    --detector "$OUT/fit/gate.yaml" --videos sample
  recovery tables --run "$OUT/main" --out "$OUT"
}

mkdir -p "$RUN" "$OUT"
for stage in "${@:-${STAGES[@]}}"; do
  case $stage in
    advise | fit | tutor | arms | ablations | main | report) ;;
    *) _stop "unknown stage '$stage'; possible: ${STAGES[*]}" ;;
  esac
  _say "$stage"
  $stage
done
