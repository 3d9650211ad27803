"""How are rollouts shared, and how does a push meet what is already there?

A store is published as it lies on the disk, one Parquet file per episode and table, with a card. A push

    looks at the repository, uploads what is missing there, the episodes table last,
    keeps every episode that is only there (two machines may push to one repository),
    refuses when the settings differ, or when an episode is there with other content (`replace=True` publishes ours;
    the history of the repository keeps theirs),

and starts over from the first step when the Hub was busy or somebody else committed in between. So an interrupted push
is finished by the same call, and nothing that was published is ever lost.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace as changed
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from mist_interp.core.errors import listing
from mist_interp.data.cards import rollout_card
from mist_interp.data.remote import (
    MAIN,
    HubError,
    OnProgress,
    RemoteFile,
    Repository,
    Upload,
    is_repository_name,
    patiently,
)
from mist_interp.data.store import Manifest, RolloutStore, differences

CARD, MANIFEST = "README.md", "manifest.json"
# The Hub takes at most 10,000 files in one folder.
MOST_EPISODES = 10_000


def push_dataset(
    folder: str | Path | RolloutStore,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str = MAIN,
    message: str | None = None,
    replace: bool = False,
    on_progress: OnProgress = lambda upload: None,
) -> str:
    """Publish rollouts as a data set on the Hugging Face Hub; the same call finishes an interrupted one.

    Args:
        folder: of a rollout store, or the store; a view (`only`) publishes its episodes.
        repo_id: `user/name`; made when it does not exist.
        private: visibility of a new repository; None is the default of the account. An existing repository must agree.
        token: None takes it from `HF_TOKEN` or `hf auth login`.
        revision: branch to publish to; made when it does not exist.
        message: title of the commits.
        replace: publish our content of episodes that are there with other content.
        on_progress: is told where the push stands.

    Returns:
        Address of the data set.

    Raises:
        FileNotFoundError: there is no store in the folder, or a file of an episode is missing.
        ValueError: there is no episode, the name is not `user/name`, or rollouts with other settings are there.
        HubError: no token, no access, other content is there, or the Hub stays busy; the message says what to do.
    """
    store = folder if isinstance(folder, RolloutStore) else RolloutStore.open(folder)
    repository = Repository(repo_id, "dataset", revision, token)
    files = store_files(store)
    if not files:
        raise ValueError(f"no finished episode in {store.folder}")
    patiently(lambda: repository.ensure(private), on_progress)
    title = message or f"Add rollouts: {len(store)} episodes"
    patiently(lambda: _push(store, files, repository, title, replace, on_progress), on_progress)
    return repository.url()


def load_rollouts(source: str | Path, *, revision: str | None = None, token: str | None = None) -> RolloutStore:
    """Open rollouts from a folder, or from the Hub.

    Args:
        source: a folder, or `user/name` of a data set; a folder of that name wins.
        revision: branch, tag or commit of the data set.
        token: None takes it from `HF_TOKEN` or `hf auth login`; only private data sets need one.

    Returns:
        The store. One from the Hub lies in the Hub's cache: read it, and collect into a folder of your own.

    Raises:
        FileNotFoundError: there is no store in the folder, and `source` is no repository name.
        ValueError: a revision was given for a folder, or an unknown layout.
        HubError: there is no such data set, it is private, it holds no rollouts, or a file is missing.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"{source} is a folder, which has no revision {revision!r}")
        return RolloutStore.open(source)
    name = str(source)
    if not is_repository_name(name):
        raise FileNotFoundError(f"{name!r} is neither a folder nor a data set name like 'user/name'")
    folder = Repository(name, "dataset", revision or MAIN, token).download()
    if not (folder / MANIFEST).is_file():
        raise HubError(f"data set {name} holds no rollouts: manifest.json is missing")
    store = RolloutStore.open(folder)
    try:
        store_files(store)
    except FileNotFoundError as error:
        raise HubError(f"data set {name} is not whole; its owner must push again: {error}") from None
    return store


