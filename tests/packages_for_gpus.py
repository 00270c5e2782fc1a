"""xDiT and SageAttention 1, whose own code tests run: apart, for fingerprints name what is installed."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "packages-for-gpus"
"""``make .venv/installed-development`` fills it."""
