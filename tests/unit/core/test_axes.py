"""Are the tokens of vision towers, of the robot state and of the head named right?"""

import pytest

from mist_interp.core.axes import PatchAxis, StepAxis, axis_of
from mist_interp.core.errors import UnknownName
from mist_interp.core.layout import TokenLayout

LAYOUT = TokenLayout.build([5, 7], 2, (2, 3), True)


def test_patches_skip_class_and_register_tokens():
    axis = axis_of("tower", LAYOUT, length=2 * (5 + 6))
    assert axis == PatchAxis(2, ("agentview", "wrist"), (2, 3), 5)
    assert axis.select("agentview[0, 0]").index.tolist() == [[5], [5]]
    assert axis.select("wrist[1, 2]").index.tolist() == [[21], [21]]
    assert axis.select("vision").index.shape == (2, 12)
    assert axis.select("prefix").index[0].tolist() == [0, 1, 2, 3, 4, 11, 12, 13, 14, 15]
    assert axis.labels()[4:6] == ["agentview prefix 4", "agentview r0c0"]


def test_projected_patches_have_no_prefix():
    axis = axis_of("patches", LAYOUT, length=12)
    assert axis.select("wrist").index[0].tolist() == list(range(6, 12))
    assert axis.labels("wrist[0:2, 1]") == ["wrist r0c1", "wrist r1c1"]
    with pytest.raises(UnknownName, match="action_read"):
        axis.select("action_read")
    with pytest.raises(ValueError, match="camera, row and column"):
        axis.select("vision[0, 0]")


def test_state_and_chunk_steps():
    assert axis_of("proprio", LAYOUT, 1) == StepAxis(2, ("proprio",))
    steps = axis_of("chunk", LAYOUT, 8)
    assert steps.select("t3").index.tolist() == [[3], [3]]
    assert steps[0].batch_size == 1
    with pytest.raises(UnknownName, match="'t3'"):
        steps.select("t8")


def test_decoded_tokens_of_base_openvla():
    layout = TokenLayout.build([5], 1, (2, 3), False, chunk=1, autoregressive=True)
    assert axis_of("sequence", layout, layout.length, step=0) is layout
    assert axis_of("sequence", layout, 1, step=2).labels() == ["t0.dz"]


@pytest.mark.parametrize("kind, length", [("sequence", 3), ("patches", 11), ("proprio", 2), ("chunk", 7)])
def test_a_length_that_cannot_be_is_an_error(kind, length):
    with pytest.raises(ValueError, match="where the layout has"):
        axis_of(kind, LAYOUT, length)


@pytest.mark.parametrize(("kind", "selector"), [("chunk", "t3.dz"), ("chunk", "action_read.t3"), ("proprio", "text")])
def test_an_unknown_token_is_quoted_as_it_was_written(kind, selector):
    with pytest.raises(UnknownName, match=f"unknown token '{selector}'"):
        axis_of(kind, LAYOUT).select(selector)
    with pytest.raises(ValueError, match="tokens have names here"):
        axis_of(kind, LAYOUT).select(3)
