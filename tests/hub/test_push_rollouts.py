"""Rollouts on the Hub: what goes up comes back, whatever the Hub, the token or another machine does in between."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from local_hub import READ, WRITE, LocalHub
from published_rollouts import SITE, content, episode, make_store

from mist_interp.core.files import append_json_line
from mist_interp.data import hub as pushing
from mist_interp.data import load_rollouts, push_dataset
from mist_interp.data.cards import MEANINGS
from mist_interp.data.findings import AUDIT, read_findings
from mist_interp.data.packs import Packs
from mist_interp.data.remote import HubError, Repository, Upload
from mist_interp.data.store import RolloutStore
from mist_interp.data.tables import EPISODE_SCHEMA, QUERY_SCHEMA

NAME = "me/rollouts"


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    return make_store(tmp_path / "here", 0, 1, 2)


def packs_there(hub: LocalHub, name: str = NAME) -> Packs:
    return Packs.from_json(hub.files(name)["packs.json"].decode())


def test_what_is_pushed_comes_back_bit_by_bit(hub: LocalHub, store: RolloutStore) -> None:
    seen: list[Upload] = []
    url = push_dataset(store.folder, NAME, on_progress=seen.append)
    assert url == f"{hub.url}/datasets/{NAME}"
    again = load_rollouts(NAME)
    assert again.folder != store.folder and again.manifest == store.manifest
    assert content(again) == content(store) and len(content(again)) == 9
    assert [len(pack.episodes) for pack in again.packs.packs] == [3]
    assert (again.load(SITE)[0] == store.load(SITE)[0]).all()
    assert [step.stage for step in seen] == ["compare", "upload", "upload", "upload", "done"]
    assert (seen[-1].done, seen[-1].total) == (6, 6)  # three tables, the manifest, the index and the card


def test_a_folder_loads_as_itself(store: RolloutStore) -> None:
    assert load_rollouts(store.folder).keys == store.keys
    with pytest.raises(ValueError, match="a folder, which has no revision 'v1'"):
        load_rollouts(store.folder, revision="v1")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a data set name"):
        load_rollouts("nothing")


def test_only_finished_episodes_are_published(hub: LocalHub, store: RolloutStore) -> None:
    unfinished = store.folder / "queries" / "unfinished.parquet"
    unfinished.write_bytes(b"half")
    (store.folder / "episodes" / ".one.parquet.12.tmp").write_bytes(b"half")
    (store.folder / "notes.txt").write_text("private notes")
    push_dataset(store.folder, NAME)
    (name,) = [pack.name for pack in packs_there(hub).packs]
    tables = {f"{kind}/{name}.parquet" for kind in ("activations/action_read-mean", "queries", "episodes")}
    assert set(hub.files(NAME)) == {*tables, "manifest.json", "packs.json", "README.md", ".gitattributes"}
    assert packs_there(hub).homes.keys() == set(store.keys)


def test_a_store_that_lacks_a_file_is_not_published(hub: LocalHub, store: RolloutStore) -> None:
    name = f"queries/{store.keys[1]}.parquet"
    (store.folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        push_dataset(store, NAME)
    assert hub.requests == []


def test_an_empty_store_and_a_wrong_name_are_refused(hub: LocalHub, store: RolloutStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished episode"):
        push_dataset(make_store(tmp_path / "empty"), NAME)
    with pytest.raises(ValueError, match="must be like 'user/name'"):
        push_dataset(store, "rollouts")
    with pytest.raises(HubError, match="no repository name"):
        push_dataset(store, "me/roll outs")


def test_the_same_push_again_uploads_nothing(
    hub: LocalHub, store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_dataset(store, NAME)
    commits = hub.titles(NAME)
    monkeypatch.setattr(pushing, "write_pack", lambda *given: pytest.fail("nothing is packed either"))
    push_dataset(store, NAME)
    assert hub.titles(NAME) == commits


def test_a_store_that_grew_sends_only_what_is_new(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "here", 1, 3)
    push_dataset(store, NAME)
    sent = {name for name in hub.files(NAME) if name.endswith(".parquet")}
    blobs = hub.count("PUT", "/blobs/")
    for init_state in (0, 2):  # before and between those that are there
        store.append(episode(init_state))
    push_dataset(store, NAME)
    now = {name for name in hub.files(NAME) if name.endswith(".parquet")}
    assert sent < now and len(now) == 6 and hub.count("PUT", "/blobs/") == blobs + 3
    again = load_rollouts(NAME)
    assert content(again) == content(store) and again.keys == store.keys
    assert (again.load(SITE)[0] == store.load(SITE)[0]).all()
    commits = hub.titles(NAME)
    push_dataset(again, NAME)  # what came from there is known there
    assert hub.titles(NAME) == commits


def test_what_an_interrupted_push_of_other_episodes_left_is_removed(
    hub: LocalHub, store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "PACK_BYTES", 1)
    some = store.where(inits=[1, 2])
    push_dataset(some, "me/elsewhere")
    left = {name: file for name, file in hub.files("me/elsewhere").items() if name.endswith(".parquet")}
    push_dataset(store.where(inits=[0]), NAME)
    people = {"notes/data.parquet": b"theirs", "queries/theirs.parquet": b"theirs"}
    hub.repos["dataset", NAME].commit("main", {**hub.files(NAME), **left, **people}, "killed half way")
    assert len(load_rollouts(NAME)) == 1, "what no index names does not exist"
    push_dataset(store.where(inits=[0]), NAME)
    assert not set(left) & set(hub.files(NAME)) - {
        f"{kind}/{packs_there(hub).packs[0].name}.parquet" for kind in store.manifest.kinds
    }
    assert set(people) < set(hub.files(NAME))
    push_dataset(store, NAME)
    assert content(load_rollouts(NAME)) == content(store)


def test_more_than_ten_thousand_episodes_are_no_longer_refused(
    hub: LocalHub, store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the folders: no folder of the repository holds more files than there are packs."""
    known = {f"libero_spatial-t{n // 1000:02d}-i{n % 1000:03d}": 8_000 for n in range(12_000)}
    packs = pushing.plan_packs({key: pushing.Packed("0", size) for key, size in known.items()})
    assert len(packs) == 1 and len(packs[0].episodes) == 12_000
    big = pushing.plan_packs({key: pushing.Packed("0", 8_100_000) for key in known})  # 33 layers of width 4096
    assert len(big) == 364 and sum(len(pack.episodes) for pack in big) == 12_000


