"""Attention out of other packages: one operator each, under diffusers' names, proved by kernel names.

The kernels need a GPU. What is ours is not: the operator, its place in diffusers, the full graph through it,
what is said when a package is missing, and what a profile must show. A stand-in computes here, or the kernel
itself under Triton's interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from packages_for_gpus import FOLDER

from bench import correctness, tryout
from bench.axes import AXES
from bench.axes.attention import backends, packages
from bench.axes.attention.packages import PACKAGES
from bench.axes.option import NotApplied, Session, Unavailable
from bench.matrix import BASELINE, REFERENCE, Row
from bench.runner.outputs import relative_error

OPTIONS = tuple(PACKAGES)


@pytest.fixture(autouse=True)
def diffusers_as_it_was() -> Iterator[None]:
    """Put back what an operator takes the place of, for the rest of the process."""
    from diffusers.models import attention_dispatch

    registry = attention_dispatch._AttentionBackendRegistry
    tables = (registry._backends, registry._constraints, registry._supported_arg_names)
    before = [dict(table) for table in tables]
    flags = {package.flag: getattr(attention_dispatch, package.flag) for package in PACKAGES.values()}
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    for flag, value in flags.items():
        setattr(attention_dispatch, flag, value)
    registry.set_active_backend(attention_dispatch.AttentionBackendName.NATIVE)


def stand_in(query: Any, key: Any, value: Any) -> Any:
    from torch.nn.functional import scaled_dot_product_attention

    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return scaled_dot_product_attention(*heads_first).transpose(1, 2).contiguous()


def session_with(option: str, attend: Any = stand_in, **changes: str) -> Session:
    """As the option's ``apply`` on a GPU would leave it, but for the kernel."""
    session = tryout.session_of(tryout.tiny_row("cpu", {**BASELINE, **changes}, "img2img", "canny"))
    packages.dispatch_to(PACKAGES[option], packages.operator(option, attend))
    backends.set_backend(session, PACKAGES[option].backend)
    session.notes[option] = "stand-in"
    return session


def gpu_row(option: str) -> Row:
    return tryout.tiny_row("h100x1", {**REFERENCE, "attention": option})


@pytest.mark.parametrize("option", OPTIONS)
def test_an_operator_computes_in_every_block_of_transformer_and_controlnet(
    tiny_weights: Any, option: str
) -> None:
    calls = []

    def counted(*tensors: Any) -> Any:
        calls.append([tuple(tensor.shape) for tensor in tensors])
        return stand_in(*tensors)

    plain = correctness.painted(tryout.tiny_row("cpu", BASELINE, "img2img", "canny"))
    found = session_with(option, counted).run(latents=True).latents
    assert relative_error(found, plain) < correctness.ROUNDING
    assert len(calls) == 6 * (4 + 1), "6 of 8 steps, 4 blocks and 1 of the ControlNet"
    assert calls[0][0][-2:] == (4, 64), "heads and channels come last"


@pytest.mark.parametrize("compilation", ["inductor", "inductor-max"])
def test_an_operator_is_one_node_of_a_full_graph(tiny_weights: Any, compilation: str) -> None:
    """What it calls is closed to the compiler: a graph break inside would be an error under fullgraph."""
    import torch

    def breaks_graphs(*tensors: Any) -> Any:
        torch._dynamo.graph_break()
        return stand_in(*tensors)

    chosen = AXES["compilation"][compilation]
    with tryout.as_in_a_fresh_process(), tryout.captured_only():
        session = session_with("sage1", breaks_graphs, compilation=compilation)
        chosen.apply(session)
        found = session.run(latents=True).latents
        assert chosen.verify(session)["graph_breaks"] == 0
    plain = correctness.painted(tryout.tiny_row("cpu", BASELINE, "img2img", "canny"))
    assert relative_error(found, plain) < correctness.ROUNDING


@pytest.mark.parametrize("option", OPTIONS)
def test_an_operator_that_launched_no_kernel_of_its_package_is_not_applied(
    tiny_weights: Any, option: str
) -> None:
    """It is set, called and profiled: without the kernel's own name that is no evidence."""
    session = session_with(option)
    with pytest.raises(NotApplied, match=f"attention {option}: 0 of 5 attention calls of one step ran as"):
        AXES["attention"][option].verify(session)


def test_a_backend_that_was_never_set_is_not_applied(tiny_weights: Any) -> None:
    session = session_with("flash3")
    backends.set_backend(session, "native")
    with pytest.raises(NotApplied, match="attention flash3: 4 of 4 processors of the transformer"):
        AXES["attention"]["flash3"].verify(session)


