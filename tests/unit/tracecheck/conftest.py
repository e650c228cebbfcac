"""The transcripts of tests/scenarios are read by the core's own reader."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "core"))
