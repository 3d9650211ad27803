"""Do scripted pushes in real LIBERO get the labels that a human would give, and do knockouts agree?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("libero.libero")

from scripted import BOWL, BOX, CLOSE, OPEN, PLATE, Script

from mist_interp.cli import main
from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.closing import hand_gain
from mist_interp.data import Manifest, RolloutStore
from mist_interp.data.records import ContactRecord, EpisodeRecord
from mist_interp.data.replay import Blindfolded, replay, replay_until
from mist_interp.libero.projection import pixels
from mist_interp.probing.attribution import Blame, Course, Rule, blame
from mist_interp.probing.audit import Audit, append_finding
from mist_interp.probing.audit_run import audit_episode
from mist_interp.probing.risk import Risk

pytestmark = pytest.mark.sim

LEAD = 6  # control steps from the query to the event


def down_on_the_table(script: Script) -> None:
    script.go([-0.02, -0.05, 1.0], CLOSE)
    script.until_contact([0, 0, -0.5, 0, 0, 0, CLOSE])


def down_and_far_along_the_table(script: Script) -> None:
    """Twice as fast along the table as towards it."""
    script.go([-0.15, -0.05, 0.97], CLOSE)
    script.until_contact([0.8, 0, -0.4, 0, 0, 0, CLOSE])


def sideways_into_the_cabinet(script: Script) -> None:
    x = script.at("wooden_cabinet_1_base")[0]
    script.go([x, -0.02, 1.15], CLOSE)
    script.go([x, -0.02, 0.97], CLOSE)
    script.until_contact([0, -0.7, 0, 0, 0, 0, CLOSE])


def sideways_into_the_cabinet_while_moving_up(script: Script) -> None:
    x = script.at("wooden_cabinet_1_base")[0]
    script.go([x, -0.02, 1.15], CLOSE)
    script.go([x, -0.02, 0.96], CLOSE)
    script.until_contact([0, -0.6, 0.3, 0, 0, 0, CLOSE])


def down_on_the_stove(script: Script) -> None:
    script.go(np.add(script.at("flat_stove_1_burner"), (0, 0, 0.1)), CLOSE)
    script.until_contact([0, 0, -0.5, 0, 0, 0, CLOSE])


def ahead_into_the_box(script: Script) -> None:
    box = script.at(BOX)
    script.go(np.add(box, (-0.12, 0, 0.15)), CLOSE)
    script.go(np.add(box, (-0.12, 0, 0.01)), CLOSE)
    script.until_contact([0.5, 0, 0, 0, 0, 0, CLOSE])


def back_into_the_stove(script: Script) -> None:
    script.go([-0.06, -0.02, 1.0], CLOSE)
    script.go([-0.06, -0.02, 0.915], CLOSE)
    script.until_contact([-0.5, 0, 0, 0, 0, 0, CLOSE])


def sideways_into_the_box(script: Script) -> None:
    box = script.at(BOX)
    script.go(np.add(box, (0, 0.08, 0.15)), CLOSE)
    script.go(np.add(box, (0, 0.08, 0.008)), CLOSE)
    script.until_contact([0, -0.4, 0, 0, 0, 0, CLOSE])


def rolling_a_finger_onto_the_table(script: Script) -> None:
    """Open fingers to the left and right of the hand, low over the table; the hand rolls on the spot."""
    script.go([-0.12, 0.08, 1.0], OPEN)
    script.go([-0.12, 0.08, 0.935], OPEN)
    script.until_contact([0, 0, 0, 0.3, 0, 0, OPEN])


def rolling_the_other_way(script: Script) -> None:
    script.go([-0.12, 0.06, 1.0], OPEN)
    script.go([-0.12, 0.06, 0.935], OPEN)
    script.until_contact([0, 0, 0, -0.3, 0, 0, OPEN])


def rolling_the_wrist_into_the_cabinet(script: Script) -> None:
    """What touches is a link of the arm, 0.2 m above the fingers."""
    script.go([-0.02, -0.05, 0.99], OPEN)
    script.go([-0.02, -0.05, 0.935], OPEN)
    script.until_contact([0, 0, 0, 0.3, 0, 0, OPEN])


def turning_a_finger_into_the_box(script: Script) -> None:
    """The left finger stands behind the box; a turn about the vertical swings it ahead."""
    box = script.at(BOX)
    start = np.add(box, (-0.055, -0.055, 0.0))
    script.go(np.add(start, (0, 0, 0.15)), OPEN)
    script.go(start, OPEN)
    script.until_contact([0, 0, 0, 0, 0, -0.3, OPEN])


def opening_a_finger_into_the_box(script: Script) -> None:
    """The closed fingers stand beside the box; nothing but the gripper moves."""
    box = script.at(BOX)
    start = np.add(box, (0, -0.075, 0.0))
    script.go(np.add(start, (0, 0, 0.15)), CLOSE)
    script.go(start, CLOSE)
    script.grip(CLOSE, 6)
    script.until_contact([0, 0, 0, 0, 0, 0, OPEN], 15)


def carrying_the_bowl_into_the_box(script: Script) -> None:
    script.pick()
    box = script.at(BOX)
    script.carry(np.add(box, (-0.18, 0, 0.12)))
    script.carry(np.add(box, (-0.18, 0, 0.01)))
    script.until_contact([0.6, 0, 0, 0, 0, 0, CLOSE])


def putting_the_bowl_down_beside_its_goal(script: Script) -> None:
    script.pick()
    script.carry(script.at(BOWL) * (1, 1, 0) + (0, -0.08, 0.96))
    script.until_contact([0, 0, -0.4, 0, 0, 0, CLOSE])


HUMAN: list[tuple[Callable[[Script], None], str, set[str]]] = [
    (down_on_the_table, "finger-table", {"dz"}),
    (down_and_far_along_the_table, "finger-table", {"dz"}),
    (sideways_into_the_cabinet, "hand-fixture", {"dy"}),
    (sideways_into_the_cabinet_while_moving_up, "hand-fixture", {"dy"}),
    (down_on_the_stove, "finger-fixture", {"dz"}),
    (ahead_into_the_box, "finger-distractor", {"dx"}),
    (back_into_the_stove, "finger-fixture", {"dx"}),
    (sideways_into_the_box, "finger-distractor", {"dy"}),
    (rolling_a_finger_onto_the_table, "finger-table", {"droll"}),
    (rolling_the_other_way, "finger-table", {"droll"}),
    (rolling_the_wrist_into_the_cabinet, "arm-fixture", {"droll"}),
    (turning_a_finger_into_the_box, "finger-distractor", {"dyaw"}),
    (opening_a_finger_into_the_box, "finger-distractor", {"gripper"}),
    (carrying_the_bowl_into_the_box, "held-distractor", {"dx"}),
    (putting_the_bowl_down_beside_its_goal, "held-table", {"dz"}),
]


def first_blame(episode: EpisodeRecord) -> Blame:
    step = episode.contacts[0].start_step
    return blame(Course.of(episode), max(0, step - LEAD), step + 1, Rule())[0]


@pytest.mark.parametrize(("push", "kind", "own"), HUMAN, ids=lambda value: getattr(value, "__name__", None))
def test_what_a_human_would_say(push: Callable[[Script], None], kind: str, own: set[str]) -> None:
    script = Script()
    push(script)
    episode = script.record()
    assert episode.contacts and {contact.kind for contact in episode.contacts} == {kind}
    found = first_blame(episode)
    assert {name for name, value in zip(ACTION_NAMES, found.own, strict=True) if value == 1} == own
    if own != {"gripper"}:
        assert found.own[6] == 0
    else:
        assert np.isnan(found.own[:6]).all(), "no pose dimension was commanded"
        assert found.contacts[0].finger_speed is not None and found.contacts[0].finger_speed > 0.02
    for contact in episode.contacts:
        check_geometry(contact)


def check_geometry(contact: ContactRecord) -> None:
    """Complete, plausible, and for what moves with the hand the formula on the recorded point and normal."""
    assert contact.eef is not None and contact.gain is not None and contact.start_force is not None
    expected = hand_gain(np.array(contact.normal), np.subtract(contact.point, contact.eef))
    if contact.kind.startswith("arm-"):
        # A link is no part of the hand, but this one is near it: alike, not equal.
        assert 0.5 < np.corrcoef(contact.gain, expected)[0, 1] < 0.9999
    else:
        np.testing.assert_allclose(contact.gain, expected, atol=1e-9)
        assert np.linalg.norm(np.subtract(contact.point, contact.eef)) < 0.2
    assert 1 <= contact.start_force <= contact.peak_force


def test_knockouts_agree_on_a_push_along_one_dimension() -> None:
    """Replayed from the record: without dz the table is not touched; all else may go."""
    script = Script()
    down_and_far_along_the_table(script)
    script.hold(script.actions[-1], 8)  # so that a touch that comes a little later is still one
    episode = script.record()
    findings = list(audit_episode(script.env, episode, Risk(horizon=4)))
    assert findings and all(finding.reproduced for finding in findings)
    for finding in findings:
        if finding.event - finding.step >= 4:  # later, the hand swings on by itself
            assert finding.necessary == (False, False, True, False, False, False, False), finding
    known = Audit(tuple(findings))
    assert not list(audit_episode(script.env, episode, Risk(horizon=4), skip=known)), "what is known is not run again"


def test_a_bowl_that_is_dropped_beside_its_goal_is_the_grippers_doing() -> None:
    script = Script()
    script.pick()
    script.carry(script.at(BOWL) * (1, 1, 0) + (0, -0.08, 1.0))
    script.grip(OPEN, 20)
    episode = script.record()
    release = episode.releases[-1]
    assert not any(earlier.lifted for earlier in episode.releases[:-1]), "the grasp takes hold bit by bit"
    assert release.body == BOWL and release.lifted and release.landed_on == "table" and release.at_goal is False
    (found,) = blame(Course.of(episode), release.step - LEAD, release.step + 1, Rule())
    assert found.own[6] == 1 and np.isnan(found.own[:6]).all() and not found.contacts
    values = Risk().judge(Course.of(episode), release.step - LEAD, release.step + 1, episode.steps).values
    np.testing.assert_array_equal(values, [0, 0, 0, 0, 0, 0, 1])


def test_a_bowl_that_is_put_on_the_plate_is_not_dropped() -> None:
    script = Script()
    script.pick()
    plate = script.at(PLATE)
    script.carry(np.add(plate, (0, 0, 0.1)))
    script.carry(np.add(plate, (0, 0, 0.02)), 30)
    script.grip(OPEN, 12)
    episode = script.record()
    release = episode.releases[-1]
    assert release.lifted and release.at_goal is True
    assert blame(Course.of(episode), release.step - LEAD, episode.steps, Rule()) == []


def test_a_bowl_that_was_never_lifted_cannot_be_dropped() -> None:
    script = Script()
    script.pick(0.0)
    script.grip(OPEN, 10)
    releases = script.record().releases
    assert releases and not any(release.lifted for release in releases)


def test_a_replay_records_what_an_older_record_lacks() -> None:
    """The geometry of contacts, the path of the hand, touches and releases come back, bit for bit."""
    script = Script()
    carrying_the_bowl_into_the_box(script)
    episode = script.record()
    old = replace(
        episode,
        queries=tuple(replace(query, hand=None) for query in episode.queries),
        contacts=tuple(replace(contact, eef=None, gain=None, start_force=None) for contact in episode.contacts),
        touches=None,
        releases=(),
    )
    again = replay(Blindfolded(script.env), old)
    assert again.contacts == episode.contacts and again.releases == episode.releases
    assert again.touches and again.touches == episode.touches
    for one, other in zip(again.queries, episode.queries, strict=True):
        np.testing.assert_array_equal(one.hand, other.hand)


def test_a_replay_that_leaves_the_recorded_states_is_an_error() -> None:
    script = Script()
    down_on_the_table(script)
    episode = script.record()
    env = script.env
    replay_until(env, episode, 8)
    hashed = replace(episode.queries[1], state_hash=env.state_hash())
    replay_until(env, replace(episode, queries=(episode.queries[0], hashed, *episode.queries[2:])), 12)
    other = replace(episode.queries[0], executed=0.5 * episode.queries[0].executed)
    with pytest.raises(ValueError, match="leaves the recorded states at query 1"):
        replay_until(env, replace(episode, queries=(other, hashed, *episode.queries[2:])), 12)
    with pytest.raises(ValueError, match="control steps 0 to"):
        replay_until(env, episode, episode.steps + 1)


def test_points_are_drawn_where_they_are() -> None:
    """The box's pixels in the segmented picture surround the pixel of its centre."""
    script = Script()
    env, size = script.env, 256
    box = env.segmentation("agentview", size)[::-1] == env.bodies.index(BOX)
    rows, columns = np.nonzero(box)
    x, y = pixels(env, script.at(BOX)[None], "agentview", size)[0]
    assert abs(x - columns.mean()) < 3 and abs(y - rows.mean()) < 3
    with pytest.raises(KeyError, match="agentview"):
        pixels(env, np.zeros((1, 3)), "agent", size)


