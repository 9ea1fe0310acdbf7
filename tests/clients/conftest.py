"""What worlds of several processes need is shared with the tests of the optimizers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "optim"))  # worlds.py
