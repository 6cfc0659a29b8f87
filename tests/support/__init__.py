"""What the tests share: the real parts they are made with, and the node's words.

No test file imports another: what two of them use lies here, what is a fixture in tests/conftest.py.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # where tbmon.py and aggregator.py lie
# A failed assertion of a helper shows its values, as one of a test does.
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in MODULES))