def test_an_old_publication_is_left_alone(hub: LocalHub, store: RolloutStore) -> None:
    push_dataset(store, NAME)
    files = {name: file for name, file in hub.files(NAME).items() if name != "packs.json"}
    hub.repos["dataset", NAME].commit("main", files, "as before there were packs")
    with pytest.raises(HubError, match=r"one file per episode.*Nothing was uploaded"):
        push_dataset(store, NAME)
    assert hub.files(NAME) == files


def test_a_balanced_set_may_grow(hub: LocalHub, tmp_path: Path) -> None:
    def counts(attempts: int) -> dict[str, int]:
        return {"attempts": attempts, "successes": 1, "failures": attempts - 1, "stored": 1}

    first = make_store(tmp_path / "a", 0, selection="balanced", counts={"0": counts(3), "1": counts(9)})
    push_dataset(first, NAME)
    second = make_store(tmp_path / "b", 0, 1, selection="balanced", counts={"0": counts(5), "1": counts(2)})
    push_dataset(second, NAME)
    merged = load_rollouts(NAME)
    assert merged.manifest.counts == {"0": counts(5), "1": counts(9)} and len(merged) == 2


def test_films_are_published_and_fetched_where_asked_for(hub: LocalHub, store: RolloutStore) -> None:
    film = store.video(store.keys[1])
    film.parent.mkdir(parents=True)
    film.write_bytes(b"what the policy saw")
    push_dataset(store, NAME)
    assert not [name for name in hub.files(NAME) if "videos" in name]
    push_dataset(store, NAME, videos=True)
    card = hub.files(NAME)["README.md"].decode()
    assert "1 episodes have one" in card and set(store.videos()) < set(hub.files(NAME))
    commits = hub.titles(NAME)
    push_dataset(store, NAME, videos=True)
    push_dataset(store, NAME)  # what is there stays there
    assert hub.titles(NAME) == commits
    assert load_rollouts(NAME).videos() == {}
    assert load_rollouts(NAME, videos=True).video(store.keys[1]).read_bytes() == b"what the policy saw"


