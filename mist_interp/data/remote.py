"""How are files published on the Hugging Face Hub, and what is said when that fails?

A thin layer over `huggingface_hub`: one repository at one revision, its content by checksum, uploads in batches of
whole commits, and every failure as one sentence that says what to do. `huggingface_hub` is imported on first use. The
token comes from `HF_TOKEN`, from `hf auth login`, or from the caller; it is part of no message and of no `repr`, and
the errors of the client library, which hold the request, are not chained to ours.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mist_interp.core.errors import listing

MAIN = "main"
# A commit of more files than this is slow on the server, and less is lost when it fails.
BATCH_FILES = 256
BATCH_BYTES = 2 * 2**30
# Seconds between attempts when the Hub is busy or somebody else has just committed.
PAUSES = (1.0, 5.0, 20.0)
PASSING = (408, 412, 429, 500, 502, 503, 504)
NO_TOKEN = (
    "no Hugging Face token was found. Set the environment variable HF_TOKEN, or run `hf auth login`; the token needs "
    "write access to publish"
)

Result = TypeVar("Result")


class HubError(RuntimeError):
    """The Hub could not do what was asked; the message says why and what to do.

    Attributes:
        passing: the same call may succeed later.
    """

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Upload:
    """Where a push stands.

    Attributes:
        stage: `compare` (with what is there), `upload`, `retry` (the Hub is busy), `done`.
        done: files of this push that are published.
        total: files that this push has to publish.
        note: for `retry`, why.
    """

    stage: str
    done: int = 0
    total: int = 0
    note: str = ""


OnProgress = Callable[[Upload], None]


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
        size: in bytes.
        digest: SHA-256 of the content of a large file, else the git object name of a small one.
        large: which of the two `digest` is.
    """

    size: int
    digest: str
    large: bool

    def equals(self, path: Path) -> bool:
        """Whether a local file has the same content."""
        if path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if self.large else hashlib.sha1(b"blob %d\0" % self.size)
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest() == self.digest


