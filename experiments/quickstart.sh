#!/usr/bin/env bash
# From nothing to a report: sets everything up (once), then runs experiments/quickstart.py. Run it again to go on where it stopped.
#   bash experiments/quickstart.sh            about ten minutes on two idle cores, after the set-up
#   bash experiments/quickstart.sh --help     what can be changed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source experiments/setup.sh
exec "$VENV_PYTHON" experiments/quickstart.py "$@"
