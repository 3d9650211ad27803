"""How does something that is saved into a folder get to the Hub, and back?

A class with `save(folder)` and `load(folder)` gets `push_to_hub` and `from_pretrained`: one artefact per repository,
with a card that says how it was made. An artefact that is there is replaced by a new commit, so every earlier one stays
readable under its revision; a repository that holds anything else is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from mist_interp.data.cards import artefact_card
from mist_interp.data.remote import (
    MAIN,
    HubError,
    OnProgress,
    Repository,
    Upload,
    is_repository_name,
    patiently,
    refuse_foreign,
)

CARD = "README.md"


class OnHub:
    """Adds `push_to_hub` and `from_pretrained` to a class that has `save` and `load`."""

    hub_files: ClassVar[tuple[str, ...]]
    """What `save` writes."""

    hub_files_more: ClassVar[tuple[str, ...]] = ()
    """What it writes beside them for some objects."""

    def save(self, folder: str | Path) -> None:
        """Write `hub_files` into a folder, and which of `hub_files_more` it needs."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Inverse of `save`."""
        raise NotImplementedError

    def hub_facts(self) -> Mapping[str, Any]:
        """How it was made, for the card."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str = MAIN,
        message: str | None = None,
        on_progress: OnProgress = lambda upload: None,
    ) -> str:
        """Publish it in a model repository of its own on the Hugging Face Hub.

        Args:
            repo_id: `user/name`; made when it does not exist.
            private: visibility of a new repository; None is the default of the account.
            token: None takes it from `HF_TOKEN` or `hf auth login`.
            revision: branch to publish to; made when it does not exist.
            message: title of the commit.
            on_progress: is told where the push stands.

        Returns:
            Address of the repository.

        Raises:
            ValueError: the name is not `user/name`.
            HubError: no token, no access, the repository holds other things, or the Hub stays busy.
        """
        repository = Repository(repo_id, "model", revision, token)
        with tempfile.TemporaryDirectory() as scratch:
            self.save(scratch)
            patiently(lambda: repository.ensure(private), on_progress)
            title = message or f"Add a {type(self).__name__}"
            patiently(lambda: self._push(Path(scratch), repository, title, on_progress), on_progress)
        return repository.url()

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None, token: str | None = None) -> Self:
        """Read one from a folder, or from the Hub.

        Args:
            source: a folder, or `user/name` of a repository; a folder of that name wins.
            revision: branch, tag or commit of the repository.
            token: None takes it from `HF_TOKEN` or `hf auth login`; only private repositories need one.

        Raises:
            FileNotFoundError: `source` is neither, or there is none of this class in the folder.
            ValueError: a revision was given for a folder, or an unknown format.
            HubError: there is no such repository, it is private, or it holds none of this class.
        """
        if Path(source).is_dir():
            if revision is not None:
                raise ValueError(f"{source} is a folder, which has no revision {revision!r}")
            return cls.load(source)
        name = str(source)
        if not is_repository_name(name):
            raise FileNotFoundError(f"{name!r} is neither a folder nor a repository name like 'user/name'")
        folder = Repository(name, "model", revision or MAIN, token).download(only=(*cls.hub_files, *cls.hub_files_more))
        missing = [file for file in cls.hub_files if not (folder / file).is_file()]
        if missing:
            raise HubError(f"{name} holds no {cls.__name__}: {', '.join(missing)} is missing")
        return cls.load(folder)

    def _push(self, folder: Path, repository: Repository, message: str, on_progress: OnProgress) -> None:
        head = repository.head()
        there = repository.files(head)
        refuse_foreign(there, (*self.hub_files, *self.hub_files_more), repository.name)
        existing = (repository.download(head, [CARD]) / CARD).read_text() if CARD in there else ""
        card = artefact_card(repository.name, type(self).__name__, repr(self), self.hub_facts(), existing)
        (folder / CARD).write_text(card)
        more = [name for name in self.hub_files_more if (folder / name).is_file()]
        gone = [name for name in self.hub_files_more if name in there and name not in more]
        files = {name: folder / name for name in (*self.hub_files, *more, CARD)}
        files = {name: path for name, path in files.items() if name not in there or not there[name].equals(path)}
        on_progress(Upload("upload", 0, len(files)))
        repository.upload(files, head, message, gone=gone)
        on_progress(Upload("done", len(files), len(files)))
