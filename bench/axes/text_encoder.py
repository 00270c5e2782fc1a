"""text_encoder: how T5's weights are stored. It encodes once an image, so this saves memory and no time."""

from __future__ import annotations

from functools import partial

from bench.axes.quantization import plain, with_bitsandbytes, with_gguf, with_quanto, with_torchao
from bench.axes.quantization.quantised import T5, option

_t5 = partial(option, target=T5)

OPTIONS = (
    plain.T5_NONE,
    _t5(
        "bnb-nf4",
        "T5 in NF4, bitsandbytes",
        with_bitsandbytes.nf4,
        package=with_bitsandbytes.PACKAGE,
        images=with_bitsandbytes.IMAGES,
        latent_tolerance=0.04,
    ),
    _t5(
        "torchao-int8wo",
        "T5 in INT8, TorchAO",
        with_torchao.int8_weight_only,
        package=with_torchao.PACKAGE,
        images=with_torchao.IMAGES,
    ),
    _t5(
        "quanto-int8",
        "T5 in INT8, Quanto",
        with_quanto.int8,
        package=with_quanto.PACKAGE,
        images=with_quanto.IMAGES,
    ),
    _t5(
        "gguf-q8_0",
        "T5 in GGUF Q8_0",
        with_gguf.q8_0,
        package=with_gguf.PACKAGE,
        misfit=with_gguf.misfit,
    ),
)
