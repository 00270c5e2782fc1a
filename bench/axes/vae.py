"""vae: how latents become pixels.

``parallel`` is DistVAE's: each rank decodes a band of the image's rows, and neighbours exchange the rows that
their convolutions reach over to. What comes before the upsampling (the global attention) runs on every rank.

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
from typing import TYPE_CHECKING, Any

from bench.axes.option import Evidence, NotApplied, Option, Session, Unavailable, tolerance_for
from bench.axes.parallel import group

if TYPE_CHECKING:
    from bench.matrix import Row


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


DISTVAE = "distvae==0.1.0"


def _require_distvae(row: Row, _device: str) -> None:
    label = f"{row.label}: vae parallel"
    try:
        import distvae.vae.parallel  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            f"{label} needs DistVAE ({error}); pip install {DISTVAE}, or run the row in image xdit"
        ) from error
    if group.world_size() == 1:
        raise Unavailable(f"{label} needs several ranks; `fluxbench bench {row.row}` starts those of the row")


def _apply_parallel(session: Session) -> None:
    from distvae.vae.parallel import parallelize_decoder

    _apply("full", session)
    parallelize_decoder(session.pipe.vae, None)


def _verify_parallel(session: Session) -> Evidence:
    """All ranks count the rows of latents that each of them upsampled, and judge alike."""
    vae = session.pipe.vae
    rows: list[int] = []
    patch = getattr(vae.decoder, "patch", None)
    if patch is not None:
        handle = patch.register_forward_hook(lambda _module, _inputs, band: rows.append(band.shape[-2]))
        session.run(steps=1)
        handle.remove()
    by_rank = [sum(each) for each in group.of_all_ranks(rows)]
    whole = session.row.size // _downsampling(vae)
    if sum(by_rank) != whole or not all(by_rank):
        raise NotApplied(f"vae parallel: the ranks decoded {by_rank} rows of latents, of {whole}")
    return {"rows_of_latents_by_rank": by_rank, "by": DISTVAE}


_TILED_ERROR = 0.828
"""The tiny VAE was trained on whole pictures, of 16 x 16 latents, and draws other ones from tiles of 8."""

OPTIONS = (
    Option("full", "Full VAE decode", verify=_verify_full, apply=partial(_apply, "full")),
    Option(
        "tiled",
        "TiledVAE",
        verify=_verify_tiled,
        apply=partial(_apply, "tiled"),
        latent_tolerance=tolerance_for(_TILED_ERROR),
    ),
    Option("sliced", "SlicedVAE", verify=_verify_sliced, apply=partial(_apply, "sliced"), exact=True),
    Option(
        "parallel",
        "ParallelVAE (DistVAE)",
        verify=_verify_parallel,
        require=_require_distvae,
        apply=_apply_parallel,
        images=frozenset({"cpu", "xdit"}),
        exact=True,
    ),
)
