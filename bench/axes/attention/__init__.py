"""attention: which kernel computes softmax(QK)V in the transformer and the ControlNet."""

from __future__ import annotations

from bench.axes.attention import packages, torchs

OPTIONS = (*torchs.OPTIONS, *packages.OPTIONS)