def test_another_operator_under_the_same_name_is_not_applied(tiny_weights: Any) -> None:
    """SageAttention 1 and 2 share diffusers' name ``sage``: which of them ran, only the profile tells."""
    session = session_with("sage2")
    session.notes["sage1"] = "stand-in"
    with pytest.raises(NotApplied, match=r"\^fluxbench::sage1\$; the profile shows .*fluxbench::sage2"):
        AXES["attention"]["sage1"].verify(session)


NAMES = {
    # Symbols of fa3_fwd/_C.abi3.so (0.0.3), flash-attn's and SageAttention's sources, a profile on an H100.
    "flash3": "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::Collec",
    "flash2": "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, cutlass",
    "sage1": "_attn_fwd",
    "sage2": "void qk_int8_sv_f8_attn_kernel<64u, 128u, 128u, 128u, (QuantGranularity)2, (QuantGranularity)2",
    "native-flash": "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<128,",
    "cudnn": "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_cga1x1x1",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_kernels_name_proves_its_own_option_and_no_other(option: str) -> None:
    pattern = PACKAGES[option].kernel
    assert {name for name, kernel in NAMES.items() if pattern.search(kernel)} == {option}
    backends.require_calls(option, 57, pattern, {NAMES[option]: 57})
    with pytest.raises(NotApplied, match="56 of 57"):
        backends.require_calls(option, 57, pattern, {NAMES[option]: 56, NAMES["cudnn"]: 1})
    with pytest.raises(NotApplied, match="72 of 57"):
        backends.require_calls(option, 57, pattern, {NAMES[option]: 72})
    backends.require_calls(option, 57, pattern, {NAMES[option]: 114}, at_least=True)


@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("flash2", "pip install flash-attn==2.8.3.post2"),
        ("flash3", "pip install fa3-fwd==0.0.3"),
        ("sage1", "pip install sageattention==1.0.6"),
        ("sage2", "pip install git+https://github.com/thu-ml/SageAttention"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, option: str, command: str
) -> None:
    for module in ("flash_attn", "fa3_fwd_interface", "sageattention", "kernels"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unavailable) as raised:
        AXES["attention"][option].require(gpu_row(option), "cuda")
    assert str(raised.value).startswith(f"{gpu_row(option).label}: attention {option} needs")
    assert command in str(raised.value)
    assert ("pip install kernels" in str(raised.value)) == (option != "sage1"), "nobody prebuilds the first"


def test_a_prebuilt_kernel_is_named_by_the_commit_that_the_cache_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = SimpleNamespace(flash_attn_func=len)
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **how: asked.append(how) or "/cached")
    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_local_kernel=lambda *_: kernel))
    named = []
    for folder in (f"/opt/hub/kernels--x--y/snapshots/{'a1' * 20}/build", "/home/me/kernel"):
        kernel.__file__ = f"{folder}/torch-cuda/__init__.py"
        attend, source = packages._prebuilt(packages.PACKAGES["flash2"], "row 1", ImportError())
        assert attend is len
        named.append(source)
    assert named == [
        f"kernels-community/flash-attn2 version 3 at commit {'a1' * 20}",
        "kernels-community/flash-attn2 version 3 from /home/me/kernel/torch-cuda/__init__.py",
    ]
    assert all(how["local_files_only"] and how["revision"] == "v3" for how in asked), "nothing is fetched"


def test_a_kernel_that_was_not_fetched_is_unavailable_and_fetch_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the hub's own code and an empty cache: the network is not asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_local_kernel=len))
    with pytest.raises(Unavailable, match=r"flash-attn2 version 3: .*`fluxbench fetch kernels`"):
        packages._prebuilt(packages.PACKAGES["flash2"], "row 1", ImportError("none"))


@pytest.mark.parametrize("image", ["torch", "gguf", "sage", "xdit", "tensorrt"])
def test_an_image_holds_the_kernels_that_options_say_it_holds(image: str) -> None:
    lock = (Path(__file__).parents[1] / "docker" / image / "requirements.txt").read_text()
    holds = {"flash2": "kernels", "flash3": "fa3-fwd", "sage1": "sageattention", "sage2": "kernels"}
    for option, package in holds.items():
        if image in AXES["attention"][option].images:
            assert f"\n{package}==" in lock, f"{option} in image {image}"


