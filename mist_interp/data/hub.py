"""How are rollouts shared, and how does a push meet what is already there?

Published episodes share large files, the packs of `mist_interp.data.packs`, because the Hub takes few large files
better than many small ones. A push

    looks at the repository and packs the episodes that are missing there, the index that makes them exist last,
    keeps every episode that is only there (two machines may push to one repository),
    refuses when the settings differ, or when an episode is there with other content (`replace=True` publishes ours:
    its pack is written anew; the history of the repository keeps theirs),
    removes packs that the index does not name: of replaced episodes, or of an interrupted push of other ones,
    joins what a knockout audit found here and there (of the same event ours counts), and refuses when the two audits
    asked differently (`replace=True` publishes ours, and drops theirs),

and starts over from the first step when the Hub was busy or somebody else committed in between. Episodes are compared
by the digests of their content, and a pack's name says what it holds. So the same call finishes an interrupted push and
sends no file twice, and nothing that was published is ever lost.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path, PurePath

import pandas as pd

from mist_interp.core.errors import listing
from mist_interp.data.cards import rollout_card
from mist_interp.data.compaction import PACK_BYTES, contents, plan_packs, schemas, write_pack
from mist_interp.data.findings import AUDIT, Row, asked_otherwise, findings_text, read_findings, sorted_findings
from mist_interp.data.manifest import Manifest, differences
from mist_interp.data.packs import INDEX, PACK_NAME, Pack, Packed, Packs, single_keys
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
from mist_interp.data.store import RolloutStore

CARD, MANIFEST = "README.md", "manifest.json"
TABLES = (MANIFEST, INDEX, CARD, AUDIT, "episodes/*", "queries/*", "activations/*")


def push_dataset(
    folder: str | Path | RolloutStore,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str = MAIN,
    message: str | None = None,
    replace: bool = False,
    videos: bool = False,
    on_progress: OnProgress = lambda upload: None,
) -> str:
    """Publish rollouts as a data set on the Hugging Face Hub; the same call finishes an interrupted one.

    Args:
        folder: of a rollout store, or the store; a view (`where`, `only`) publishes its episodes, and what an audit
            found in them.
        repo_id: `user/name`; made when it does not exist.
        private: visibility of a new repository; None is the default of the account. An existing repository must agree.
        token: None takes it from `HF_TOKEN` or `hf auth login`.
        revision: branch to publish to; made when it does not exist.
        message: title of the commits.
        replace: publish our content of episodes that are there with other content, and our audit in place of one that
            asked differently.
        videos: publish the films of the episodes as well.
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
    check_whole(store)
    mine = contents(store)
    if not mine:
        raise ValueError(f"no finished episode in {store.folder}")
    patiently(lambda: repository.ensure(private), on_progress)
    push = _Push(store, mine, repository, message or f"Add rollouts: {len(mine)} episodes", videos, on_progress)
    patiently(lambda: push.run(replace), on_progress)
    return repository.url()


