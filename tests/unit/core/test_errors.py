import pickle

import pytest

from mist_interp.core.errors import UnknownName, listing, suggest


def test_suggest_names_the_nearest():
    assert suggest("resid_pst", ["resid_pre", "resid_post", "mlp_out"]).startswith("did you mean 'resid_post' or")
    assert suggest("Mlp_Out", ["mlp_out"]) == "did you mean 'mlp_out'?"
    assert suggest("xyz", ["mlp_out"]) == ""


def test_listing_is_cut():
    assert listing([]) == "none"
    assert listing("ab") == "'a', 'b'"
    assert listing(str(i) for i in range(40)).endswith("... (40 in all)")


@pytest.mark.parametrize("caught", [KeyError, ValueError])
def test_unknown_name_is_one_plain_sentence(caught):
    with pytest.raises(caught) as info:
        raise UnknownName("unnorm key", "libero_spatal", ["libero_spatial", "bridge_orig"])
    text = str(info.value)
    assert text == (
        "unknown unnorm key 'libero_spatal'; did you mean 'libero_spatial'?; possible: 'libero_spatial', 'bridge_orig'"
    )
    assert str(pickle.loads(pickle.dumps(info.value))) == text
