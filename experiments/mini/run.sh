#!/usr/bin/env bash
# The small policy from nothing, one command. Every stage goes on where it was cut; finished stages are skipped.
#   bash experiments/mini/run.sh                  all stages, in this order
#   bash experiments/mini/run.sh evaluate         only these: demonstrations train dagger continue expert evaluate ship
#                                                 base base-dagger base-continue base-evaluate base-ship
#
#   RUN=runs/mini           folder of demonstrations, policies and results
#   PROCESSES=2             processes of each stage
#   EPISODES=42             demonstrations of the expert per task
#   DAGGER_EPISODES=7       episodes per task that the policy drives and the expert labels
#   MINUTES=20              training before DAgger
#   ALL_MINUTES=60          training in all
#   BASE_MINUTES=14 BASE_DAGGER_EPISODES=2 BASE_ALL_MINUTES=98     the same of the policy that speaks in tokens
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source experiments/setup.sh
RUN=${RUN:-runs/mini} PROCESSES=${PROCESSES:-2} EPISODES=${EPISODES:-42} DAGGER_EPISODES=${DAGGER_EPISODES:-7}
MINUTES=${MINUTES:-20} ALL_MINUTES=${ALL_MINUTES:-60}
SCRIPTS=experiments/mini
BASE_MINUTES=${BASE_MINUTES:-14} BASE_DAGGER_EPISODES=${BASE_DAGGER_EPISODES:-2}
BASE_ALL_MINUTES=${BASE_ALL_MINUTES:-98}
STAGES=(demonstrations train dagger continue expert evaluate)
BASE_STAGES=(base base-dagger base-continue base-evaluate)
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

demonstrations() {
  in_shards "$VENV_PYTHON" $SCRIPTS/demonstrations.py --out "$RUN/demos" --episodes "$EPISODES"
}

train() {
  "$VENV_PYTHON" $SCRIPTS/train.py --demos "$RUN/demos" --out "$RUN/policy" --minutes "$MINUTES" --workers "$PROCESSES"
  # DAgger must be driven by one policy, also when it is cut and continued; training goes on in the other folder.
  rm -rf "$RUN/first" && cp -r "$RUN/policy/checkpoint" "$RUN/first"
}

dagger() {
  in_shards "$VENV_PYTHON" $SCRIPTS/demonstrations.py --out "$RUN/dagger" --episodes "$DAGGER_EPISODES" --first-seed 20000 \
    --policy "$RUN/first"
}

continue_training() {
  "$VENV_PYTHON" $SCRIPTS/train.py --demos "$RUN/demos" "$RUN/dagger" --out "$RUN/policy" --minutes "$ALL_MINUTES" \
    --workers "$PROCESSES"
}

expert() {
  in_shards "$VENV_PYTHON" $SCRIPTS/expert_table.py --out "$RUN/results/expert"
}

evaluate() {
  "$VENV_PYTHON" $SCRIPTS/training_table.py --demos "$RUN/demos" "$RUN/dagger" --policy "$RUN/policy"
  "$VENV_PYTHON" $SCRIPTS/evaluate.py --model "$RUN/policy/checkpoint" --out "$RUN/results" --workers "$PROCESSES"
}

# The second policy, in the manner of base OpenVLA, learns from the same demonstrations and starts from mini's weights.
base() {
  "$VENV_PYTHON" $SCRIPTS/train_base.py --demos "$RUN/demos" "$RUN/dagger" --out "$RUN/base" --minutes "$BASE_MINUTES" \
    --start "$RUN/policy/checkpoint" --workers "$PROCESSES"
  rm -rf "$RUN/base-first" && cp -r "$RUN/base/checkpoint" "$RUN/base-first"
}

base_dagger() {
  in_shards "$VENV_PYTHON" $SCRIPTS/demonstrations.py --out "$RUN/base-dagger" --episodes "$BASE_DAGGER_EPISODES" --first-seed 30000 \
    --policy "$RUN/base-first" --every 2
}

base_continue() {
  "$VENV_PYTHON" $SCRIPTS/train_base.py --demos "$RUN/demos" "$RUN/dagger" "$RUN/base-dagger" --out "$RUN/base" \
    --minutes "$BASE_ALL_MINUTES" --spread 0.06 --workers "$PROCESSES"
}

base_evaluate() {
  "$VENV_PYTHON" $SCRIPTS/training_table.py --demos "$RUN/demos" "$RUN/dagger" "$RUN/base-dagger" --policy "$RUN/base"
  "$VENV_PYTHON" $SCRIPTS/evaluate.py --model "$RUN/base/checkpoint" --out "$RUN/results/base" --profiles fast \
    --no-controls --inits 0 1 2 --workers "$PROCESSES"
}

# Not part of the default: replaces the policy that the package ships by this one. Its card must then be filled anew.
ship() {
  rm -f mist_interp/models/mini/*.{json,safetensors,pt}
  cp "$RUN"/policy/checkpoint/*.{json,safetensors,pt} mist_interp/models/mini/
}

base_ship() {
  rm -f mist_interp/models/mini_base/*.{json,safetensors}
  cp "$RUN"/base/checkpoint/*.{json,safetensors} mist_interp/models/mini_base/
}

mkdir -p "$RUN"
[ $# -gt 0 ] || set -- "${STAGES[@]}" "${BASE_STAGES[@]}"
for stage in "$@"; do
  case $stage in
    demonstrations | train | dagger | expert | evaluate | ship | base) command=$stage ;;
    base-dagger | base-continue | base-evaluate | base-ship) command=${stage/-/_} ;;
    continue) command=continue_training ;;
    *) _stop "unknown stage '$stage'; possible: ${STAGES[*]} ship ${BASE_STAGES[*]} base-ship" ;;
  esac
  if [ -e "$RUN/.$stage-done" ]; then
    _say "$stage: done before (remove $RUN/.$stage-done to run it again)"
    continue
  fi
  _say "$stage"
  $command
  [[ $stage == *ship ]] || touch "$RUN/.$stage-done"
done