def test_the_command_draws_and_upgrades(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a folder of rollouts to a picture, and to a store of the present layout with the same labels."""
    script = Script()
    ahead_into_the_box(script)
    episode = script.record()
    store = RolloutStore.create(tmp_path / "rollouts", Manifest((), {"suite": "libero_spatial"}))
    store.append(episode)
    query = episode.contacts[0].start_step // 8
    picture = tmp_path / "picture.png"
    assert main(["label", str(store.folder), "--explain", episode.key, str(query), "--picture", str(picture)]) == 0
    said = capsys.readouterr().out
    assert str(picture) in said and f"touches {BOX} (finger-distractor)" in said
    drawn = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    arrow = (abs(drawn - (255, 77, 77)).sum(2) < 60).sum()
    assert drawn.shape[1] > 1000 and arrow > 50, "the normal is drawn in red"
    finding, surplus = next(audit_episode(script.env, episode, Risk())), store.folder / "surplus.jsonl"
    append_finding(store, finding)
    surplus.write_text('{"episode": "run and not stored", "task": 0, "success": true}\n')
    film = store.video(episode.key)
    film.parent.mkdir(parents=True)
    film.write_bytes(b"a film")
    assert main(["label", str(store.folder), "--upgrade", str(tmp_path / "new")]) == 0
    again = RolloutStore.open(tmp_path / "new")
    assert Audit.of(again).findings == (finding,) and again.video(episode.key).read_bytes() == b"a film"
    assert (again.folder / "surplus.jsonl").read_bytes() == surplus.read_bytes()
    np.testing.assert_array_equal(Risk().labels(again).values, Risk().labels(store).values)
