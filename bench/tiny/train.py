"""Trains Tiny FLUX: ``python -m bench.tiny.train autoencoder``, then ``transformer``, then ``controlnet``.

Each stage reads the weights directory that the one before it left and writes its own components back, with
its plan and loss curve in ``training/<stage>.json``. Interrupted, the same command goes on where it was.

Flow matching as in FLUX: x_t = (1 - s) x_0 + s e, target e - x_0, guidance embedded at its constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import nn

from bench.tiny import CONTROLS, SIZE, TEXT_TOKENS, WEIGHTS, models
from bench.tiny.draw import control_map, draw
from bench.tiny.loop import Log, Plan, fit, step_generator
from bench.tiny.scenes import Scenes, sample, training_captions

PLANS = {
    "autoencoder": Plan(
        "autoencoder", seed=1, steps=8000, batch=128, pool=24_000, learning_rate=1.5e-3,
        extra={"l1": 0.5, "kl": 1e-4, "share_of_control_maps": 0.3},
    ),
    "transformer": Plan(
        "transformer", seed=2, steps=20_000, batch=512, pool=96_000, learning_rate=1e-3,
        warmup_steps=500, ema_decay=0.9995, extra={"unsaid": 0.12},
    ),
    "controlnet": Plan(
        "controlnet", seed=3, steps=6_000, batch=512, pool=16_000, learning_rate=1e-3,
        warmup_steps=300, ema_decay=0.9995, extra={"unsaid": 0.5},
    ),
}  # fmt: skip
DRAW_CHUNK = 2000
HELD_OUT = 256
"""Pictures that the autoencoder's score is made of, and as many maps of each control."""


def _chunks(scenes: Scenes) -> list[Scenes]:
    return [scenes[i : i + DRAW_CHUNK] for i in range(0, len(scenes), DRAW_CHUNK)]


def _indices(plan: Plan, step: int, pool: int, device: str) -> tuple[torch.Tensor, torch.Generator]:
    generator = step_generator(plan, step, device)
    return torch.randint(pool, (plan.batch,), generator=generator, device=device), generator


# --- autoencoder -------------------------------------------------------------------------------------------


def _pictures_and_maps(plan: Plan, device: str) -> torch.Tensor:
    """(pool, 3, 128, 128) uint8: pictures, and the control maps that a ControlNet will encode."""
    scenes = sample(plan.pool, plan.seed, held_out=False, device=device)
    maps = int(plan.pool * plan.extra["share_of_control_maps"]) // len(CONTROLS)
    painters: list[tuple[Callable[[Scenes], torch.Tensor], Scenes]] = []
    start = 0
    for kind in CONTROLS:
        painters.append((lambda s, kind=kind: control_map(kind, s), scenes[start : start + maps]))  # type: ignore[misc]
        start += maps
    painters.append((draw, scenes[start:]))
    parts = [paint(c) for paint, some in painters for c in _chunks(some)]
    return torch.cat([part.mul(255).round().byte() for part in parts])


