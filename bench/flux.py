"""What is known of each model before anything is loaded: where its weights come from, what of it ranks can
share out, and what a request says to its pipelines. Imports no torch; hashed into every row's fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from bench import tiny

if TYPE_CHECKING:
    from bench.matrix import Row

Model = Literal["flux.1-dev", "tiny"]
Source = Literal["hub", "synthetic", "tiny"]
"""Of weights (METHOD.md section 9)."""
SOURCES: tuple[Source, ...] = get_args(Source)

TOKEN_PIXELS = 16
"""Side of the square that one image token covers: 8 in the VAE, 2 in the patch."""


@dataclass(frozen=True)
class Settings:
    """What a pipeline call says beside prompt and pictures. Nothing is left to a default: guidance's is
    7.0 in four of the six pipelines and 3.5 in the others."""

    guidance: float
    text_tokens: int
    """T5 tokens, padded to this."""
    strength: float
    """Of img2img and inpaint; 0.75 of 28 steps are 21."""
    conditioning_scale: float
    control_modes: dict[str, int]
    """Of the union ControlNet."""
    quality_prompts: int
    """Each makes one picture at the end of a row."""


@dataclass(frozen=True)
class Flux:
    title: str
    sources: tuple[Source, ...]
    heads: int
    """Of attention."""
    settings: Settings
    only_size: int | None = None
    """Pixels, both ways, where it works at one size only."""

    def tokens(self, size: int) -> dict[str, int]:
        """Of a square image of ``size`` pixels."""
        return {"image": (size // TOKEN_PIXELS) ** 2, "text": self.settings.text_tokens}


MODELS: dict[str, Flux] = {
    "flux.1-dev": Flux(
        "FLUX.1-dev",
        sources=("hub", "synthetic"),
        heads=24,
        # Modes as in the model card of InstantX/FLUX.1-dev-Controlnet-Union.
        settings=Settings(3.5, 512, 0.75, 0.7, {"canny": 0, "depth": 2, "pose": 4}, quality_prompts=4),
    ),
    "tiny": Flux(
        "tiny FLUX",
        sources=("tiny",),
        heads=4,
        settings=Settings(
            tiny.GUIDANCE,
            tiny.TEXT_TOKENS,
            0.75,
            1.0,
            {control: mode for mode, control in enumerate(tiny.CONTROLS)},
            quality_prompts=4,
        ),
        only_size=tiny.SIZE,
    ),
}


def weights_of(row: Row, asked: str) -> str:
    """``asked`` is of models whose weights are a choice; a row of another has the one source there is."""
    sources = MODELS[row.model].sources
    return asked if len(sources) > 1 else sources[0]


def check_weights(row: Row, weights: str) -> None:
    """Raises ValueError where they are not the row's, and says which are."""
    fitting = MODELS[row.model].sources
    if weights not in fitting:
        raise ValueError(
            f"{row.label}: weights {weights!r} do not fit model {row.model};"
            f" use --weights {' or '.join(fitting)}"
        )


def executed_steps(task: str, steps: int, strength: float) -> int:
    """Denoising steps that a call really runs: img2img and inpaint leave out the first ones.

    As diffusers 0.42.1's ``get_timesteps`` counts, float rounding included: 28 steps at 0.6 are 17.
    """
    if task == "txt2img":
        return steps
    return steps - int(max(steps - min(steps * strength, steps), 0))


def scheduled_steps(task: str, executed: int, strength: float) -> int:
    """The fewest steps to ask for so that ``executed`` run; a strength below 1 may leave none of few."""
    return next(n for n in range(executed, 10**6) if executed_steps(task, n, strength) == executed)
