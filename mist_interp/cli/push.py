"""`mist push`: how do others get the rollouts?"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from mist_interp.data.remote import Upload


@dataclass(frozen=True)
class Command:
    """Publish recorded rollouts as a data set on the Hugging Face Hub.

    The token comes from HF_TOKEN or from `hf auth login`. The same command finishes an interrupted push; episodes that
    are only there stay there, so several machines may push to one data set. Episodes are packed into large files, and
    a set that grew sends only what is new. Examples:

    mist push data/mini me/mini-rollouts

    mist push data/mini me/mini-rollouts --private --revision all-layers
    """

    folder: tyro.conf.Positional[Path]
    """Folder of recorded rollouts."""

    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """Data set to publish to; made when it does not exist."""

    private: bool = False
    """Only you see the data set (refused when it exists and is public); default for a new one: as in your account."""

    revision: str = "main"
    """Branch to publish to; made when it does not exist."""

    message: str | None = None
    """Title of the commit."""

    replace: bool = False
    """Publish episodes that are there with other content, and our audit in place of one that asked differently; the
    history keeps the old ones."""

    videos: bool = False
    """Publish the films of the episodes as well."""

    def run(self) -> int:
        """Publish, and print the address."""
        from mist_interp.data.hub import push_dataset

        url = push_dataset(
            self.folder,
            self.repo,
            private=self.private or None,
            revision=self.revision,
            message=self.message,
            replace=self.replace,
            videos=self.videos,
            on_progress=_show,
        )
        print(url)
        return 0


def _show(upload: Upload) -> None:
    texts = {
        "compare": "looking at what is there",
        "upload": f"{upload.done}/{upload.total} files",
        "retry": upload.note,
        "done": "all there" if upload.total == 0 else f"{upload.total} files published",
    }
    print(texts[upload.stage], file=sys.stderr, flush=True)