@pytest.mark.parametrize(("option", "other"), [("sage1", "2.2.0"), ("sage2", "1.0.6")])
def test_the_other_sageattention_is_no_substitute(
    monkeypatch: pytest.MonkeyPatch, option: str, other: str
) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)
    monkeypatch.setattr(metadata, "version", lambda _name: other)
    with pytest.raises(Unavailable, match=f"sageattention {other} holds another kernel"):
        AXES["attention"][option].require(gpu_row(option), "cuda")


def test_sage1_smooths_keys_as_its_package_does_and_leaves_the_callers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``sageattn`` subtracts the keys' mean in place, which an operator must not do to its input."""
    import torch

    seen: dict[str, Any] = {}

    def sageattn(query: Any, key: Any, value: Any, **options: Any) -> Any:
        seen.update(options, mean=key.mean(dim=1).abs().max().item())
        return stand_in(query, key, value)

    module = ModuleType("sageattention")
    module.sageattn = sageattn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sageattention", module)
    query, key, value = torch.randn(3, 1, 10, 2, 64, generator=torch.Generator().manual_seed(0)).unbind()
    before = (key + 3).clone()
    found = packages._sage1()(query, before, value)
    assert torch.equal(before, key + 3)
    assert seen["mean"] < 1e-5
    assert (seen["tensor_layout"], seen["smooth_k"]) == ("NHD", False)
    assert torch.allclose(found, stand_in(query, key, value), atol=1e-5), (
        "a shift of all keys changes nothing"
    )


SAGE1_INTERPRETED = """
import json, sageattention, torch
from bench.axes.attention import packages

calls, own = [], sageattention.sageattn
sageattention.sageattn = lambda *given, **options: (calls.append(given), own(*given, **options))[1]
attend, found = packages._sage1(), {}
for tokens in (64, 88):
    calls.clear()
    query, key, value = torch.randn(3, 1, tokens, 2, 64, generator=torch.Generator().manual_seed(0)).unbind()
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    exact = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    error = (attend(query, key, value) - exact).norm() / exact.norm()
    found[tokens] = (error.item(), len(calls))
print(json.dumps(found))
"""


def test_sage1s_own_kernel_counts_no_keys_that_its_last_block_lacks() -> None:
    """The package's kernel under Triton's interpreter; -O, for the package asserts that there is a GPU."""
    folders = f"{Path(__file__).parents[1]}:{FOLDER}"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": folders}
    run = subprocess.run(
        [sys.executable, "-O", "-c", SAGE1_INTERPRETED], env=environment, capture_output=True, check=True
    )
    found = json.loads(run.stdout)
    assert {tokens: calls for tokens, (_, calls) in found.items()} == {"64": 1, "88": 2}
    for tokens, (error, _) in found.items():
        assert 0 < error < 0.02, f"{tokens} tokens: int8's rounding, and nothing else"


def test_an_operator_refuses_a_mask_and_ring_rather_than_ignore_them(tiny_weights: Any) -> None:
    import torch
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    session_with("flash2")
    tensor = torch.zeros(1, 4, 2, 64)
    with pytest.raises(NotImplementedError, match="no attention mask"):
        dispatch_attention_fn(tensor, tensor, tensor, attn_mask=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(NotImplementedError, match="no log-sum-exp, and ring attention needs it"):
        packages._of_heads(stand_in, None, tensor, tensor, tensor, None, 0.0, False, None, False, True)


def test_with_ulysses_an_operator_sees_all_tokens_of_its_ranks_heads(
    tiny_weights: Any, tmp_path: Path
) -> None:
    """A group of one process exchanges with itself: the shapes are those of two ranks."""
    import torch
    import torch.distributed as dist
    from diffusers.models.attention_dispatch import dispatch_attention_fn
    from torch.distributed.device_mesh import init_device_mesh

    seen = []

    def attend(query: Any, key: Any, value: Any) -> Any:
        seen.append(tuple(query.shape))
        return stand_in(query, key, value)

    session_with("flash3", attend)
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        ulysses = SimpleNamespace(
            ring_degree=1,
            ulysses_degree=2,
            ulysses_anything=False,
            _ulysses_mesh=init_device_mesh("cpu", (1,)),
        )
        tensor = torch.zeros(1, 44, 4, 64)
        found = dispatch_attention_fn(
            tensor, tensor, tensor, parallel_config=SimpleNamespace(context_parallel_config=ulysses)
        )
    finally:
        dist.destroy_process_group()
    assert seen == [(1, 88, 2, 64)]
    assert found.shape == tensor.shape
