"""What a module is really made of: its linears by form, and the bytes that it occupies.

Backends hide their data in different places: torchao and quanto in tensor subclasses that report the dtype
and size of what they replaced, bitsandbytes in attributes of the parameter and of the module, ours in
buffers. So ``numel() * element_size()`` of the parameters says nothing; the storages do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Form:
    """How a linear stands in memory."""

    module: str
    """Class of the module: ``Linear``; another package's with its package, ``bitsandbytes.Linear4bit``."""
    weight: str
    """Class of its weight when that is a tensor subclass; else empty."""
    stored: str
    """dtype of the largest tensor behind the weight."""
    quantised: str = ""
    """How, as the layer itself says it: ``nf4, a scale for 64 weights``."""

    def __str__(self) -> str:
        parts = filter(None, (self.weight, self.stored, self.quantised))
        return f"{self.module}({', '.join(parts)})"

    @property
    def plain(self) -> bool:
        """torch's own linear, its weight a float of 16 bits or more."""
        return (self.module, self.weight) == ("Linear", "") and self.stored in _PLAIN_DTYPES


_PLAIN_DTYPES = {"float64", "float32", "float16", "bfloat16"}


def linears(module: Any) -> dict[str, Any]:
    """Every linear by name. Ours is no ``torch.nn.Linear``; all have the two sizes."""
    return {name: child for name, child in module.named_modules() if hasattr(child, "in_features")}


def form(linear: Any) -> Form:
    import torch

    cls, weight = type(linear), _part_here(linear.weight)
    package = "" if cls is torch.nn.Linear else f"{cls.__module__.partition('.')[0]}."
    subclass = type(weight) not in (torch.Tensor, torch.nn.Parameter)
    largest = max(leaves(weight), key=lambda leaf: leaf.numel())
    return Form(
        package + cls.__name__,
        type(weight).__name__ if subclass else "",
        str(largest.dtype).removeprefix("torch."),
        ", ".join(_said(linear, weight)),
    )


def _said(linear: Any, weight: Any) -> Iterator[str]:
    """What the modules and weights of each backend know about themselves, in its attributes."""
    if state := getattr(weight, "quant_state", None):  # bitsandbytes, four bits
        yield f"{state.quant_type}, a scale for {state.blocksize} weights"
        if state.nested:
            yield "scales quantised again"
    elif (threshold := getattr(getattr(linear, "state", None), "threshold", None)) is not None:
        yield f"outliers beyond {threshold:g} apart"  # bitsandbytes, int8
    elif hasattr(weight, "qtype"):  # Quanto
        group = getattr(weight, "_group_size", None) or weight.shape[-1]
        yield f"{weight.qtype.name}, {_a_scale_for((1, group), weight.shape)}"
    elif hasattr(weight, "block_size"):  # TorchAO
        yield _a_scale_for(weight.block_size, weight.shape)
        if inputs := getattr(weight, "act_quant_kwargs", None):
            dtype = type(inputs).__name__.removeprefix("QuantizeTensorTo").removesuffix("Kwargs").lower()
            by = type(inputs.granularity).__name__.removeprefix("Per").lower()
            yield f"inputs in {dtype}, a scale a {by}"
    elif hasattr(weight, "quant_type"):  # GGUF
        yield weight.quant_type.name
    elif hasattr(linear, "weight_scale"):  # ours
        yield _a_scale_for((1, weight.numel() // linear.weight_scale.numel()), weight.shape)


def _a_scale_for(block: Sequence[int], shape: Sequence[int]) -> str:
    """``block``: the part of a weight of this shape, (out, in), that has a scale of its own."""
    if tuple(block) == tuple(shape):
        return "a scale a tensor"
    if tuple(block) == (1, shape[-1]):
        return "a scale a row"
    return f"a scale for {math.prod(block)} weights"


def count(forms: Iterable[Form]) -> dict[str, int]:
    return dict(sorted(Counter(map(str, forms)).items()))


def occupied_bytes(module: Any) -> int:
    """Bytes of the distinct storages behind a module's parameters, buffers and hidden tensors."""
    storages = {}
    for tensor in _tensors(module):
        for leaf in leaves(tensor):
            storage = leaf.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def leaves(tensor: Any) -> Iterator[Any]:
    """The tensors that a tensor subclass wraps, all the way down; the tensor itself when it wraps none."""
    tensor = _part_here(tensor)
    if not wraps(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from leaves(getattr(tensor, name))


def wraps(tensor: Any) -> bool:
    """Whether what it holds lies in other tensors, of dtypes of their own."""
    return hasattr(_part_here(tensor), "__tensor_flatten__")


def _part_here(tensor: Any) -> Any:
    """Of a weight that ranks share out (a DTensor) this rank's part; else the tensor."""
    return getattr(tensor, "_local_tensor", tensor)


def _tensors(module: Any) -> Iterator[Any]:
    for child in module.modules():
        for owned in (*child._parameters.values(), *child._buffers.values()):
            if owned is not None:
                yield owned
                yield from _attached(owned, "quant_state")
        yield from _attached(child, "state")


def _attached(owner: Any, attribute: str) -> Iterator[Any]:
    """The scales that bitsandbytes keeps as attributes: of a weight, of its ``quant_state`` (and the nested
    one), and of an 8-bit module's ``state``."""
    import torch

    state = getattr(owner, attribute, None)
    nested = getattr(state, "state2", None)
    for holder in (owner, state, nested):
        if hasattr(holder, "__dict__"):
            yield from (value for value in vars(holder).values() if isinstance(value, torch.Tensor))