# -- audits


def audit(store: RolloutStore, *init_states: int, step: int = 8, **more: object) -> list[dict[str, object]]:
    """Add findings to the audit of a store."""
    rows: list[dict[str, object]] = [
        {
            "episode": episode(init).key,
            "step": step,
            "event": step + 3,
            "rule": "r",
            "asked": "0a",
            "shares": [0.1, None],
            **more,
        }
        for init in init_states
    ]
    for row in rows:
        append_json_line(store.audit_path, row)
    return rows


def test_an_audit_goes_along(hub: LocalHub, store: RolloutStore) -> None:
    push_dataset(store, NAME)
    assert AUDIT not in hub.files(NAME) and "audit" not in hub.files(NAME)["README.md"].decode()
    first, second = audit(store, 2, 0)
    audit(store, 7)  # an episode that is not in the store
    uploads = hub.count("PUT", "/blobs/")
    push_dataset(store, NAME)
    assert hub.count("PUT", "/blobs/") == uploads, "no table is sent again"
    assert "holds 2 findings of a knockout audit" in hub.files(NAME)["README.md"].decode()
    again = load_rollouts(NAME)
    assert again.folder != store.folder and read_findings(again.audit_path) == [second, first]
    commits = hub.titles(NAME)
    for same in (store, again):
        push_dataset(same, NAME)
    assert hub.titles(NAME) == commits
    (changed,) = audit(store, 2, shares=[0.9, 0.1])
    push_dataset(store, NAME)
    assert read_findings(load_rollouts(NAME).audit_path) == [second, changed], "a new push brings it up to date"


def test_of_a_view_only_its_findings_go_along_and_those_that_are_there_stay(hub: LocalHub, store: RolloutStore) -> None:
    zero, one, two = audit(store, 0, 1, 2)
    push_dataset(store.where(inits=[0]), NAME)
    assert read_findings(load_rollouts(NAME).audit_path) == [zero]
    push_dataset(store.where(inits=[1]), NAME)
    assert read_findings(load_rollouts(NAME).audit_path) == [zero, one]
    push_dataset(store, NAME)
    assert read_findings(load_rollouts(NAME).audit_path) == [zero, one, two]


def test_two_machines_share_an_audit(hub: LocalHub, store: RolloutStore, tmp_path: Path) -> None:
    """Also of one episode; and a store that was not audited takes nothing away."""
    (mine,) = audit(store, 2)
    push_dataset(store, NAME)
    other = make_store(tmp_path / "there", 2, 3)
    push_dataset(other, NAME)
    assert read_findings(load_rollouts(NAME).audit_path) == [mine]
    (later,), (third,) = audit(other, 2, step=16), audit(other, 3)
    push_dataset(other, NAME)
    assert read_findings(load_rollouts(NAME).audit_path) == [mine, later, third]
    assert "holds 3 findings" in hub.files(NAME)["README.md"].decode()


def test_audits_that_asked_differently_are_not_mixed(hub: LocalHub, store: RolloutStore, tmp_path: Path) -> None:
    audit(store, 1, 2)
    push_dataset(store, NAME)
    before = hub.files(NAME)
    other = make_store(tmp_path / "there", 2, 3)
    rows = audit(other, 2, asked="1b")
    with pytest.raises(HubError, match=rf"or other actions\): '{episode(2).key}'\. Nothing was uploaded.*replace"):
        push_dataset(other, NAME)
    assert hub.files(NAME) == before
    push_dataset(other, NAME, replace=True)
    assert read_findings(load_rollouts(NAME).audit_path)[1:] == rows


def test_findings_on_an_episode_that_is_replaced_go_with_it(hub: LocalHub, store: RolloutStore, tmp_path: Path) -> None:
    audit(store, 2)
    push_dataset(store, NAME)
    other = make_store(tmp_path / "there", 2, seed=1)
    push_dataset(other, NAME, replace=True)
    assert AUDIT not in hub.files(NAME) and not load_rollouts(NAME).audit_path.exists()
    assert "audit" not in hub.files(NAME)["README.md"].decode()


