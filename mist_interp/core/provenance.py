"""Which software made this number?

Success rates of one checkpoint differ by tens of points between simulator and attention versions, so every
result row and every stored artefact names them. Versions come from installed metadata: nothing is imported to
answer.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_DISTRIBUTIONS = ("torch", "transformers", "nnsight", "numpy", "mujoco", "robosuite")


def provenance() -> dict[str, str]:
    """Versions of the package and of what it stands on; only what is installed appears.

    Keys: `mist_interp`, `git_commit` (with `-dirty` when tracked files differ), `torch`, `transformers`,
    `nnsight`, `numpy`, `mujoco`, `robosuite`, `libero` (name and version of the distribution that provides the
    `libero` import), `gl_backend` (the `MUJOCO_GL` in force), `python`, `platform`, `cpu`.
    """
    facts = dict(_static_facts())
    backend = os.environ.get("MUJOCO_GL")
    if backend:
        facts["gl_backend"] = backend
    return facts


@functools.cache
def _static_facts() -> tuple[tuple[str, str], ...]:
    facts: dict[str, str] = {}
    for key, distribution in (("mist_interp", "mist-interp"), *((name, name) for name in _DISTRIBUTIONS)):
        version = _version(distribution)
        if version:
            facts[key] = version
    commit = _git_commit(Path(__file__).resolve().parents[2])
    if commit:
        facts["git_commit"] = commit
    libero = _provider("libero")
    if libero:
        facts["libero"] = libero
    facts["python"] = platform.python_version()
    facts["platform"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    facts["cpu"] = _cpu_name()
    return tuple(facts.items())


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _provider(module: str) -> str | None:
    """`name version` of the distributions that install a top-level `module`, several joined by a comma."""
    names = sorted(
        dist.metadata["Name"]
        for dist in metadata.distributions()
        if any(file.parts[:2] in ((module, "__init__.py"), (module, "libero")) for file in dist.files or ())
    )
    return ", ".join(f"{name} {_version(name)}" for name in names) or None


def _git_commit(root: Path) -> str | None:
    """Commit of the checkout that the package is imported from; none for an installed wheel."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit[:12] + ("-dirty" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
