"""What packages say of each other when they are first imported, and nobody at the terminal can use."""

from __future__ import annotations

import logging

NOISE = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
    "torch.utils._pytree": "is an Enum subclass",
    "torchao": "Failed to load ",
    "transformers.utils.import_utils": "requires torchvision (not installed)",
}
"""Logger -> words of the warning that is left out; its others are heard."""


def leave_out() -> None:
    for name in NOISE:
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return NOISE[record.name] not in record.getMessage()
