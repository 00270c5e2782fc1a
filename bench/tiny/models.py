"""The dimensions of Tiny FLUX: the classes of FLUX.1-dev, small.

Every linear layer's sizes are multiples of 64 and heads are 64 wide, so that each quantisation and
attention backend the bench knows accepts them; 4 heads divide over 2 and 4 GPUs; 64 image and 24 text tokens
divide by 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from bench.tiny import CONTROLS, GUIDANCE, SIZE, TEXT_TOKENS
from bench.tiny.scenes import vocabulary

LATENT_CHANNELS = 16
PATCH = 2
"""FLUX packs 2 x 2 latents into one token."""
PIXELS_PER_LATENT = 8

FLUX_SIZES: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS * PATCH**2,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 24, 24),
}


def autoencoder() -> AutoencoderKL:
    """No attention: it keeps the file small and the decoder local. Training sets shift and scale."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=SIZE,
        shift_factor=0.0,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(num_layers=1, num_single_layers=3, **FLUX_SIZES)


def controlnet() -> FluxControlNetModel:
    """Union of canny, depth and pose, in that order of modes."""
    return FluxControlNetModel(num_layers=0, num_single_layers=1, num_mode=len(CONTROLS), **FLUX_SIZES)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Shift 1 and no dynamic shifting, as in training."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)


def t5_tokenizer() -> T5Tokenizer:
    """One token a word; a word outside the vocabulary is spelt in letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -20.0)]
    pieces += [(f"▁{word}", -2.0) for word in vocabulary() if len(word) > 1]
    pieces += [(piece, -12.0) for letter in "abcdefghijklmnopqrstuvwxyz," for piece in (letter, f"▁{letter}")]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_TOKENS)


def clip_tokenizer() -> CLIPTokenizer:
    """One token a word, as byte pair merges from the left; other words are spelt in letters."""
    letters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in vocabulary():
        units = [*word[:-1], f"{word[-1]}</w>"]
        while len(units) > 1:
            if (units[0], units[1]) not in merges:
                merges.append((units[0], units[1]))
                tokens.append(units[0] + units[1])
            units[:2] = [units[0] + units[1]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_TOKENS)  # type: ignore[arg-type]


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=_multiple_of_64(len(tokenizer)),
            d_model=FLUX_SIZES["joint_attention_dim"],
            d_kv=64,
            d_ff=128,
            num_layers=2,
            num_heads=1,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,  # type: ignore[call-arg]
            dropout_rate=0.0,
        )
    )


def clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=_multiple_of_64(len(tokenizer)),
            hidden_size=FLUX_SIZES["pooled_projection_dim"],
            projection_dim=FLUX_SIZES["pooled_projection_dim"],
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=TEXT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _multiple_of_64(count: int) -> int:
    return -(-count // 64) * 64


@dataclass
class TinyFlux:
    """Everything that a pipeline needs, before or after training."""

    pipe: Any
    """A FluxPipeline. (diffusers' classes get their methods at run time, out of a type checker's sight.)"""
    controlnet: Any
    """A FluxControlNetModel."""

    def to(self, device: str, dtype: torch.dtype = torch.float32) -> TinyFlux:
        self.pipe.to(device, dtype)
        self.controlnet.to(device, dtype)
        return self

    def save(self, folder: Path) -> None:
        """A diffusers directory in bf16, the ControlNet in ``controlnet/`` beside the components."""
        self.pipe.to("cpu", torch.bfloat16).save_pretrained(folder)
        self.controlnet.to("cpu", torch.bfloat16).save_pretrained(folder / "controlnet")


def build(seed: int = 0) -> TinyFlux:
    """Untrained. ``seed`` fixes the weights on every machine."""
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    pipe = FluxPipeline(
        transformer=transformer(),
        vae=autoencoder(),
        text_encoder=clip_encoder(clip),
        text_encoder_2=t5_encoder(t5),
        tokenizer=clip,
        tokenizer_2=t5,
        scheduler=scheduler(),
    )
    return TinyFlux(pipe, controlnet())


def load(folder: Path, dtype: torch.dtype = torch.float32) -> TinyFlux:
    pipe = FluxPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    cn = FluxControlNetModel.from_pretrained(folder / "controlnet", dtype=dtype, local_files_only=True)
    return TinyFlux(pipe, cn)


def guidance(count: int, device: torch.device | str) -> torch.Tensor:
    return torch.full((count,), GUIDANCE, device=device)
