# Everything that this project needs on a fresh Debian with Python 3.11 or 3.12: virtual environment, torch, package, system GL.
# Sourced (not run) by the scripts; leaves $VENV_PYTHON behind, and what they share. The second call is quick.
#
#   PYTHON=python3.12    which interpreter makes the virtual environment (default: the first of python3.11, python3.12, python3)
#   TORCH=torch==2.13.0  what pip installs as torch (default: that; pip's own settings decide where from)
#   CI=true              build the virtual environment from scratch

_say() { printf '\033[1m[set-up]\033[0m %s\n' "$*" >&2; }
_stop() {
  _say "$@"
  exit 1
}

# PROCESSES copies of a command, each with its share of the work; fails if one of them fails.
in_shards() {
  local pids=() shard
  for ((shard = 0; shard < PROCESSES; shard++)); do
    "$@" --shard "$shard/$PROCESSES" &
    pids+=($!)
  done
  for shard in "${pids[@]}"; do wait "$shard"; done
}

# Install Debian packages as root; anyone else gets the exact command to run.
_apt_install() {
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    _stop "missing system packages. Please run:  sudo apt-get update && sudo apt-get install -y $*"
  fi
  _say "installing system packages: $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1 ||
    { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends "$@" >/dev/null; } ||
    _stop "apt-get could not install: $*"
}

_is_supported() {
  command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null
}

_find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
    if _is_supported "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  _stop "no Python 3.11 or 3.12 found${PYTHON:+ under PYTHON=$PYTHON}. Please run:  sudo apt-get install -y python3 python3-venv"
}

# Debian packages whose libraries are missing: OpenCV (imported by robosuite) loads libGL and glib, MuJoCo renders through OSMesa
# or EGL. A renderer counts only if it makes a picture's worth of context, because libEGL without a driver loads and then fails.
_missing_system_packages() {
  "$1" - <<'PY'
import ctypes, os, subprocess, sys

def loads(*names):
    for name in names:
        try:
            ctypes.CDLL(name)
            return True
        except OSError:
            continue
    return False

def renders(backend):
    code = "import mujoco; c = mujoco.GLContext(8, 8); c.make_current(); c.free()"
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "MUJOCO_GL": backend}, capture_output=True)
    return run.returncode == 0

missing = []
if not loads("libGL.so.1"):
    missing.append("libgl1")
if not loads("libgthread-2.0.so.0"):
    missing.append("libglib2.0-0")
if not (renders("osmesa") or renders("egl")):
    missing.append("libosmesa6")
print(*missing)
PY
}

_build_environment() {
  local python=$1 missing
  if [ -e "$VENV" ]; then
    # With a dead interpreter nothing in it can be reused.
    "$VENV_PYTHON" -c 'import sys' 2>/dev/null && [ "${CI:-}" != true ] || rm -rf "$VENV"
  fi
  if [ ! -e "$VENV" ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      _apt_install "$("$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")')"
    _say "making the virtual environment .venv with $("$python" --version)"
    "$python" -m venv "$VENV" || _stop "could not make $VENV; remove it and try again"
  fi
  local pip=("$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check --use-pep517)
  # torch goes first, in a command of its own: a resolver that sees everything at once may trade this build for another one.
  _say "1/3 installing ${TORCH:=torch==2.13.0} (a few minutes on the first time)"
  "${pip[@]}" "$TORCH" || _stop "pip could not install $TORCH"
  _say "2/3 installing mist-interp with the simulator, data, report and development extras (a few minutes)"
  "${pip[@]}" -e "$ROOT[all,dev]" || _stop "pip could not install the package; the lines above say why"
  _say "3/3 checking the system libraries"
  missing=$(_missing_system_packages "$VENV_PYTHON")
  if [ -n "$missing" ]; then
    # shellcheck disable=SC2086  # one word per package
    _apt_install $missing
    missing=$(_missing_system_packages "$VENV_PYTHON")
    [ -z "$missing" ] || _stop "MuJoCo still cannot render after installing; missing: $missing"
  fi
}

setup_environment() {
  local python version stamp key
  VENV=$ROOT/.venv
  VENV_PYTHON=$VENV/bin/python
  stamp=$VENV/.mist-setup
  python=$(_find_python) || exit 1
  version=$("$python" -c 'import sys; print(sys.version)')
  # The folder is part of the key: a virtual environment that was moved or copied does not work.
  key=$(printf '%s\n' "$version" "$ROOT" "${TORCH:-}" | cat - "$ROOT/pyproject.toml" "$ROOT/experiments/setup.sh" | sha256sum | cut -d' ' -f1)
  if [ "${CI:-}" != true ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
    return
  fi
  local start=$SECONDS
  rm -f "$stamp"
  _build_environment "$python"
  printf '%s\n' "$key" >"$stamp"
  _say "done in $((SECONDS - start)) s; later runs skip this"
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
setup_environment
