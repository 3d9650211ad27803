"""Lets the tests import `fixtures.py` beside them, and keeps numerics on one thread."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
