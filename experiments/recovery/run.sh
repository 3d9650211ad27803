#!/usr/bin/env bash
# Does steering help? The study of interventions on mini, one command. Every stage goes on where it was cut.
#   bash experiments/recovery/run.sh              stages risk arms ablations main report
#   bash experiments/recovery/run.sh main         only these: risk arms ablations horizons free main report
#                                                 gates confirm pushed sanity twins contrast choice fitted chosen
#                                                 advise deviation tutor learned
#
#   risk       what opens the gate: the risk of a contact, and its alarm
#   ablations  one thing changed at a time, on the start states that choose; horizons: gates that look less or more far
#   free       edits that hold no other dimension, likewise, behind the gate and behind gates that let go
#   gates      the edits behind gates that look at more dimensions, at the time, or act less often
#   main       all arms, on start states that serve nothing else; report: page, tables, figure; pushed: some of them
#              while the robot is being pushed
#   confirm    claims that were written down before, on start states that are drawn for it
#   sanity     two arms whose worth is known: the expert in person, and a hand that is driven into the table
#   twins      every edit in forked twins of drawn start states; choice: a head per edit is fitted on them, which foresees
#              whether it helps; chosen: claims about the choice among the edits, written down before, on fresh states
#   contrast   the direction from twins that end badly to their twins that an edit saved, as an edit of its own
#   fitted     puts the gate, the heads and the list of the choice as they were fitted for the card into OUT, so that
#              chosen runs without all that comes before it
#   advise deviation tutor learned    another gate and aim: what an expert would do otherwise
#
#   RUN=runs/study          folder of the rollouts (experiments/study/run.sh collect makes them)
#   OUT=results/recovery    folder of the fits, the tables and the reports
#   PROCESSES=2             processes of each stage
#   INITS=25-44             start states of the main table; 0-12 are fitted on, 13-19 calibrate, 20-24 choose; from 1000
#                           on they are drawn: 1000-1039 confirm, 3000-3029 twins, 4000-4019 chosen
#   DISTURBED=none          conditions of the main table; all else is judged undisturbed and under push0.4
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source experiments/setup.sh
RUN=${RUN:-runs/study} OUT=${OUT:-results/recovery} PROCESSES=${PROCESSES:-2} INITS=${INITS:-25-44}
DISTURBED=${DISTURBED:-none} BOTH="none push0.4"
STAGES=(risk arms ablations main report)
OTHERS=(horizons free gates confirm pushed sanity twins contrast choice fitted chosen advise deviation tutor learned)
MIST="$(dirname "$VENV_PYTHON")/mist"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

recovery() { "$VENV_PYTHON" "experiments/recovery/$1.py" "${@:2}"; }

evaluated() { # results folder, list of arms, gate, start states, conditions, more options
  in_shards "$MIST" eval --out "$OUT/$1" --arms "$OUT/arms/$2.yaml" --detector "$OUT/$3/gate.yaml" --inits "$4" \
    --perturbations $5 --videos none --no-report "${@:6}"
}

risk() { recovery risk --rollouts "$RUN/mini" --out "$OUT/contact"; }

arms() { recovery arms --rollouts "$RUN/mini" --out "$OUT"; }

ablations() { evaluated ablations ablations contact 20-24 "$BOTH"; }

horizons() {
  local horizon
  for horizon in 0 20; do
    recovery risk --rollouts "$RUN/mini" --out "$OUT/contact-$horizon" --horizon "$horizon"
    evaluated "horizon-$horizon" edit "contact-$horizon" 20-24 "$BOTH"
  done
}

free() {
  local gate
  evaluated free free contact 20-24 "$BOTH"
  for gate in 2-3 4-6; do evaluated "free-$gate" free "gates/retry-$gate" 20-24 "$BOTH"; done
}

gates() {
  local gate
  recovery risk --rollouts "$RUN/mini" --out "$OUT/contact-three" --alarm-on dx dy dz
  recovery risk --rollouts "$RUN/mini" --out "$OUT/contact-joint" --alarm-on dx dy dz --joint max
  recovery risk --rollouts "$RUN/mini" --out "$OUT/contact-time" --over-time
  evaluated gated/contact adapting contact 20-24 "$BOTH"
  for gate in contact-three contact-joint contact-time gates/release gates/once; do
    evaluated "gated/${gate#*/}" gated "$gate" 20-24 "$BOTH"
  done
}

main() { evaluated main main contact "$INITS" "$DISTURBED" --full-horizon; }

report() {
  "$MIST" eval --out "$OUT/main" --arms "$OUT/arms/main.yaml" --detector "$OUT/contact/gate.yaml" --inits "$INITS" \
    --perturbations $DISTURBED --videos sample --full-horizon
  recovery tables --run "$OUT/main" --out "$OUT"
}

pushed() {
  evaluated pushed pushed contact "$INITS" push0.4 --full-horizon
  recovery tables --run "$OUT/pushed" --out "$OUT/pushed-tables" --tested mist mist-free
}

confirm() {
  evaluated confirm confirm contact 1000-1039 none --full-horizon
  recovery tables --run "$OUT/confirm" --out "$OUT/confirm-tables" --tested mist-free mist-strong
  recovery confirm --run "$OUT/confirm" --out "$OUT"
}

sanity() { recovery sanity --gate "$OUT/contact/gate.yaml" --out "$OUT/sanity"; }

twins() { evaluated twins twins contact 3000-3029 none; }

contrast() {
  recovery contrast --run "$OUT/twins" --out "$OUT/contrast"
  evaluated contrasted contrast contact 20-24 "$BOTH"
}

choice() { recovery choice --run "$OUT/twins" --out "$OUT/choice"; }

fitted() {
  [ ! -e "$OUT/contact" ] || _stop "$OUT holds fits of its own, which would be lost: give another OUT"
  cp -r experiments/recovery/fitted/. "$OUT"
  sed -i "s|results/recovery/|$OUT/|" "$OUT/contact/gate.yaml" "$OUT/arms/chosen.yaml"
}

chosen() {
  evaluated chosen chosen contact 4000-4019 none --full-horizon
  recovery tables --run "$OUT/chosen" --out "$OUT/chosen-tables" --tested mist-chosen
  recovery confirm --claims choice --run "$OUT/chosen" --out "$OUT/choice"
}

advise() { in_shards "$VENV_PYTHON" experiments/recovery/advise.py --rollouts "$RUN/mini" --out "$RUN"; }

deviation() {
  recovery deviation --rollouts "$RUN/mini" --advice "$RUN/advice" --out "$OUT/first" --perturbations $BOTH
}

# The expert beside the edited policy (one round of DAgger), then the fit that counts.
tutor() {
  in_shards "$VENV_PYTHON" experiments/recovery/tutor.py --fit "$OUT/first" --out "$RUN/tutored"
  recovery deviation --rollouts "$RUN/mini" --advice "$RUN/advice" --tutored "$RUN/tutored" --out "$OUT/deviation" \
    --perturbations $BOTH
}

learned() {
  evaluated learned learned deviation "$INITS" "$BOTH"
  recovery tables --run "$OUT/learned" --out "$OUT/learned-tables"
}

mkdir -p "$RUN" "$OUT"
for stage in "${@:-${STAGES[@]}}"; do
  [[ $stage =~ ^[a-z]+$ && " ${STAGES[*]} ${OTHERS[*]} " == *" $stage "* ]] ||
    _stop "unknown stage '$stage'; possible: ${STAGES[*]} ${OTHERS[*]}"
  _say "$stage"
  $stage
done
