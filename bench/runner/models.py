"""The pipeline of a row: weights from ``hub``, ``synthetic`` or ``tiny``, in the row's dtype, on its device.

The six pipelines share their components. They are put together by constructor and not by ``from_pipe``,
which casts every component to one dtype (float32 unless told) and so undoes T5's float32 layers under fp16.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

from bench import identity
from bench.axes.option import Unavailable
from bench.axes.precision import torch_dtype
from bench.flux import check_weights
from bench.matrix import Row
from bench.record import Weights
from bench.runner import synthetic
from bench.runner.published import NOT_FETCHED, Published, published

PIPELINES = {
    ("txt2img", False): "FluxPipeline",
    ("img2img", False): "FluxImg2ImgPipeline",
    ("inpaint", False): "FluxInpaintPipeline",
    ("txt2img", True): "FluxControlNetPipeline",
    ("img2img", True): "FluxControlNetImg2ImgPipeline",
    ("inpaint", True): "FluxControlNetInpaintPipeline",
}
"""(task, with ControlNet) -> class of diffusers."""


@dataclass(frozen=True)
class Loaded:
    pipe: Any
    """A diffusers pipeline on the device, progress bar off."""
    weights: Weights


def load(row: Row, weights: str, device: str) -> Loaded:
    """Raises Unavailable when the weights cannot be had here, ValueError when they are not the row's."""
    check_weights(row, weights)
    dtype = torch_dtype(row.precision)
    with_controlnet = row.control != "none"
    if weights == "synthetic":
        components = synthetic.components(dtype, device, controlnet=with_controlnet)
        weights_id = synthetic.weights_id(dtype, controlnet=with_controlnet)
    elif weights == "tiny":
        components, weights_id = _tiny(row)
    else:
        components, weights_id = _hub(row)
    for component in components.values():
        if hasattr(component, "parameters"):
            place(component, dtype, device)
    pipe = assemble(row, components).to(device)
    pipe.set_progress_bar_config(disable=True)
    return Loaded(pipe, _describe(weights, weights_id, pipe.transformer))


def pipeline_class(task: str, *, control: bool) -> Any:
    """Costs the first caller seconds: diffusers imports its classes when they are first named."""
    import diffusers

    return getattr(diffusers, PIPELINES[task, control])


def assemble(row: Row, components: dict[str, Any]) -> Any:
    """The row's pipeline over these components, each as it is."""
    return put_together(pipeline_class(row.task, control=row.control != "none"), components)


def put_together(pipeline: Any, components: dict[str, Any]) -> Any:
    """A pipeline of this class over those of the components that its constructor takes."""
    accepted = inspect.signature(pipeline.__init__).parameters
    return pipeline(**{name: part for name, part in components.items() if name in accepted})


def _describe(source: Any, weights_id: str, transformer: Any) -> Weights:
    parameters = list(transformer.parameters())
    return Weights(
        source=source,
        id=weights_id,
        transformer_parameters=sum(parameter.numel() for parameter in parameters),
        transformer_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
    )


def _tiny(row: Row) -> tuple[dict[str, Any], str]:
    folder = identity.TINY_WEIGHTS
    if not (folder / "model_index.json").is_file():
        raise Unavailable(f"{row.label}: no tiny weights in {folder}; get the repository's files there back")
    components = _read(row, folder, folder / "controlnet")
    return components, f"tiny FLUX, {identity.weights_sha256(folder)[:12]}"


def _hub(row: Row) -> tuple[dict[str, Any], str]:
    base, control = published("transformer"), published("controlnet")
    folder = snapshot(row.label, base)
    weights_id = f"{base.repository}@{base.revision}"
    if row.control == "none":
        return _read(row, folder, None), weights_id
    components = _read(row, folder, snapshot(row.label, control))
    return components, f"{weights_id} and {control.repository}@{control.revision}"


def _read(row: Row, folder: Path, controlnet: Path | None) -> dict[str, Any]:
    """The components of a diffusers directory, and its ControlNet when the row needs one, as they are stored:
    they are mapped files then, of which all processes share one copy, and ``place`` casts them."""
    from diffusers import FluxControlNetModel, FluxPipeline
    from safetensors import SafetensorError

    try:
        stored = {part.name: _stored_dtype(part) for part in folder.iterdir() if _tensors_of(part)}
        pipe = FluxPipeline.from_pretrained(folder, dtype=stored, local_files_only=True)
        components: dict[str, Any] = dict(pipe.components)
        if row.control != "none" and controlnet is not None:
            components["controlnet"] = FluxControlNetModel.from_pretrained(
                controlnet, dtype=_stored_dtype(controlnet), local_files_only=True
            )
    except (OSError, SafetensorError) as error:
        raise Unavailable(
            f"{row.label}: weights in {folder} are not complete ({error}); remove the folder and fetch again"
        ) from error
    return components


def _tensors_of(component: Path) -> list[Path]:
    return sorted(component.glob("*.safetensors"))


def _stored_dtype(component: Path) -> Any:
    """In which all of its tensors are exact."""
    import torch
    from safetensors import safe_open

    dtypes = set()
    for path in _tensors_of(component):
        with safe_open(path, "pt") as tensors:
            dtypes |= {tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118  no mapping
    if not dtypes:
        raise FileNotFoundError(f"no *.safetensors in {component}")
    return reduce(torch.promote_types, dtypes)


def place(module: Any, dtype: Any, device: str) -> None:
    """On the device in the dtypes of ``from_pretrained(dtype=...)``, a parameter at a time: the host's memory
    holds nothing but the files, the device's nothing twice."""
    for name, parameter in module.named_parameters():
        target = synthetic.parameter_dtype(module, name, dtype)
        parameter.data = parameter.data.to(device).to(target)
    module.to(device)  # buffers


def snapshot(label: str, source: Published) -> Path:
    """The repository at its pinned revision: from the local hub cache, else fetched with HF_TOKEN. Raises
    Unavailable, which begins with ``label``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    fetch = partial(
        snapshot_download,
        source.repository,
        revision=source.revision,
        cache_dir=os.environ.get("HF_HUB_CACHE"),
        ignore_patterns=list(NOT_FETCHED),
    )
    try:
        return Path(fetch(local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    token = os.environ.get("HF_TOKEN")
    advice = (
        f"accept the licence of {source.repository} and set HF_TOKEN for `fluxbench fetch`, or use"
        " --weights synthetic"
    )
    if not token:
        raise Unavailable(
            f"{label}: weights {source.repository} at {source.revision[:12]} are not in the local hub"
            f" cache, and HF_TOKEN is not set; {advice}"
        )
    try:
        return Path(fetch(token=token))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(f"{label}: cannot fetch {source.repository} ({error}); {advice}") from error