def load_rollouts(
    source: str | Path, *, revision: str | None = None, token: str | None = None, videos: bool = False
) -> RolloutStore:
    """Open rollouts from a folder, or from the Hub.

    Args:
        source: a folder, or `user/name` of a data set; a folder of that name wins.
        revision: branch, tag or commit of the data set.
        token: None takes it from `HF_TOKEN` or `hf auth login`; only private data sets need one.
        videos: fetch the films as well, if any were published.

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
    wanted = (*TABLES, "videos/*") if videos else TABLES
    folder = Repository(name, "dataset", revision or MAIN, token).download(only=wanted)
    if not (folder / MANIFEST).is_file():
        raise HubError(f"data set {name} holds no rollouts: manifest.json is missing")
    store = RolloutStore.open(folder)
    try:
        check_whole(store)
    except FileNotFoundError as error:
        raise HubError(f"data set {name} is not whole; its owner must push again: {error}") from None
    return store


def check_whole(store: RolloutStore) -> None:
    """Refuse a store of which a file is missing.

    Raises:
        FileNotFoundError: some are; the message names them.
    """
    files = single_keys(store.folder) & set(store.keys)
    files |= {store.packs.homes[key].name for key in set(store.keys) - files}
    names = [f"{kind}/{file}.parquet" for kind in store.manifest.kinds for file in sorted(files)]
    missing = [name for name in names if not (store.folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{store.folder} lacks {listing(missing)}")


@dataclass(frozen=True)
class _Published:
    """What a commit holds."""

    head: str
    files: Mapping[str, RemoteFile]
    manifest: Manifest | None
    packs: Packs
    findings: Sequence[Row] = ()

    @property
    def next_number(self) -> int:
        return 1 + max((int(pack.name[:5]) for pack in self.packs.packs), default=-1)


@dataclass(frozen=True)
class _Push:
    """One push of some episodes; `run` may be called again when it failed."""

    store: RolloutStore
    mine: Mapping[str, Packed]
    repository: Repository
    message: str
    videos: bool
    on_progress: OnProgress

    def run(self, replace: bool) -> None:
        """Look, pack what is missing, upload it, and the index last."""
        self.on_progress(Upload("compare", total=len(self.mine)))
        there = self._look()
        manifest = self._common_manifest(there)
        differing = [key for key, one in self.mine.items() if _differs(there.packs, key, one)]
        self._check_episodes(differing, there, replace)
        kept = tuple(pack for pack in there.packs.packs if not set(differing) & pack.episodes.keys())
        stay = Packs(kept).homes
        moved = {key: there.packs[key] for key in there.packs.homes if key not in stay}
        new = plan_packs(
            {key: one for key, one in {**moved, **self.mine}.items() if key not in stay},
            PACK_BYTES,
            there.next_number,
        )
        packs = Packs((*kept, *new))
        stores = [self.store, *self._theirs(there, moved.keys() - self.mine.keys())]
        findings = self._common_findings(there, packs.homes.keys() - set(differing), replace)
        with tempfile.TemporaryDirectory() as scratch:
            last = self._closing_files(Path(scratch), manifest, packs, findings, there)
            films = self.store.videos() if self.videos else {}
            films = {name: path for name, path in films.items() if _missing(name, path, there)}
            ours = tuple(pack for pack in kept if pack.episodes.keys() <= self.mine.keys())  # a lost file is sent again
            gone = self._leftovers(packs, there) + ([AUDIT] if AUDIT in there.files and not findings else [])
            self._upload((*ours, *new), stores, films | last, gone, there)

    def _look(self) -> _Published:
        head = self.repository.head()
        files = self.repository.files(head)
        if MANIFEST not in files:
            return _Published(head, files, None, Packs())
        if INDEX not in files:
            raise HubError(
                f"{self.repository.name} holds rollouts in one file per episode, as they were published formerly. "
                "Nothing was uploaded: push to another repository or revision"
            )
        folder = self.repository.download(head, [MANIFEST, INDEX, AUDIT])
        manifest = Manifest.from_json((folder / MANIFEST).read_text())
        findings = read_findings(folder / AUDIT) if AUDIT in files else []
        return _Published(head, files, manifest, Packs.read(folder), findings)

    def _common_manifest(self, there: _Published) -> Manifest:
        """Ours, with the counts of all attempts. A task's attempts have one order, so more of them include fewer."""
        ours = self.store.manifest
        if there.manifest is None:
            return ours
        old, new = (json.loads(changed(one, counts={}).to_json()) for one in (there.manifest, ours))
        found = differences(old, new)
        if found:
            raise ValueError(
                f"{self.repository.name} holds rollouts with other settings: {'; '.join(found)}. "
                "Nothing was uploaded: push to another repository or revision"
            )
        counts = {**there.manifest.counts}
        for task, count in ours.counts.items():
            if task not in counts or count["attempts"] >= counts[task]["attempts"]:
                counts[task] = count
        return changed(ours, counts=counts)

    def _check_episodes(self, differing: list[str], there: _Published, replace: bool) -> None:
        if differing and not replace:
            both = self.mine.keys() & there.packs.homes.keys()
            raise HubError(
                f"{len(differing)} of the {len(both)} episodes that are here and in {self.repository.name} differ: "
                f"{listing(differing)}. Nothing was uploaded: push with replace=True to publish yours (the history "
                "keeps theirs), or to another repository or revision"
            )

    def _common_findings(self, there: _Published, same: Collection[str], replace: bool) -> list[Row]:
        """What either audit found; of an event that both know ours counts.

        Args:
            there: what is published.
            same: episodes that will be published with the content that `there` has, if it has them.
            replace: ours counts where the audits asked differently.
        """
        ours = read_findings(self.store.audit_path, self.mine.keys())
        theirs = [row for row in there.findings if row["episode"] in same]
        differing = asked_otherwise(ours, theirs)
        if differing and not replace:
            raise HubError(
                f"the knockout audits here and in {self.repository.name} ask differently (another horizon, force or "
                f"rule, or other actions): {listing(differing)}. Nothing was uploaded: push with replace=True to "
                "publish yours (the history "
                "keeps theirs), or to another repository or revision"
            )
        if differing:  # labels do not take a mixture
            rules = {row["rule"] for row in ours}
            theirs = [row for row in theirs if row["episode"] not in self.mine and row["rule"] in rules]
        return sorted_findings([*theirs, *ours])

    def _theirs(self, there: _Published, keys: Iterable[str], kinds: Iterable[str] | None = None) -> list[RolloutStore]:
        """The published episodes of these keys, fetched; of some tables only, if `kinds` are given."""
        keys = sorted(keys)
        if not keys:
            return []
        names = {there.packs.homes[key].name for key in keys}
        wanted = [f"{kind}/{name}.parquet" for kind in kinds or self.store.manifest.kinds for name in sorted(names)]
        folder = self.repository.download(there.head, wanted)
        return [RolloutStore(folder, self.store.manifest, tuple(keys), there.packs)]

    def _closing_files(
        self, scratch: Path, manifest: Manifest, packs: Packs, findings: Sequence[Row], there: _Published
    ) -> dict[str, Path]:
        """What counts and names the packs, where it changes."""
        only_there = packs.homes.keys() - self.mine.keys()
        frames = [store.episodes() for store in (self.store, *self._theirs(there, only_there, ["episodes"]))]
        card = ""
        if CARD in there.files:
            card = (self.repository.download(there.head, [CARD]) / CARD).read_text()
        episodes = pd.concat(frames, ignore_index=True)
        films = {name for name in there.files if name.startswith("videos/")}
        films |= self.store.videos().keys() if self.videos else set()
        name, columns = self.repository.name, schemas(self.store)
        card = rollout_card(name, manifest, episodes, columns, card, len(films), len(findings))
        audit = {AUDIT: findings_text(findings)} if findings else {}
        texts = {MANIFEST: manifest.to_json(), CARD: card, **audit, INDEX: packs.to_json()}
        for name, text in texts.items():
            (scratch / name).write_text(text)
        return {name: scratch / name for name in texts if _missing(name, scratch / name, there)}

    def _leftovers(self, packs: Packs, there: _Published) -> list[str]:
        named = {pack.name for pack in packs.packs}
        ours = [PurePath(name) for name in there.files if str(PurePath(name).parent) in self.store.manifest.kinds]
        return [str(path) for path in ours if PACK_NAME.fullmatch(path.stem) and path.stem not in named]

    def _upload(
        self,
        packs: tuple[Pack, ...],
        stores: list[RolloutStore],
        last: Mapping[str, Path],
        leftovers: list[str],
        there: _Published,
    ) -> None:
        """Commit pack after pack, so that only one lies on the disk, then the rest."""
        files = [[f"{kind}/{pack.name}.parquet" for kind in self.store.manifest.kinds] for pack in packs]
        todo = [[name for name in names if name not in there.files] for names in files]
        total = sum(map(len, todo)) + len(last)
        done, head = 0, there.head
        self.on_progress(Upload("upload", 0, total))

        def send(files: Mapping[str, Path], gone: list[str]) -> None:
            nonlocal done, head
            start = done
            head = self.repository.upload(
                files, head, self.message, lambda count: self.on_progress(Upload("upload", start + count, total)), gone
            )
            done += len(files)

        for pack, missing in zip(packs, todo, strict=True):
            if not missing:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                write_pack(stores, pack, Path(scratch))
                send({name: Path(scratch) / name for name in missing}, [])
        send(last, leftovers)
        self.on_progress(Upload("done", total, total))


def _differs(packs: Packs, key: str, one: Packed) -> bool:
    return key in packs.homes and packs[key].digest != one.digest


def _missing(name: str, path: Path, there: _Published) -> bool:
    return name not in there.files or not there.files[name].equals(path)
