"""Operators that on CUDA are one kernel of ours: equal to the formula that they replace."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def interpreted(code: str) -> None:
    """Triton's interpreter runs kernels on tensors of the CPU, if it was chosen before they are declared. It
    rounds to bf16 and fp8 in its own way, so tensors are float32 here."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: kernels are compared with their formulas where it is")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU: kernels are run by Triton's interpreter alone")
    return "cuda"


def test_the_kernel_of_gelu_and_quantisation_computes_the_formula_in_chunks_of_any_fit() -> None:
    interpreted("""
import torch
from torch.nn.functional import gelu
from bench.axes.compilation.kernels import gelu_to_fp8_rows_kernel
torch.manual_seed(0)
for features, chunk in ((192, 64), (48, 64), (80, 64)):
    values = 3 * torch.randn(5, features)
    values[1] = 0
    quotients, scales = torch.full_like(values, torch.nan), torch.empty(5, 1)
    gelu_to_fp8_rows_kernel[(5,)](
        values, quotients, scales, features=features, chunk=chunk, fp8_max=448.0, smallest_scale=1e-12
    )
    activated = gelu(values, approximate="tanh")
    expected = (activated.abs().amax(dim=1, keepdim=True) / 448).clamp(min=1e-12)
    torch.testing.assert_close(scales, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(quotients, activated / expected, rtol=1e-6, atol=1e-4)
""")


@pytest.mark.parametrize("text_tokens", [0, 3])
def test_the_kernel_of_norm_and_rotary_embedding_computes_the_formula(text_tokens: int) -> None:
    """For one stream and for two that it joins; for heads that do not come in eights."""
    interpreted(f"""
import torch
from bench.axes.compilation import kernels, rotary
torch.manual_seed(0)
lengths = [length for length in ({text_tokens}, 4) if length]
streams = [torch.randn(2, length, 12 * 16) for length in lengths]
weights = [torch.rand(16) for _ in lengths]
cos, sin = torch.rand(2, sum(lengths), 16)
expected = rotary.norm_then_rotate(streams, weights, 0.1, cos, sin)
found = kernels.rms_norm_rotary(streams, weights, 0.1, cos, sin)
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
""")


def test_gelu_and_quantisation_in_one_operator_is_the_one_after_the_other() -> None:
    import torch

    from bench.axes.compilation.products import gelu_to_fp8_rows
    from bench.axes.quantization.fp8_linear import to_fp8_rows

    values = torch.randn(6, 96, dtype=torch.bfloat16)
    values[2] = 0
    fp8, scales = gelu_to_fp8_rows(values)
    expected, expected_scales = to_fp8_rows(torch.nn.functional.gelu(values, approximate="tanh"))
    assert torch.equal(fp8.float(), expected.float())
    assert torch.equal(scales, expected_scales)
    torch.library.opcheck(gelu_to_fp8_rows, (values,), test_utils=("test_schema", "test_faketensor"))


def test_on_a_gpu_gelu_and_quantisation_in_one_kernel_differ_by_rounding_alone(cuda: str) -> None:
    import torch

    from bench.axes.compilation.products import gelu_to_fp8_rows
    from bench.axes.quantization.fp8_linear import to_fp8_rows

    values = torch.randn(64, 12288, dtype=torch.bfloat16, device=cuda)
    values[2] = 0
    fp8, scales = gelu_to_fp8_rows(values)
    expected, expected_scales = to_fp8_rows(torch.nn.functional.gelu(values, approximate="tanh"))
    torch.testing.assert_close(scales, expected_scales, rtol=2**-7, atol=0)
    assert (fp8.float() != expected.float()).float().mean() < 0.01


def test_on_a_gpu_norm_and_rotary_embedding_in_one_kernel_differ_by_rounding_alone(cuda: str) -> None:
    import torch

    from bench.axes.compilation.rotary import norm_then_rotate, rms_norm_rotary

    streams = [torch.randn(2, tokens, 24 * 128, dtype=torch.bfloat16, device=cuda) for tokens in (16, 48)]
    weights = [torch.rand(128, dtype=torch.bfloat16, device=cuda) for _ in streams]
    cos, sin = torch.rand(2, 64, 128, device=cuda)
    expected = norm_then_rotate(streams, weights, 1e-6, cos, sin)
    found = rms_norm_rotary(streams, weights, 1e-6, cos, sin)
    assert (found.float() - expected.float()).norm() <= 2**-10 * expected.float().norm()


def test_norm_and_rotary_embedding_say_what_they_return() -> None:
    import torch

    from bench.axes.compilation.rotary import rms_norm_rotary

    streams = [torch.randn(2, tokens, 4 * 8, dtype=torch.bfloat16) for tokens in (3, 5)]
    weights = [torch.rand(8, dtype=torch.bfloat16) for _ in streams]
    inputs = (streams, weights, 1e-6, *torch.rand(2, 8, 8))
    checked = torch.library.opcheck(rms_norm_rotary, inputs, test_utils=("test_schema", "test_faketensor"))
    assert set(checked.values()) == {"SUCCESS"}


def test_a_gelu_goes_into_the_quantisation_after_it_else_into_the_plain_product_before_it() -> None:
    import torch
    from diffusers.models.activations import GELU
    from diffusers.models.attention import FeedForward

    from bench.axes.compilation import products
    from bench.axes.quantization.fp8_linear import ScaledMmLinear

    torch.manual_seed(0)
    layers = torch.nn.ModuleList(FeedForward(32, activation_fn="gelu-approximate") for _ in range(4)).eval()
    for layer, quantised in zip(layers, ((), (0,), (2,), (0, 2)), strict=True):
        if 0 in quantised:
            layer.net[0].proj = ScaledMmLinear(layer.net[0].proj)
        if 2 in quantised:
            layer.net[2] = ScaledMmLinear(layer.net[2])
    hidden = torch.randn(2, 16, 32)
    with torch.no_grad():
        before = [layer(hidden) for layer in layers]
        products.gelus_into_quantisation(layers)
        products.gelus_into_products(layers)
        after = [layer(hidden) for layer in layers]
    assert [type(layer.net[0]) for layer in layers[:2]] == [products.LinearGelu, GELU]
    assert products.gelus(layers) == {"gelus_in_quantisation": (2, 2), "gelus_in_products": (1, 1)}
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))