def train_autoencoder(plan: Plan, tiny: models.TinyFlux, work: Path, device: str, compiled: bool) -> Log:
    vae = tiny.pipe.vae.to(device, torch.float32).train()
    pool = _pictures_and_maps(plan, device)

    def terms(images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - images
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return error.square().mean() + plan.extra["l1"] * error.abs().mean() + plan.extra["kl"] * divergence

    step_loss = torch.compile(terms) if compiled else terms

    def loss(step: int) -> torch.Tensor:
        index, generator = _indices(plan, step, len(pool), device)
        images = pool[index].float() / 127.5 - 1
        latent = SIZE // models.PIXELS_PER_LATENT
        shape = (plan.batch, models.LATENT_CHANNELS, latent, latent)
        return step_loss(images, torch.randn(shape, generator=generator, device=device))

    log = fit(plan, vae, loss, work=work, device=device)
    _set_latent_scale(vae, pool[-min(len(pool), 4000) :])
    log.scores = _reconstruction_psnr_db(vae, device)
    return log


@torch.inference_mode()
def _reconstruction_psnr_db(vae: Any, device: str) -> dict[str, float]:
    """Of held-out pictures and of their control maps, each by its own mean square error."""
    scenes = sample(HELD_OUT, seed=99, held_out=True, device=device)
    kinds = {"picture": draw(scenes), **{kind: control_map(kind, scenes) for kind in CONTROLS}}
    scores = {}
    for kind, images in kinds.items():
        decoded = vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample.clamp(-1, 1) / 2 + 0.5
        scores[f"psnr_{kind}_db"] = round(float(-10 * (decoded - images).square().mean().log10()), 2)
    print(scores)
    return scores


@torch.inference_mode()
def _set_latent_scale(vae: Any, pictures: torch.Tensor) -> None:
    """Shift and scale give latents mean 0 and deviation 1, as FLUX's own configuration does."""
    vae.eval()
    means = [vae.encode(p.float() / 127.5 - 1).latent_dist.mean for p in pictures.split(200)]
    latents = torch.cat(means)
    shift, scale = float(latents.mean()), 1 / float(latents.std())
    vae.register_to_config(shift_factor=round(shift, 5), scaling_factor=round(scale, 5))


# --- what the transformer and the ControlNet share ---------------------------------------------------------


@dataclass
class Pool:
    """Encoded once: packed latents (n, 64 tokens, 64), token ids (n, 24), and control latents by kind."""

    latents: torch.Tensor
    clip_ids: torch.Tensor
    t5_ids: torch.Tensor
    controls: torch.Tensor | None = None
    """(kinds, n, 64, 64)."""


@torch.inference_mode()
def encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """(n, 3, 128, 128) in [0, 1] -> packed latents (n, 64, 64)."""
    mean = vae.encode(images * 2 - 1).latent_dist.mean
    scaled = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    n, channels, height, width = scaled.shape
    folded = scaled.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return folded.reshape(n, (height // 2) * (width // 2), channels * 4)


def _pool(plan: Plan, tiny: models.TinyFlux, device: str, kinds: tuple[str, ...] = ()) -> Pool:
    vae = tiny.pipe.vae.to(device, torch.float32).eval()
    scenes = sample(plan.pool, plan.seed, held_out=False, device=device)
    captions = training_captions(scenes, plan.seed, unsaid=plan.extra["unsaid"])
    parts = _chunks(scenes)
    return Pool(
        latents=torch.cat([encode(vae, draw(c)) for c in parts]),
        clip_ids=_token_ids(tiny.pipe.tokenizer, captions).to(device),
        t5_ids=_token_ids(tiny.pipe.tokenizer_2, captions).to(device),
        controls=torch.stack([torch.cat([encode(vae, control_map(k, c)) for c in parts]) for k in kinds])
        if kinds
        else None,
    )


def _token_ids(tokenizer: Any, captions: list[str]) -> torch.Tensor:
    """(n, 24). Each distinct caption is tokenized once: most of a pool's are said several times."""
    distinct = {text: index for index, text in enumerate(dict.fromkeys(captions))}
    ids = tokenizer(
        list(distinct), padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids[torch.tensor([distinct[text] for text in captions])]


def noise_levels(count: int, generator: torch.Generator, device: str) -> torch.Tensor:
    """Half uniform, half logit-normal: the first steps at s near 1 decide the shape and must be seen too."""
    normal = torch.sigmoid(1.2 * torch.randn(count, generator=generator, device=device))
    uniform = torch.rand(count, generator=generator, device=device)
    return torch.where(torch.arange(count, device=device) % 2 == 0, normal, uniform)


class Denoiser(nn.Module):
    """Prompt tokens and noisy latents in, velocity out, through the classes the pipelines use."""

    def __init__(self, tiny: models.TinyFlux, *, with_controlnet: bool) -> None:
        super().__init__()
        self.transformer = tiny.pipe.transformer
        self.clip, self.t5 = tiny.pipe.text_encoder, tiny.pipe.text_encoder_2
        self.controlnet = tiny.controlnet if with_controlnet else None
        side = SIZE // models.PIXELS_PER_LATENT // models.PATCH
        image_ids = tiny.pipe._prepare_latent_image_ids(1, side, side, "cpu", torch.float32)
        self.register_buffer("image_ids", image_ids, persistent=False)
        self.register_buffer("text_ids", torch.zeros(TEXT_TOKENS, 3), persistent=False)

    def forward(
        self,
        x: torch.Tensor,
        s: torch.Tensor,
        clip_ids: torch.Tensor,
        t5_ids: torch.Tensor,
        control: torch.Tensor | None = None,
        mode: torch.Tensor | None = None,
    ) -> torch.Tensor:
        inputs = {
            "hidden_states": x,
            "timestep": s,
            "guidance": models.guidance(len(x), x.device),
            "pooled_projections": self.clip(clip_ids).pooler_output,
            "encoder_hidden_states": self.t5(t5_ids)[0],
            "img_ids": self.image_ids,
            "txt_ids": self.text_ids,
            "return_dict": False,
        }
        if self.controlnet is None:
            return self.transformer(**inputs)[0]
        double, single = self.controlnet(controlnet_cond=control, controlnet_mode=mode, **inputs)
        return self.transformer(
            controlnet_block_samples=double, controlnet_single_block_samples=single, **inputs
        )[0]


def _flow_loss(
    plan: Plan, pool: Pool, denoiser: Callable[..., torch.Tensor], device: str
) -> Callable[[int], torch.Tensor]:
    def loss(step: int) -> torch.Tensor:
        index, generator = _indices(plan, step, len(pool.latents), device)
        clean = pool.latents[index]
        noise = torch.randn(clean.shape, generator=generator, device=device)
        s = noise_levels(plan.batch, generator, device)
        noisy = torch.lerp(clean, noise, s[:, None, None])
        extra: tuple[torch.Tensor, ...] = ()
        if pool.controls is not None:
            mode = torch.randint(len(CONTROLS), (plan.batch,), generator=generator, device=device)
            extra = (pool.controls[mode, index], mode[:, None])
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            velocity = denoiser(noisy, s, pool.clip_ids[index], pool.t5_ids[index], *extra)
        return F.mse_loss(velocity.float(), noise - clean)

    return loss


def train_transformer(plan: Plan, tiny: models.TinyFlux, work: Path, device: str, compiled: bool) -> Log:
    """The text encoders are trained with it: their words mean nothing before."""
    denoiser = Denoiser(tiny, with_controlnet=False).to(device, torch.float32).train()
    run = torch.compile(denoiser) if compiled else denoiser
    pool = _pool(plan, tiny, device)
    return fit(plan, denoiser, _flow_loss(plan, pool, run, device), work=work, device=device)


def train_controlnet(plan: Plan, tiny: models.TinyFlux, work: Path, device: str, compiled: bool) -> Log:
    """Everything else stays frozen. Starts from the transformer's own first single block."""
    denoiser = Denoiser(tiny, with_controlnet=True).to(device, torch.float32).train()
    denoiser.requires_grad_(False)
    tiny.controlnet.requires_grad_(True)
    for name in ("x_embedder", "context_embedder", "time_text_embed"):
        getattr(tiny.controlnet, name).load_state_dict(getattr(tiny.pipe.transformer, name).state_dict())
    first = tiny.pipe.transformer.single_transformer_blocks[0].state_dict()
    tiny.controlnet.single_transformer_blocks[0].load_state_dict(first)
    run = torch.compile(denoiser) if compiled else denoiser
    pool = _pool(plan, tiny, device, kinds=CONTROLS)
    return fit(plan, tiny.controlnet, _flow_loss(plan, pool, run, device), work=work, device=device)


STAGES = {
    "autoencoder": train_autoencoder,
    "transformer": train_transformer,
    "controlnet": train_controlnet,
}


@click.command(help=__doc__)
@click.argument("stage", type=click.Choice(list(STAGES)))
@click.option("--weights", type=click.Path(path_type=Path), default=WEIGHTS, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path(".work/tiny"), show_default=True,
              help="Where the checkpoint of an unfinished stage lies.")  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda if there is one.")
@click.option("--compile/--no-compile", "compiled", default=None, help="Default: compile on cuda.")
@click.option("--steps", type=int, help="Shorter or longer than the stage's plan.")
@click.option("--batch", type=int)
@click.option("--pool", type=int, help="Pictures drawn once and sampled from.")
@click.option("--learning-rate", type=float)
@click.option("--aim-seconds", type=float, help="Choose the steps that take about this long here.")
def main(
    stage: str,
    weights: Path,
    work: Path,
    device: str | None,
    compiled: bool | None,
    **changes: Any,
) -> None:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    compiled = device == "cuda" if compiled is None else compiled
    plan = replace(PLANS[stage], **{k: v for k, v in changes.items() if v is not None})
    if device == "cuda":
        # cuDNN's attention backward fails on these short sequences (FACTS.md section 5).
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(plan.seed)
    tiny = models.load(weights) if (weights / "model_index.json").exists() else models.build(plan.seed)
    log = STAGES[stage](plan, tiny, work, device, compiled)
    tiny.save(weights)
    log.write(weights.parent / "training" / f"{stage}.json")
    print(f"{stage}: {log.seconds:.0f} s of training, weights in {weights}")


if __name__ == "__main__":
    main()
