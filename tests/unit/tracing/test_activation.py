"""Do the names on an activation point at the right tokens, and is it otherwise an ordinary tensor?"""

import copy
import pickle

import einops
import numpy as np
import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Site
from mist_interp.tracing.activation import NamedActivation, take

WORDS = [["▁pick", "▁the", "▁bo", "wl", "▁"]] * 2
LAYOUT = TokenLayout.build([6, 6], 2, (2, 3), True, words=WORDS)
SITE = Site("blocks.3.hook_resid_post")
# Value k at token k, so that what is read tells where it came from.
VALUES = torch.arange(LAYOUT.length)[None, :, None] + torch.tensor([0.0, 1000.0])[:, None, None] + torch.zeros(5)


@pytest.fixture
def act():
    return NamedActivation.wrap(VALUES, SITE, LAYOUT)


def test_it_is_a_tensor_to_everyone(act):
    assert isinstance(act, torch.Tensor) and act.shape == VALUES.shape and act.dtype == VALUES.dtype
    assert act.values.data_ptr() == VALUES.data_ptr() and type(act.values) is torch.Tensor
    assert torch.allclose(act, VALUES) and torch.equal(torch.as_tensor(act), VALUES)
    torch.testing.assert_close(act, VALUES)
    assert np.array_equal(np.asarray(act), VALUES.numpy()) and np.array_equal(act.numpy(), VALUES.numpy())
    assert einops.rearrange(act, "b t d -> t b d").shape == (LAYOUT.length, 2, 5)
    assert torch.stack([act, act]).shape[0] == 2


@pytest.mark.parametrize(
    "operation",
    [lambda a: a - VALUES, lambda a: VALUES - a, lambda a: a.detach(), lambda a: a.double(), lambda a: a[0], abs],
)
def test_what_is_computed_from_it_has_no_names(act, operation):
    assert type(operation(act)) is torch.Tensor


def test_it_is_copied_and_pickled_with_its_names(act):
    for twin in (copy.deepcopy(act), pickle.loads(pickle.dumps(act))):
        assert isinstance(twin, NamedActivation) and twin.site == SITE and torch.equal(twin, VALUES)
        assert torch.equal(twin.proprio, act.proprio)
    assert repr(act) == "NamedActivation(blocks.3.hook_resid_post, shape=(2, 76, 5), torch.float32)"


def test_patches(act):
    assert act.agentview[1, 2][:, 0].tolist() == [1 + 5, 1001 + 5]
    assert act.wrist[0, 1][0, 0] == 1 + 6 + 1
    assert act.wrist[-1, -1][0, 0] == 12
    assert act.agentview[0:2, 1:3].shape == (2, 2, 2, 5)
    assert torch.equal(act.vision[:, 1], act.wrist.values)
    assert act.vision.shape == (2, 2, 2, 3, 5)


def test_tokens_by_name(act):
    assert act.proprio[0, 0] == 13 and act.bos[0, 0] == 0 and act.stop[0, 0] == LAYOUT.length - 1
    assert act.text["bowl"][0, :, 0].tolist() == [16, 17]
    assert act.text.values.shape == (2, 5, 5)
    assert act.at(["bos", "agentview[0, 0]"])[0, :, 0].tolist() == [0, 1]


def test_actions(act):
    first = 18  # the closing token of the prompt
    assert act.action["t0.dx"][0, 0] == first
    assert act.action["t3.dz"][0, 0] == first + 3 * 7 + 2
    assert act.action["dz"][0, :, 0].tolist() == [first + 7 * step + 2 for step in range(8)]
    assert act.action["t1"].shape == (2, 7, 5)
    assert act.action.values.shape == (2, 8, 7, 5)
    assert torch.equal(act.action_slot["t0.dx"], act.action["t0.dy"])


def test_only_some_tokens_were_kept(act):
    kept = NamedActivation.wrap(take(VALUES, LAYOUT.select("action_read"), 1), SITE, LAYOUT, "action_read")
    assert torch.equal(kept.action["t3.dz"], act.action["t3.dz"])
    assert torch.equal(kept.action.values, act.action.values)
    assert kept.labels()[:2] == ["read t0.dx", "read t0.dy"]
    with pytest.raises(ValueError, match="only the tokens 'action_read'"):
        kept.agentview[0, 0]


def test_wrong_tokens_say_so(act):
    with pytest.raises(UnknownName, match="'dz'"):
        act.action["dq"]
    with pytest.raises(UnknownName, match="'bowl'"):
        act.text["bowls"]
    with pytest.raises(IndexError):
        act.agentview[2, 0]
    with pytest.raises(ValueError, match="no pairs of tokens"):
        act.between("proprio", "vision")


def test_prompts_of_different_length():
    layout = TokenLayout.build([6, 4], 2, (2, 3), True)
    act = NamedActivation.wrap(VALUES, SITE, layout)
    assert act.action["t0.dx"][:, 0].tolist() == [18, 1016]
    with pytest.raises(ValueError, match=r"\[5, 3\] tokens of 'text'"):
        act.at("text")
    both = take(VALUES, layout.select("text"), 1)
    assert both[1, :, 0].tolist() == [1014, 1015, 1016, 0, 0]


def test_patterns_have_two_token_axes():
    pattern = torch.rand(2, 4, LAYOUT.length, LAYOUT.length)
    act = NamedActivation.wrap(pattern, Site("blocks.0.attn.hook_pattern"), LAYOUT)
    part = act.between("action_read.dz", "agentview")
    assert part.shape == (2, 4, 8, 6)
    assert part[0, 1, 2, 3] == pattern[0, 1, 18 + 7 * 2 + 2, 1 + 3]
    assert torch.equal(act.proprio, pattern[:, :, 13])
