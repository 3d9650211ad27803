"""Is `import mist_interp` quick, and are the public names there?"""

import subprocess
import sys

import mist_interp


def test_the_public_names_are_there():
    for name in ("HookedVLA", "PolicyInputs", "ActionChunk", "ActivationCache", "Site", "TokenLayout"):
        assert name in mist_interp.__all__ and name in dir(mist_interp)
        assert getattr(mist_interp, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(mist_interp, "HookedVLM")


def test_importing_costs_less_than_three_seconds_beyond_torch():
    code = (
        "import time, torch; start = time.process_time(); import mist_interp; "
        "lazy = time.process_time() - start; mist_interp.PolicyInputs, mist_interp.Site, mist_interp.TokenLayout; "
        "print(lazy, time.process_time() - start)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lazy, used = map(float, run.stdout.split())
    assert lazy < 0.5 and used < 3.0


def test_what_the_translation_table_names_is_there():
    """The table for users of other packages, in the package's docstring."""
    import re

    import mist_interp.tracing as tracing
    from mist_interp.core.layout import TokenLayout
    from mist_interp.core.names import Site
    from mist_interp.tracing.decomposition import ResidualStack

    text = tracing.__doc__.split("What is refused")[0]
    for name in re.findall(r"vla\.(\w+)", text):
        assert hasattr(tracing.HookedVLA, name) or name == "cfg", name
    for name in ("find", "patch", "region", "labels"):
        assert name in text and hasattr(TokenLayout, name)
    for name in ("accumulated_resid", "decompose_resid", "stack_head_results", "stack_neuron_results"):
        assert name in text and hasattr(tracing.ActivationCache, name)
    for name in ("get_full_resid_decomposition", "select", "nbytes", "stack", "save", "load", "items", "to"):
        assert name in text and hasattr(tracing.ActivationCache, name)
    assert hasattr(ResidualStack, "renorm") and hasattr(ResidualStack, "frozen_norm")
    for name in ("pattern", "attn_scores"):
        assert f'"{name}"' in text and Site(f"blocks.0.attn.hook_{name}")
    for name in re.findall(r"t\.(\w+)\[", text):
        assert Site(f"blocks.5.hook_{name}")


def test_tiny_is_a_policy():
    from mist_interp import HookedVLA

    assert HookedVLA.tiny(variant="discrete").cfg.variant == "discrete"
    assert set(HookedVLA.tiny().cfg.norm_stats) == {"random"}
