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
