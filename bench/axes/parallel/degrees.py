"""What an option's name says: ``ulysses4xring2`` is Ulysses over 4 ranks times ring over 2. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

_NAME = re.compile(r"(?P<xdit>xdit-)?(?P<parts>[a-z]+\d+(x[a-z]+\d+)*)")
_PART = re.compile(r"([a-z]+?)(\d+)(?:x|$)")


@dataclass(frozen=True)
class Degrees:
    """The ranks of each way in which they share a request, 1 where that way is not used."""

    ulysses: int = 1
    """Attention heads are shared out: every rank has all tokens of some heads."""
    ring: int = 1
    """Keys and values travel round: every rank has some tokens of all heads."""
    tp: int = 1
    """The features of each layer are shared out (tensor parallel)."""
    fsdp: int = 1
    """Weights are shared out and gathered block by block; tokens are shared out as by Ulysses."""
    pipefusion: int = 1
    """Blocks are shared out; patches of the image travel through them (PipeFusion)."""
    xdit: bool = False
    """Done by xDiT and not by diffusers."""

    @property
    def ranks(self) -> int:
        return prod((self.ulysses, self.ring, self.tp, self.fsdp, self.pipefusion))

    @property
    def heads(self) -> int:
        """Ranks that the attention heads are divided among."""
        return self.ulysses * self.tp * self.fsdp

    @property
    def tokens(self) -> int:
        """Ranks that the tokens between two attentions are divided among."""
        return self.ulysses * self.ring * self.fsdp


def degrees_of(option: str) -> Degrees | None:
    """None for an option whose name holds no degree: ``none``, ``replicas``."""
    name = _NAME.fullmatch(option)
    if name is None:
        return None
    parts = {way: int(degree) for way, degree in _PART.findall(name["parts"])}
    return Degrees(**parts, xdit=name["xdit"] is not None)
