"""cache: which denoising steps reuse an earlier step's result."""

from __future__ import annotations

from bench.axes.cache import plain, stepwise

OPTIONS = (plain.NONE, *stepwise.OPTIONS)
