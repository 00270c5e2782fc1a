"""Tiny FLUX: a small, really trained FLUX of the same classes as FLUX.1-dev, shipped in this repository.

``scenes`` says what can be in a picture and how it is captioned, ``draw`` paints scenes and their control
maps, ``checker`` reads a picture back, ``models`` holds the dimensions, ``train`` has one command per stage,
``score`` measures the shipped weights and ``card`` writes the model card from those measurements.
"""

from pathlib import Path

SIZE = 128
"""Pixels, both ways. The model works at the resolution it was trained at, and at no other."""

TEXT_TOKENS = 24
"""T5 tokens, at training and at sampling: FLUX does not mask padding, so they must be equal."""

CONTROLS = ("canny", "depth", "pose")
"""In the order of the union ControlNet's modes."""

STEPS = 28
GUIDANCE = 3.5

WEIGHTS = Path(__file__).parent / "weights"
"""A diffusers directory for FluxPipeline; ``controlnet/`` beside it is the union ControlNet."""
