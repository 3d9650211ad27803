"""How is the package used from a terminal?

`mist COMMAND --help` teaches a command. A command is a module of this folder with a frozen dataclass `Command`
whose fields are its options (name, default and doc string are the help text) and whose `run()` does the work
and returns an exit code. It is imported only when it is called, so `mist --help` is instant. To add one: write
the module, name it in `COMMANDS`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from mist_interp.core.errors import suggest

COMMANDS = {
    "check": "verify attention regime, token layout and read-out of a policy on this machine",
    "describe": "list the named activations of a policy, with shapes and meanings",
    "collect": "run a policy in LIBERO and store episodes with activations, resumably",
    "label": "count the per-dimension risk labels of recorded rollouts, or explain one with a picture",
    "compact": "write recorded rollouts into few large files, readable as before",
    "push": "publish recorded rollouts as a data set on the Hugging Face Hub",
    "eval": "run a policy under several interventions on the same LIBERO episodes, resumably",
    "compare": "compare arms of one or several results folders on the units that they share",
    "recompute": "check every number of a results folder against its episodes",
    "report": "write report.html for a results folder",
}
"""Command -> what it does; the module `mist_interp.cli.<command>` has the rest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 not understood, 130 interrupted."""
    try:
        return _run(arguments)
    except BrokenPipeError:  # whoever read the output has seen enough: `mist eval --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0 if given else 2
    if given[0] in ("-V", "--version"):
        from mist_interp.core.provenance import provenance

        print(provenance().get("mist_interp", "not installed"))
        return 0
    name, *rest = given
    if name not in COMMANDS:
        hint = suggest(name, COMMANDS)
        print(f"mist: unknown command {name!r}. {hint}\n\n{_overview()}", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    import tyro

    command = tyro.cli(import_module(f"{__name__}.{name.replace('-', '_')}").Command, prog=f"mist {name}", args=rest)
    try:
        code: int = command.run()
        return code
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        print(f"mist {name}: {error}", file=sys.stderr)
        return 1


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "usage: mist COMMAND [options]\n\n" + "\n".join(lines) + "\n\nmist COMMAND --help explains a command."