def test_a_push_that_was_cut_before_the_audit_is_completed(hub: LocalHub, store: RolloutStore) -> None:
    rows = audit(store, 0, 1)
    hub.before_commit = lambda: hub.failures.update({("POST", "/commit/"): 99})  # the pack is in, then no more
    with pytest.raises(HubError, match="503"):
        push_dataset(store, NAME)
    hub.failures.clear()
    files = hub.files(NAME)
    assert AUDIT not in files and any(name.startswith("episodes/") for name in files)
    push_dataset(store, NAME)
    assert read_findings(load_rollouts(NAME).audit_path) == rows


# -- tokens


def test_a_missing_token_is_explained_before_anything_is_asked(
    hub: LocalHub, store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"HF_TOKEN.*`hf auth login`"):
        push_dataset(store, NAME)
    assert hub.requests == []


def test_the_token_of_hf_auth_login_is_used(
    hub: LocalHub, store: RolloutStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(WRITE)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    push_dataset(store, NAME)
    assert NAME in {name for _, name in hub.repos}


def test_wrong_and_weak_tokens_are_told_apart(
    hub: LocalHub, store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match="refuses the token: it is wrong or expired"):
        push_dataset(store, NAME, token="hf_expired")
    monkeypatch.setenv("HF_TOKEN", READ)
    with pytest.raises(HubError, match="may not write to me/rollouts: it needs the role `write`"):
        push_dataset(store, NAME)


def test_a_private_data_set_needs_a_token_to_be_read(
    hub: LocalHub, store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_dataset(store, NAME, private=True)
    assert hub.repos["dataset", NAME].private
    assert content(load_rollouts(NAME, token=READ)) == content(store)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-empty")
    with pytest.raises(HubError, match=r"no dataset me/rollouts, or it is private.*HF_TOKEN"):
        load_rollouts(NAME)


def test_a_private_push_to_a_public_repository_uploads_nothing(hub: LocalHub, store: RolloutStore) -> None:
    push_dataset(store.where(inits=[0]), NAME)
    before = hub.files(NAME)
    with pytest.raises(HubError, match=r"exists and is public, but private was asked for\. Nothing was uploaded"):
        push_dataset(store, NAME, private=True)
    assert hub.files(NAME) == before


def test_no_message_holds_the_token(
    hub: LocalHub, store: RolloutStore, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even of a server that repeats it."""
    for name in ("mist_interp", "huggingface_hub"):
        caplog.set_level(logging.DEBUG, name)
    hub.echo_token = True
    hub.failures["POST", "/commit/"] = 9
    seen: list[Upload] = []
    with pytest.raises(HubError) as caught:
        push_dataset(store, NAME, on_progress=seen.append)
    texts = ["".join(traceback.format_exception(caught.value)), str(seen), *capfd.readouterr(), caplog.text]
    assert "***" in texts[0] and "***" in texts[1]
    assert not [text for text in texts if WRITE in text]
    assert WRITE not in repr(Repository(NAME, "dataset", token=WRITE))


# -- a busy Hub


@pytest.mark.parametrize("place", ["/preupload/", "/objects/batch", "/blobs/", "/commit/", "/tree/", "/create"])
def test_one_503_anywhere_is_survived(hub: LocalHub, store: RolloutStore, place: str) -> None:
    hub.failures = {(method, place): 1 for method in ("GET", "POST", "PUT")}
    push_dataset(store, NAME)
    assert min(hub.failures.values()) == 0
    assert content(load_rollouts(NAME)) == content(store)


def test_a_hub_that_stays_busy_is_an_error_and_the_same_call_completes(
    hub: LocalHub, store: RolloutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "PACK_BYTES", 1)  # one episode each
    asked = {"commits": 0}

    def fail_from_the_second_commit_on() -> None:
        asked["commits"] += 1
        if asked["commits"] == 1:
            hub.failures["POST", "/commit/"] = 99
        hub.before_commit = fail_from_the_second_commit_on

    hub.before_commit = fail_from_the_second_commit_on
    with pytest.raises(HubError, match=r"503.*What is published stays; the same call goes on"):
        push_dataset(store, NAME)
    hub.before_commit = None
    partial = set(hub.files(NAME))
    assert len([name for name in partial if name.startswith("episodes/")]) == 1 and "packs.json" not in partial
    hub.failures.clear()
    uploads = hub.count("PUT", "/blobs/")
    push_dataset(store, NAME)
    assert content(load_rollouts(NAME)) == content(store)
    assert uploads > 0 and hub.count("PUT", "/blobs/") == 9  # no table was sent twice


def test_a_hub_that_is_gone_is_explained(hub: LocalHub, store: RolloutStore) -> None:
    hub.close()
    with pytest.raises(HubError, match=r"cannot be reached.*the same call goes on"):
        push_dataset(store, NAME)


# -- a changed remote


def test_two_machines_push_to_one_repository(hub: LocalHub, store: RolloutStore, tmp_path: Path) -> None:
    push_dataset(store, NAME)
    other = make_store(tmp_path / "there", 2, 3, 5)
    push_dataset(other, NAME)
    merged = load_rollouts(NAME)
    assert [list(pack.episodes) for pack in merged.packs.packs] == [list(store.keys), list(other.keys[1:])]
    assert content(merged) == {**content(store), **content(other)} and len(merged) == 5
    card = hub.files(NAME)["README.md"].decode()
    assert "| episodes | 5 |" in card and "| forbidden contact events | 11 |" in card


def test_a_commit_during_the_push_is_merged(hub: LocalHub, store: RolloutStore, tmp_path: Path) -> None:
    other = make_store(tmp_path / "there", 7)
    push_dataset(other, NAME)
    late = make_store(tmp_path / "late", 9)
    branches = hub.repos["dataset", NAME].branches
    before = branches["main"]
    push_dataset(late, NAME)
    after, branches["main"] = branches["main"], before
    hub.before_commit = lambda: branches.update(main=after)
    seen: list[Upload] = []
    push_dataset(store, NAME, on_progress=seen.append)
    assert "somebody else committed" in next(step.note for step in seen if step.stage == "retry")
    assert content(load_rollouts(NAME)) == {**content(store), **content(other), **content(late)}
    assert "| episodes | 5 |" in hub.files(NAME)["README.md"].decode()


def test_an_episode_with_other_content_is_never_overwritten_silently(
    hub: LocalHub, store: RolloutStore, tmp_path: Path
) -> None:
    push_dataset(store, NAME)
    before = hub.files(NAME)
    other = make_store(tmp_path / "there", 2, 3, seed=1)
    with pytest.raises(HubError, match=rf"1 of the 1 episodes .* differ: '{episode(2).key}'\. Nothing was uploaded"):
        push_dataset(other, NAME)
    assert hub.files(NAME) == before
    push_dataset(other, NAME, replace=True)
    assert content(load_rollouts(NAME)) == {**content(store), **content(other)}
    assert any(commit.files == before for commit in hub.repos["dataset", NAME].commits.values())
    tables = [name for name in hub.files(NAME) if name.endswith(".parquet")]
    assert len(tables) == 3 and not set(tables) & set(before), "the pack with the old episode is gone"


def test_rollouts_with_other_settings_do_not_mix(hub: LocalHub, store: RolloutStore, tmp_path: Path) -> None:
    push_dataset(store, NAME)
    before = hub.files(NAME)
    for change in ({"settings": {"suite": "y"}}, {"selection": "balanced"}):
        other = make_store(tmp_path / str(change), 3, **change)
        with pytest.raises(ValueError, match=r"other settings: (settings.suite|selection): .*Nothing was uploaded"):
            push_dataset(other, NAME)
    assert hub.files(NAME) == before


def test_a_revision_is_a_branch_of_its_own(hub: LocalHub, store: RolloutStore) -> None:
    push_dataset(store.where(inits=[0]), NAME)
    url = push_dataset(store, NAME, revision="all")
    assert url.endswith("/tree/all")
    assert len(load_rollouts(NAME)) == 1 and len(load_rollouts(NAME, revision="all")) == 3
    with pytest.raises(HubError, match="has no revision 'v9'"):
        load_rollouts(NAME, revision="v9")


def test_a_data_set_that_is_not_whole_is_noticed(hub: LocalHub, store: RolloutStore) -> None:
    push_dataset(store, NAME)
    files = dict(hub.files(NAME))
    lost = f"queries/{packs_there(hub).packs[0].name}.parquet"
    del files[lost]
    hub.repos["dataset", NAME].commit("main", files, "lose a file")
    with pytest.raises(HubError, match=f"not whole.*{lost}"):
        load_rollouts(NAME)
    push_dataset(store, NAME)
    assert content(load_rollouts(NAME)) == content(store)


# -- the card


def test_the_card_counts_and_explains_every_column(hub: LocalHub, store: RolloutStore) -> None:
    push_dataset(store, NAME)
    card = hub.files(NAME)["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert [config["config_name"] for config in front["configs"]] == ["episodes", "queries", "action_read-mean"]
    for line in ("| episodes | 3 |", "| queries | 9 |", "| successes | 2 |", "| torch | 2.13 | 3 |", "`iid`"):
        assert line in card
    for field in (*EPISODE_SCHEMA, *QUERY_SCHEMA):
        assert f"| `{field.name}` |" in card and MEANINGS[field.name]


def test_a_balanced_set_says_that_it_gives_no_success_rate(hub: LocalHub, tmp_path: Path) -> None:
    push_dataset(make_store(tmp_path / "balanced", 0, 1, selection="balanced"), NAME)
    assert "No success rate may be computed" in hub.files(NAME)["README.md"].decode()


def test_a_view_says_how_it_was_selected(hub: LocalHub, store: RolloutStore) -> None:
    won = store.only([key for key in store.keys if store.row(key)["success"]])
    push_dataset(won, NAME)
    again = load_rollouts(NAME)
    assert again.keys == won.keys and again.manifest.selection == "chosen"
    card = hub.files(NAME)["README.md"].decode()
    assert "`chosen`" in card and "No success rate may be computed" in card
    with pytest.raises(ValueError, match="picked one by one"):
        again.check_rates()
    with pytest.raises(ValueError, match=r"other settings: selection: .*Nothing was uploaded"):
        push_dataset(store, NAME)
    push_dataset(store.where(inits=[0]), "me/first")
    assert (
        load_rollouts("me/first").manifest.selection == "iid" and "`iid`" in hub.files("me/first")["README.md"].decode()
    )
    push_dataset(store, "me/first")
    load_rollouts("me/first").check_rates()


def test_what_people_wrote_into_the_card_stays(hub: LocalHub, store: RolloutStore) -> None:
    push_dataset(store.where(inits=[0]), NAME)
    card = hub.files(NAME)["README.md"].decode()
    edited = card.replace("---\n", "---\nlicense: mit\n", 1) + "\nThanks to the lab.\n"
    hub.repos["dataset", NAME].commit("main", {**hub.files(NAME), "README.md": edited.encode()}, "edit the card")
    push_dataset(store, NAME)
    card = hub.files(NAME)["README.md"].decode()
    assert "license: mit" in card and "Thanks to the lab." in card and "| episodes | 3 |" in card
    assert card.count("| episodes | ") == card.count("mist: begin") == 1


def test_the_three_lines_of_the_card_load_one_layer(hub: LocalHub, store: RolloutStore, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    push_dataset(store, NAME)
    card = hub.files(NAME)["README.md"].decode()
    lines = next(block for block in card.split("```python\n") if block.startswith("from datasets")).split("```")[0]
    assert len(lines.strip().splitlines()) == 3
    code = lines + "import json; print(json.dumps([list(rows['episode']), list(rows['query']), x.tolist()]))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    episodes, queries, x = json.loads(run.stdout.splitlines()[-1])
    ours, rows = store.load(SITE)
    assert (list(rows["episode"]), list(rows["query"])) == (episodes, queries)
    assert x == ours.tolist()


def test_importing_the_package_leaves_the_hub_alone() -> None:
    code = "import sys, mist_interp, mist_interp.data; print({'huggingface_hub', 'datasets'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