def store_files(store: RolloutStore) -> dict[str, Path]:
    """All files of the finished episodes, path in the store -> file; those that make an episode exist come last.

    Raises:
        FileNotFoundError: a file of an episode is missing.
    """
    names = [name for kind in _kinds(store.manifest) for name in _names(kind, store.keys)]
    files = {name: store.folder / name for name in names}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{store.folder} lacks {listing(missing)}")
    return files


def _kinds(manifest: Manifest) -> list[str]:
    return [*(f"activations/{group.name}" for group in manifest.groups), "queries", "episodes"]


def _names(kind: str, keys: Iterable[str]) -> list[str]:
    return [f"{kind}/{key}.parquet" for key in keys]


def _push(
    store: RolloutStore,
    files: Mapping[str, Path],
    repository: Repository,
    message: str,
    replace: bool,
    on_progress: OnProgress,
) -> None:
    on_progress(Upload("compare", total=len(files)))
    head = repository.head()
    there = repository.files(head)
    published = [Path(name).stem for name in there if name.startswith("episodes/") and name.endswith(".parquet")]
    _check_settings(store.manifest, repository, head, there)
    if len({*published, *store.keys}) > MOST_EPISODES:
        raise HubError(f"{repository.name} would hold more than {MOST_EPISODES} episodes, the Hub's limit for a folder")
    todo = {name: path for name, path in files.items() if name not in there or not there[name].equals(path)}
    _check_episodes([name for name in todo if name in there], set(published) & set(store.keys), repository, replace)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        (made / CARD).write_text(_card(store, repository, head, there, published))
        (made / MANIFEST).write_text(store.manifest.to_json())
        for name in (MANIFEST, CARD):
            if name not in there or not there[name].equals(made / name):
                todo[name] = made / name
        ordered = dict(sorted(todo.items(), key=lambda item: _rank(item[0])))
        on_progress(Upload("upload", 0, len(ordered)))
        repository.upload(ordered, head, message, lambda done: on_progress(Upload("upload", done, len(ordered))))
    on_progress(Upload("done", len(ordered), len(ordered)))


def _rank(name: str) -> int:
    """An episode's other tables first, then what makes it exist, then what counts it."""
    return {"manifest.json": 0, "activations": 1, "queries": 1, "episodes": 2}.get(name.split("/")[0], 3)


def _check_settings(manifest: Manifest, repository: Repository, head: str, there: Mapping[str, RemoteFile]) -> None:
    if MANIFEST not in there:
        return
    published = Manifest.from_json((repository.download(head, [MANIFEST]) / MANIFEST).read_text())
    found = differences(json.loads(published.to_json()), json.loads(manifest.to_json()))
    if found:
        raise ValueError(
            f"{repository.name} holds rollouts with other settings: {'; '.join(found)}. "
            "Nothing was uploaded: push to another repository or revision"
        )


def _check_episodes(changing: Iterable[str], both: set[str], repository: Repository, replace: bool) -> None:
    differing = sorted({Path(name).stem for name in changing} & both)
    if differing and not replace:
        raise HubError(
            f"{len(differing)} of the {len(both)} episodes that are here and in {repository.name} differ: "
            f"{listing(differing)}. Nothing was uploaded: push with replace=True to publish yours (the history keeps "
            "theirs), or to another repository or revision"
        )


def _card(
    store: RolloutStore, repository: Repository, head: str, there: Mapping[str, RemoteFile], published: list[str]
) -> str:
    """The card of the episodes here and there."""
    frames = [store.episodes()]
    only_there = sorted(set(published) - set(store.keys))
    wanted = [*_names("episodes", only_there), *([CARD] if CARD in there else [])]
    existing = ""
    if wanted:
        folder = repository.download(head, wanted)
        existing = (folder / CARD).read_text() if CARD in there else ""
        if only_there:
            frames.append(changed(store, folder=folder, kept=tuple(only_there)).episodes())
    episodes = pd.concat(frames, ignore_index=True)
    first = store.keys[0]
    schemas = {kind: pq.read_schema(store.folder / kind / f"{first}.parquet") for kind in ("episodes", "queries")}
    return rollout_card(repository.name, store.manifest, episodes, schemas, existing)