@dataclass(frozen=True)
class Repository:
    """One repository at one revision.

    Attributes:
        name: `user/name`.
        kind: `dataset` or `model`.
        revision: branch, tag or commit.
        token: None takes it from the usual places.
    """

    name: str
    kind: str
    revision: str = MAIN
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not is_repository_name(self.name):
            raise ValueError(f"{self.name!r} is no repository name: it must be like 'user/name'")

    # -- reading

    def head(self) -> str:
        """The commit that the revision names now."""
        with self._explained():
            info = self._api().repo_info(self.name, repo_type=self.kind, revision=self.revision)
            return str(info.sha)

    def files(self, commit: str) -> dict[str, RemoteFile]:
        """What a commit contains, by path."""
        with self._explained():
            tree = self._api().list_repo_tree(self.name, repo_type=self.kind, revision=commit, recursive=True)
            entries = [entry for entry in tree if hasattr(entry, "blob_id")]
        return {
            entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id, bool(entry.lfs))
            for entry in entries
        }

    def download(self, commit: str | None = None, only: Sequence[str] | None = None) -> Path:
        """Fetch files into the local cache of the Hub and return the folder; what is cached is not fetched again."""
        with self._explained():
            revision = commit or self.revision
            return Path(
                self._api().snapshot_download(
                    self.name, repo_type=self.kind, revision=revision, allow_patterns=None if only is None else [*only]
                )
            )

    # -- writing

    def ensure(self, private: bool | None) -> None:
        """Make the repository and the branch unless they exist.

        Args:
            private: for a new repository; None is the default of the account.

        Raises:
            HubError: there is no token, it has no write access, or the repository exists and is public where a private
                one was asked for (or the other way round).
        """
        self._require_token()
        with self._explained():
            api = self._api()
            api.create_repo(self.name, repo_type=self.kind, private=private, exist_ok=True)
            if private is not None:
                is_private = bool(api.repo_info(self.name, repo_type=self.kind).private)
                if is_private != private:
                    there, asked = ("private", "public") if is_private else ("public", "private")
                    raise HubError(
                        f"{self.name} exists and is {there}, but {asked} was asked for. Nothing was uploaded: change "
                        "it in the settings of the repository, or use another name"
                    )
            if self.revision != MAIN:
                api.create_branch(self.name, repo_type=self.kind, branch=self.revision, exist_ok=True)

    def upload(
        self,
        files: Mapping[str, Path],
        parent: str,
        message: str,
        after: Callable[[int], None] = lambda count: None,
        gone: Sequence[str] = (),
    ) -> str:
        """Commit files in batches, in the given order, on top of `parent`.

        Args:
            files: path in the repository -> local file.
            parent: the commit that the caller has looked at; when another one has come since, nothing is committed.
            message: title of the commits.
            after: is told how many files are in, after each commit.
            gone: files to remove, in the last commit.

        Returns:
            The last commit.
        """
        done = 0
        for batch in batches(files):
            final = done + len(batch) == len(files)
            with staged(batch) as folder, self._explained(), _silent():
                commit = self._api().upload_folder(
                    repo_id=self.name,
                    repo_type=self.kind,
                    folder_path=folder,
                    revision=self.revision,
                    commit_message=message,
                    parent_commit=parent,
                    delete_patterns=[*gone] if final and gone else None,
                )
            parent = commit.oid
            done += len(batch)
            after(done)
        if gone and not files:
            with self._explained():
                commit = self._api().delete_files(
                    self.name,
                    [*gone],
                    repo_type=self.kind,
                    revision=self.revision,
                    commit_message=message,
                    parent_commit=parent,
                )
            parent = commit.oid
        return parent

    def url(self) -> str:
        """Where people see it."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        tail = "" if self.revision == MAIN else f"/tree/{self.revision}"
        return f"{self._api().endpoint}/{prefix}{self.name}{tail}"

    # -- failing

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(token=self.token)

    def _require_token(self) -> None:
        from huggingface_hub import get_token

        if not (self.token or get_token()):
            raise HubError(NO_TOKEN)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        try:
            yield
            return
        except HubError:
            raise
        except HfHubHTTPError as error:
            problem = self._problem(error)
        except HFValidationError as error:
            problem = HubError(f"{self.name!r} is no repository name: {error}")
        except OfflineModeIsEnabled:
            problem = HubError("HF_HUB_OFFLINE is set, so the Hub is not asked; unset it")
        except FileNotFoundError as error:
            if not type(error).__module__.startswith("huggingface_hub"):
                raise
            # The client says this when it can neither reach the Hub nor find a cached copy.
            problem = HubError(f"{self._what()} is not in the cache and the Hub cannot be reached", passing=True)
        except Exception as error:
            if not _is_network(error):
                raise
            problem = HubError(f"the Hub cannot be reached ({type(error).__name__})", passing=True)
        raise problem from None

    def _problem(self, error: Any) -> HubError:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        status = error.response.status_code
        if isinstance(error, RevisionNotFoundError):
            return HubError(f"{self.kind} {self.name} has no revision {self.revision!r}")
        if isinstance(error, GatedRepoError):
            return HubError(f"{self._what()} is gated: ask for access on its page")
        if status == 401 and self._has_token() and not isinstance(error, RepositoryNotFoundError):
            return HubError("the Hub refuses the token: it is wrong or expired. Run `hf auth login`, or renew HF_TOKEN")
        if isinstance(error, RepositoryNotFoundError) or status == 401:
            reason = "your token does not show it" if self._has_token() else NO_TOKEN
            return HubError(f"there is no {self.kind} {self.name}, or it is private: {reason}")
        if status == 403:
            return HubError(f"the token may not write to {self.name}: it needs the role `write` for that namespace")
        if status == 412:
            return HubError(f"somebody else committed to {self.name} at the same time", passing=True)
        said = self._redacted(str(getattr(error, "server_message", "") or ""))
        return HubError(f"the Hub answered {status}{': ' + said if said else ''}", passing=status in PASSING)

    def _what(self) -> str:
        return f"{self.kind} {self.name} at {self.revision!r}"

    def _has_token(self) -> bool:
        from huggingface_hub import get_token

        return bool(self.token or get_token())

    def _redacted(self, text: str) -> str:
        from huggingface_hub import get_token

        for secret in (self.token, get_token()):
            text = text.replace(secret, "***") if secret else text
        return text


def is_repository_name(name: str) -> bool:
    """Whether a text looks like `user/name`."""
    parts = name.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") and "\\" not in part for part in parts)


def patiently(attempt: Callable[[], Result], on_progress: OnProgress) -> Result:
    """Repeat `attempt` while it fails for a passing reason; it must look at the repository anew each time.

    Raises:
        HubError: the last failure, with the advice to repeat the call.
    """
    for pause in PAUSES:
        try:
            return attempt()
        except HubError as error:
            if not error.passing:
                raise
            on_progress(Upload("retry", note=f"{error}; next attempt in {pause:g} s"))
            time.sleep(pause)
    try:
        return attempt()
    except HubError as error:
        if not error.passing:
            raise
        text = f"{error}, {len(PAUSES) + 1} times. What is published stays; the same call goes on from there"
        raise HubError(text, passing=True) from None


def batches(files: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Cut files into commits of bounded number and size, in order."""
    batch: dict[str, Path] = {}
    size = 0
    for name, path in files.items():
        length = path.stat().st_size
        if batch and (len(batch) == BATCH_FILES or size + length > BATCH_BYTES):
            yield batch
            batch, size = {}, 0
        batch[name] = path
        size += length
    if batch:
        yield batch


@contextmanager
def staged(files: Mapping[str, Path]) -> Iterator[Path]:
    """A temporary folder with exactly these files, as links, so that nothing else of a folder is published."""
    folder = Path(tempfile.mkdtemp(prefix="mist-push-"))
    try:
        for name, path in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())
        yield folder
    finally:
        shutil.rmtree(folder)


def refuse_foreign(there: Mapping[str, Any], ours: Sequence[str], name: str) -> None:
    """Refuse a repository with files that are none of ours.

    Raises:
        HubError: there are some; the message lists them.
    """
    foreign = sorted(set(there) - {".gitattributes", "README.md", *ours})
    if foreign:
        raise HubError(f"{name} holds other things ({listing(foreign)}); publish to a repository of its own")


@contextmanager
def _silent() -> Iterator[None]:
    """No progress bars: the caller is told in its own way."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _is_network(error: Exception) -> bool:
    module = type(error).__module__.partition(".")[0]
    return module in ("httpx", "httpx2", "httpcore", "httpcore2", "requests") or isinstance(error, ConnectionError)
