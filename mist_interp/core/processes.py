"""Who stops the workers when the process that started them is killed?

They do. A daemon process ends with a parent that exits, but nobody tells it of one that was killed: it would go on
running episodes beside the command that resumes the run.
"""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Have this worker process end at once when its parent is gone, however that came; call it first in a worker."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)  # what is being written may be cut, as by any kill; readers allow for that
