"""vae: how latents become pixels.

Three traps of diffusers decide what ``apply`` must do:

* tiling starts only where the latents are *larger* than ``tile_latent_min_size``, which comes from the VAE's
  ``sample_size`` (1024 for FLUX.1-dev): ``enable_tiling()`` alone changes nothing for a 1024 image.
  Tiles are therefore half the image wide, at every size;
* tiling goes for the *encoder* too, whose peak is far below the decoder's, and there it changes what img2img
  and inpainting start from. Pictures are encoded whole;
* slicing splits a batch into single images, so a request for one image has nothing to slice. Its evidence
  is a decode of two latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench.axes.option import Evidence, NotApplied, Option, Session


def _downsampling(vae: Any) -> int:
    """Pixels per latent, each way."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _apply(option: str, session: Session) -> None:
    vae = session.pipe.vae
    vae.disable_tiling()
    vae.disable_slicing()
    if option == "tiled":
        vae.enable_tiling()
        vae.tile_sample_min_size = session.row.size // 2
        vae.tile_latent_min_size = vae.tile_sample_min_size // _downsampling(vae)
        vae.encode = partial(_encode_whole, vae, vae.encode)
    elif option == "sliced":
        vae.enable_slicing()


def _encode_whole(vae: Any, encode: Any, *args: Any, **kwargs: Any) -> Any:
    vae.disable_tiling()
    try:
        return encode(*args, **kwargs)
    finally:
        vae.enable_tiling()


@contextmanager
def _decoder_inputs(vae: Any) -> Iterator[list[tuple[int, ...]]]:
    """The latent shapes (batch, channels, height, width) that reached the decoder network."""
    shapes: list[tuple[int, ...]] = []
    handle = vae.decoder.register_forward_pre_hook(
        lambda _module, inputs: shapes.append(tuple(inputs[0].shape))
    )
    try:
        yield shapes
    finally:
        handle.remove()


def _verify_full(session: Session) -> Evidence:
    with _decoder_inputs(session.pipe.vae) as shapes:
        session.run(steps=1)
    whole = session.row.size // _downsampling(session.pipe.vae)
    if len(shapes) != 1 or shapes[0][2:] != (whole, whole):
        raise NotApplied(f"vae full: the decoder saw latents of {shapes}, not once {whole}x{whole}")
    return {"decoder_calls": 1, "latents": list(shapes[0])}


def _verify_tiled(session: Session) -> Evidence:
    vae = session.pipe.vae
    with _decoder_inputs(vae) as shapes:
        session.run(steps=1)
    largest = max((max(shape[2:]) for shape in shapes), default=0)
    if len(shapes) < 2 or largest > vae.tile_latent_min_size:
        raise NotApplied(
            f"vae tiled: the decoder ran {len(shapes)} time(s) on latents up to {largest} wide; tiles should"
            f" be {vae.tile_latent_min_size} wide (tiling is {'on' if vae.use_tiling else 'off'})"
        )
    return {
        "tiles_decoded": len(shapes),
        "tile_pixels": vae.tile_sample_min_size,
        "tile_latents": vae.tile_latent_min_size,
        "overlap": vae.tile_overlap_factor,
    }


def _verify_sliced(session: Session) -> Evidence:
    import torch

    vae = session.pipe.vae
    side = session.row.size // _downsampling(vae)
    two = torch.zeros(2, vae.config.latent_channels, side, side, device=session.device, dtype=vae.dtype)
    with _decoder_inputs(vae) as shapes, torch.no_grad():
        vae.decode(two)
    if [shape[0] for shape in shapes] != [1, 1]:
        raise NotApplied(
            f"vae sliced: two latents reached the decoder as batches of {[s[0] for s in shapes]}"
        )
    return {"slices_of_two_images": len(shapes), "changes_requests_from_images": 2}


OPTIONS = (
    Option("full", "Full VAE decode", verify=_verify_full, apply=partial(_apply, "full")),
    Option("tiled", "TiledVAE", verify=_verify_tiled, apply=partial(_apply, "tiled")),
    Option("sliced", "SlicedVAE", verify=_verify_sliced, apply=partial(_apply, "sliced")),
)
