"""FLUX.1-dev at full size with seeded random weights, built where it will run, in seconds.

Speed, memory and energy depend on shapes and dtypes, not on values, as long as the values stay finite and
are not all alike. So each module is built on the meta device, then every parameter is drawn on the target
device in float32 and rounded to its dtype: rows of different precision hold the same weights.

* A weight with fan-in f is normal(0, 1/sqrt(f)), about 0.02 at FLUX's 3072, whatever the width; embeddings
  are normal(0, 1); norms are 1 and biases 0. Activations then neither vanish nor overflow: at full depth
  the largest anywhere was 75, in fp16 too (a model 128 wide, on CPU).
* Layers that a ControlNet starts at zero are drawn like the others, or it would add nothing.
* What ``from_pretrained`` keeps in float32 stays in float32 here (T5's ``wo`` under fp16).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from bench.runner.published import TRANSFORMER_PARAMETERS, published

SEED = 0
INITIALISATION = "normal(0, 1/sqrt(fan-in)), embeddings normal(0, 1), norms 1, biases 0, drawn in float32"
_NOT_ARCHITECTURE = {"is_encoder_decoder", "use_cache", "tie_word_embeddings"}
"""What T5EncoderModel sets anew on any T5 config, because it is only the encoder."""


def components(dtype: Any, device: str, *, controlnet: bool) -> dict[str, Any]:
    """Everything that FluxPipeline takes, and the ControlNet when asked for.

    Raises ValueError when an installed library builds something else from the published configs.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    from bench.runner.generated_tokenizers import clip_tokenizer, t5_tokenizer

    names = _names(controlnet)
    built = {name: build(name, dtype, device, seed=SEED + n) for n, name in enumerate(names)}
    count = sum(parameter.numel() for parameter in built["transformer"].parameters())
    if count != TRANSFORMER_PARAMETERS:
        raise ValueError(f"synthetic transformer has {count} parameters, FLUX.1-dev {TRANSFORMER_PARAMETERS}")
    return {
        **built,
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler.from_config(published("scheduler").config),
    }


def weights_id(dtype: Any, *, controlnet: bool) -> str:
    """Says what the numbers mean, and a hash of configs, seed, dtype and the rule of initialisation."""
    told = {name: published(name).config for name in _names(controlnet)}
    hashed = json.dumps([told, SEED, str(dtype), INITIALISATION], sort_keys=True).encode()
    shape = f" and {published('controlnet').repository}" if controlnet else ""
    return (
        f"shape of {published('transformer').repository}{shape}, random weights (seed {SEED}),"
        f" generated tokenizers, {hashlib.sha256(hashed).hexdigest()[:12]}"
    )


def _names(controlnet: bool) -> list[str]:
    return [name for name in constructors() if controlnet or name != "controlnet"]


def constructors() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Component -> its module from a published config."""
    from diffusers import AutoencoderKL, FluxControlNetModel, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    return {
        "transformer": FluxTransformer2DModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
        "text_encoder_2": lambda config: T5EncoderModel(T5Config(**config)),
        "controlnet": FluxControlNetModel.from_config,
    }


def build(component: str, dtype: Any, device: str, seed: int) -> Any:
    """One module of the published shape, checked against its config, ready for inference."""
    config = published(component).config
    module = on_meta(lambda: constructors()[component](config))
    require_config(component, module.config, config)
    return materialise(module, dtype, device, seed)


def on_meta(construct: Callable[[], Any]) -> Any:
    """The module without storage for its parameters. Buffers are real: what a constructor computes
    into one (CLIP's position ids) could not be drawn."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return construct()


def require_config(component: str, built: Any, config: dict[str, Any]) -> None:
    """Raises ValueError when the module's config differs from the published one in an architectural value."""
    told = json.loads(json.dumps(dict(built if hasattr(built, "keys") else built.to_dict()), default=str))
    for key, value in config.items():
        if key.startswith("_") or key in _NOT_ARCHITECTURE:
            continue
        if told.get(key) != value:
            raise ValueError(
                f"synthetic {component}: {key} is {told.get(key)!r}, published {value!r}"
                f" ({published(component).repository})"
            )


def parameter_dtype(module: Any, name: str, dtype: Any) -> Any:
    """The dtype that ``from_pretrained(dtype=...)`` gives a parameter.

    transformers keeps ``_keep_in_fp32_modules`` in float32 under fp16 only, and the ``_strict`` list under
    bf16 too (transformers 5.17, modeling_utils.py, ``_get_dtype_plan``). FLUX's diffusers classes have none.
    """
    import torch

    kept = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is torch.float16:
        kept |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    return torch.float32 if kept & set(name.split(".")) else dtype


def materialise(module: Any, dtype: Any, device: str, seed: int) -> Any:
    """Replaces each meta parameter by drawn values, in the order of the module's parameters."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    for path, child in module.named_modules():
        is_embedding = isinstance(child, torch.nn.Embedding)
        for name, parameter in list(child.named_parameters(recurse=False)):
            target = parameter_dtype(module, f"{path}.{name}", dtype)
            values = _draw(name, parameter.shape, is_embedding, device, generator).to(target)
            child._parameters[name] = torch.nn.Parameter(values, requires_grad=False)
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    for child in module.modules():
        for name, buffer in child._buffers.items():
            child._buffers[name] = None if buffer is None else buffer.to(device)
    return module.eval()


def _draw(name: str, shape: Any, is_embedding: bool, device: str, generator: Any) -> Any:
    import torch

    if len(shape) < 2:
        return torch.full(shape, 1.0 if name == "weight" else 0.0, device=device)
    values = torch.randn(shape, generator=generator, device=device)
    return values if is_embedding else values.mul_((shape.numel() / shape[0]) ** -0.5)
