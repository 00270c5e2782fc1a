"""GGUF files of our own: named by what is in them, written whole or not at all, read tensor by tensor.

A file's name ends in a hash of the weights themselves (a checksum of every tensor, computed where it lies),
the block format, and the versions that matter. So a file is found again by any row that holds these very
weights, and never by one that does not: where they came from is not asked.

Imports torch, gguf and diffusers: only ``with_gguf`` and the ``gguf`` command import this module.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from diffusers.quantizers.gguf.utils import GGUFParameter

from bench import layout
from bench.axes.quantization import gguf_blocks
from bench.axes.quantization.gguf_blocks import quantise

_LAYOUT = 1
"""Of what stands in a file beside the tensors; raised when it changes."""

_KEPT_AS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

Progress = Callable[[int, int], None]
"""(bytes of weights done, of all)"""


@dataclass(frozen=True)
class Contents:
    """What a file shall hold."""

    tensors: dict[str, torch.Tensor]
    """By diffusers' (or transformers') name, ``.weight`` included."""
    quantised: frozenset[str]
    """Those to quantise; the others are kept in their dtype."""
    quant_type: str

    @property
    def key(self) -> str:
        described = [
            (name, list(tensor.shape), str(tensor.dtype), checksum(tensor), name in self.quantised)
            for name, tensor in self.tensors.items()
        ]
        versions = (_LAYOUT, _quantiser_sha256(), metadata.version("gguf"))
        return hashlib.sha256(json.dumps([versions, self.quant_type, described]).encode()).hexdigest()[:16]


@cache
def _quantiser_sha256() -> str:
    """Of the code that rounds: files of before it was mended are not found again."""
    return hashlib.sha256(Path(gguf_blocks.__file__).read_bytes()).hexdigest()


def contents(module: Any, names: Iterable[str], quant_type: str, *, whole: bool) -> Contents:
    """The weights of these linears; when ``whole``, everything else of the module too, as it is."""
    quantised = frozenset(f"{name}.weight" for name in names)
    state = module.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if whole or name in quantised}
    return Contents(tensors, quantised, quant_type)


def checksum(tensor: torch.Tensor) -> int:
    """Of the bits and their order, in 64-bit integers, so that every device computes the same."""
    size = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    bits = tensor.detach().contiguous().reshape(-1).view(size).long()
    places = torch.arange(1, bits.numel() + 1, device=bits.device)
    # Odd multipliers lose no bit; sums wrap around modulo 2**64.
    return int((bits * (places * 0x9E3779B97F4A7C1 | 1)).sum())


def cached(wanted: Contents, stem: str, folder: Path, progress: Progress) -> tuple[Path, bool]:
    """(the file with these contents, whether it had to be written)"""
    path = folder / f"{stem}-{wanted.key}.gguf"
    if path.is_file():
        return path, False
    write(wanted, path, progress)
    return path, True


def write(wanted: Contents, path: Path, progress: Progress) -> None:
    """Under another name until it is whole: whatever ends this process, ``path`` is never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = layout.temporary(path)
    try:
        _write(wanted, unfinished, progress)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(wanted: Contents, path: Path, progress: Progress) -> None:
    writer = gguf.GGUFWriter(path, arch="flux")
    writer.add_string("general.description", f"{wanted.quant_type}, written by fluxbench")
    for name, tensor in wanted.tensors.items():
        kind = _kind(wanted, name)
        shape = gguf.quant_shape_to_byte_shape(tuple(tensor.shape), kind)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, total = 0, sum(map(_size_bytes, wanted.tensors.values()))
    for name, tensor in wanted.tensors.items():
        writer.write_tensor_data(_encoded(wanted, name, tensor.detach()).cpu().numpy())
        done += _size_bytes(tensor)
        progress(done, total)
    writer.close()


def _size_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kind(wanted: Contents, name: str) -> gguf.GGMLQuantizationType:
    stored = wanted.quant_type if name in wanted.quantised else _KEPT_AS[wanted.tensors[name].dtype]
    return gguf.GGMLQuantizationType[stored]


def _encoded(wanted: Contents, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name in wanted.quantised:
        return quantise(tensor, wanted.quant_type)
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def opened(path: Path) -> gguf.GGUFReader:
    """Its directory is read, its tensors are mapped. Raises ValueError for another kind of file, or half of
    one."""
    try:
        # Copy on write, for torch warns of arrays that it may not write to.
        return gguf.GGUFReader(path, mode="c")
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is no readable GGUF file ({error})") from error


def read(path: Path, names: Iterable[str], device: str) -> dict[str, GGUFParameter]:
    """These tensors, still quantised, on the device. Raises ValueError for a file that lacks one."""
    try:
        found = {tensor.name: tensor for tensor in opened(path).tensors}
    except ValueError as error:
        raise ValueError(f"{error}; remove it and run again") from error
    parameters = {}
    for name in names:
        if name not in found:
            raise ValueError(f"{path} holds no tensor {name}; remove it and run again")
        data = torch.from_numpy(found[name].data).to(device, copy=True)
        parameters[name] = GGUFParameter(data, quant_type=found[name].tensor_type)
    return parameters
