"""What computes a denoising step. Text encoders and VAE stand outside: attention and compilation leave both
to themselves."""

from __future__ import annotations

from typing import Any


def denoisers(pipe: Any) -> dict[str, Any]:
    """The transformer, and the ControlNet where the pipeline has one, by name."""
    components = {"transformer": pipe.transformer, "controlnet": getattr(pipe, "controlnet", None)}
    return {name: module for name, module in components.items() if module is not None}


def processors(module: Any) -> list[Any]:
    """The processors that diffusers dispatches through: those that can hold a backend."""
    return [
        child.processor
        for child in module.modules()
        if hasattr(getattr(child, "processor", None), "_attention_backend")
    ]
