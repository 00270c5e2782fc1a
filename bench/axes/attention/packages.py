"""FlashAttention 2 and 3, SageAttention 1 and 2: kernels of other packages than torch.

Each is one operator of ours, ``fluxbench::flash3`` and so on, put under diffusers' name for that kernel:

* what the packages export is a Python function that dynamo cannot trace whole (SageAttention says so itself,
  and breaks the graph); as an operator with a declared output shape it is one node of a full graph;
* diffusers refuses SageAttention 1, and knows FlashAttention 3 only under the name of its source build.

A kernel comes from its installed package, or prebuilt from the ``kernels`` package.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.axes.attention import backends
from bench.axes.option import Evidence, Option, Session, Unavailable

if TYPE_CHECKING:
    from bench.matrix import Row

Attend = Callable[[Any, Any, Any], Any]
"""(query, key, value), each (batch, tokens, heads, channels) -> the same shape."""


@dataclass(frozen=True)
class Package:
    """Where an option's kernel comes from and how a profile names it."""

    distribution: str
    accepts: re.Pattern[str]
    """Versions of the distribution that hold this kernel."""
    attend: Callable[[], Attend]
    """Imports it. Raises ImportError or OSError where it does not load."""
    install: str
    """The command that provides it."""
    backend: str
    """diffusers' name for the kernel, under which it is registered."""
    flag: str
    """What in diffusers' ``attention_dispatch`` says that the kernel may be asked for."""
    kernel: re.Pattern[str]
    """As the CUDA profile names it."""
    prebuilt: str | None = None
    """Member of diffusers' ``AttentionBackendName`` whose repository holds it for the ``kernels`` package."""


def _flash2() -> Attend:
    from flash_attn import flash_attn_func

    return flash_attn_func


def _flash3() -> Attend:
    from fa3_fwd_interface import flash_attn_func

    return flash_attn_func


_SAGE1_BLOCK = 64
"""Keys of one block of SageAttention 1 (attn_qk_int8_per_block.py, BLOCK_N)."""


def _sage1() -> Attend:
    """Smooths keys as sageattn does, but not in place: an operator may not change what it is given.

    Where tokens do not fill the kernel's last block (they do at FLUX's 1024 and 2048), it counts the keys
    that it lacks there as keys of score 0: it masks what it loads, not what it sums. Their values are 0, so
    they only enlarge the softmax's divisor; what the same call makes of ones says by how much.
    """
    from sageattention import sageattn

    def attend(query: Any, key: Any, value: Any) -> Any:
        smooth = key - key.mean(dim=1, keepdim=True)
        call = partial(sageattn, query, smooth, tensor_layout="NHD", smooth_k=False)
        found = call(value)
        return found if key.shape[1] % _SAGE1_BLOCK == 0 else found / call(value.new_ones(value.shape))

    return attend


def _sage2() -> Attend:
    from sageattention import sageattn

    return partial(sageattn, tensor_layout="NHD")


PACKAGES = {
    "flash2": Package(
        distribution="flash-attn",
        accepts=re.compile(r"2\.([6-9]|\d\d)\."),
        attend=_flash2,
        install="pip install flash-attn==2.8.3.post2 --no-build-isolation (compiles with nvcc)",
        backend="flash",
        flag="_CAN_USE_FLASH_ATTN",
        # torch's own copy is pytorch_flash::flash_fwd_kernel.
        kernel=re.compile(r"\bflash::flash_fwd\w*_kernel"),
        prebuilt="FLASH_HUB",
    ),
    "flash3": Package(
        distribution="fa3-fwd",
        accepts=re.compile(r"0\.0\.\d+"),
        attend=_flash3,
        install="pip install fa3-fwd==0.0.3",
        backend="_flash_3",
        flag="_CAN_USE_FLASH_ATTN_3",
        kernel=re.compile(r"\bflash::FlashAttnFwdSm90\b"),
        prebuilt="_FLASH_3_HUB",
    ),
    "sage1": Package(
        distribution="sageattention",
        accepts=re.compile(r"1\."),
        attend=_sage1,
        install="pip install sageattention==1.0.6",
        backend="sage",
        flag="_CAN_USE_SAGE_ATTN",
        kernel=re.compile(r"^_attn_fwd$"),
    ),
    "sage2": Package(
        distribution="sageattention",
        accepts=re.compile(r"2\."),
        attend=_sage2,
        install="pip install git+https://github.com/thu-ml/SageAttention (compiles with nvcc)",
        backend="sage",
        flag="_CAN_USE_SAGE_ATTN",
        kernel=re.compile(r"\bqk_int8?_sv_f(8|16)_attn_kernel"),
        prebuilt="SAGE_HUB",
    ),
}


def _label(option: str, row: Row) -> str:
    return f"{row.label}: attention {option}"


def _require(option: str, row: Row, device: str) -> None:
    _found(option, _label(option, row))


def _apply(option: str, session: Session) -> None:
    package = PACKAGES[option]
    attend, session.notes[option] = _found(option, _label(option, session.row))
    dispatch_to(package, operator(option, attend))
    backends.set_backend(session, package.backend)


@cache
def _found(option: str, label: str) -> tuple[Attend, str]:
    """The kernel and where it comes from, once a process: a prebuilt one registers operators as it is
    imported. Raises Unavailable, which begins with ``label``."""
    package = PACKAGES[option]
    try:
        return _installed(package), _version(package.distribution)
    except (ImportError, OSError) as missing:
        return _prebuilt(package, label, missing)


def _version(distribution: str) -> str:
    return f"{distribution} {metadata.version(distribution)}"


def _installed(package: Package) -> Attend:
    """Raises ImportError (a package that is missing, or of another version) or OSError (one built for
    another torch)."""
    version = metadata.version(package.distribution)
    if not package.accepts.match(version):
        raise ImportError(f"{package.distribution} {version} holds another kernel")
    return package.attend()


def _prebuilt(package: Package, label: str, missing: Exception) -> tuple[Attend, str]:
    """From the hub's cache, which `fluxbench fetch` fills: nothing is fetched, and no branch's newest taken,
    where a row is paid for. Raises Unavailable with every way to provide the kernel."""
    advice = f"{label} needs {package.distribution} ({missing}); {package.install}"
    if package.prebuilt is None:
        raise Unavailable(advice) from missing
    from diffusers.models.attention_dispatch import _HUB_KERNELS_REGISTRY, AttentionBackendName
    from huggingface_hub import snapshot_download

    source = _HUB_KERNELS_REGISTRY[AttentionBackendName[package.prebuilt]]
    name, branch = f"{source.repo_id} version {source.version}", f"v{source.version}"
    try:
        kernels = import_module("kernels")
        cached = snapshot_download(source.repo_id, repo_type="kernel", revision=branch, local_files_only=True)
        kernel = kernels.get_local_kernel(Path(cached))
        function = getattr(kernel, source.function_attr)
    except Exception as error:  # the packages' own errors have no common class
        raise Unavailable(
            f"{advice}, or the prebuilt {name}: pip install kernels, then `fluxbench fetch kernels` ({error})"
        ) from error
    attend = partial(function, tensor_layout="NHD") if package.backend == "sage" else function
    return attend, f"{name} {_commit(kernel.__file__)}"


def _commit(file: str) -> str:
    """``at commit 1a2b...`` of a kernel in the hub's cache, which keeps each in a folder of that name."""
    found = re.search(r"/snapshots/([0-9a-f]{40})/", file)
    return f"at commit {found[1]}" if found else f"from {file}"


def operator(option: str, attend: Attend) -> Any:
    """``attend`` as ``fluxbench::<option>``: one node to the compiler, which need not see inside."""
    import torch

    def run(query: Any, key: Any, value: Any) -> Any:
        found = attend(query, key, value)
        return found[0] if isinstance(found, tuple) else found  # some also return the log-sum-exp

    schema = "(Tensor query, Tensor key, Tensor value) -> Tensor"
    made = torch.library.custom_op(f"fluxbench::{option}", run, mutates_args=(), schema=schema)
    made.register_fake(lambda query, key, value: query.new_empty((*query.shape[:-1], value.shape[-1])))
    return made


def dispatch_to(package: Package, operator: Any) -> None:
    """Put the operator under diffusers' name for the kernel, for the rest of the process. With Ulysses each
    rank calls it on all tokens of its heads, between two exchanges that are diffusers'."""
    from diffusers.models import attention_dispatch

    of_heads = partial(_of_heads, operator)

    def attend(query: Any, key: Any, value: Any, attn_mask: Any = None, _parallel_config: Any = None) -> Any:
        if attn_mask is not None:
            raise NotImplementedError("this kernel takes no attention mask")
        if _parallel_config is None:
            return operator(query, key, value)
        return attention_dispatch._templated_context_parallel_attention(
            query, key, value, forward_op=of_heads, backward_op=None, _parallel_config=_parallel_config
        )

    setattr(attention_dispatch, package.flag, True)
    name = attention_dispatch.AttentionBackendName(package.backend)
    registry = attention_dispatch._AttentionBackendRegistry
    registry.register(name, supports_context_parallel=True)(attend)


def _of_heads(
    operator: Any,
    _ctx: Any,
    query: Any,
    key: Any,
    value: Any,
    _mask: Any,
    _dropout: float,
    _causal: bool,
    _scale: float | None,
    _gqa: bool,
    return_lse: bool,
    **_saved: Any,
) -> Any:
    """As diffusers' ``forward_op`` of a kernel. Ring asks for the log-sum-exp, which no operator returns."""
    if return_lse:
        raise NotImplementedError("this kernel returns no log-sum-exp, and ring attention needs it")
    return operator(query, key, value)


def _verify(option: str, session: Session) -> Evidence:
    package = PACKAGES[option]
    found = backends.evidence(
        option,
        session,
        package.backend,
        operation=re.compile(rf"^fluxbench::{option}$"),
        kernel=package.kernel,
    )
    return {"source": session.notes[option], **found}


def _option(id: str, title: str, **declared: Any) -> Option:
    return Option(
        id,
        title,
        verify=partial(_verify, id),
        require=partial(_require, id),
        apply=partial(_apply, id),
        needs_gpu=True,
        **declared,
    )


_HALF = frozenset({"fp16", "bf16"})
_WITH_KERNELS = frozenset({"torch", "sage"})
_WITH_FLASH3 = frozenset({"torch", "xdit"})
_WITH_SAGE = frozenset({"sage"})
_INT8_AND_FP8 = 0.08
"""About twice the relative error of SageAttention 2 alone, whose values are fp8 (FACTS.md section 1). Version
1 keeps values and their products in fp16, and stays within bf16's rounding."""

OPTIONS = (
    _option(
        "flash2", "FlashAttention 2", needs_sm=80, gpu_precisions=_HALF, exact=True, images=_WITH_KERNELS
    ),
    _option(
        "flash3",
        "FlashAttention 3",
        needs_sm=90,
        # fa3-fwd is built without its FP16 kernels (fa3_fwd_config.py: FLASHATTENTION_DISABLE_FP16).
        gpu_precisions=frozenset({"bf16"}),
        exact=True,
        images=_WITH_FLASH3,
    ),
    _option(
        "sage1",
        "SageAttention 1",
        needs_sm=80,
        gpu_precisions=_HALF,
        images=_WITH_SAGE,
    ),
    _option(
        "sage2",
        "SageAttention 2",
        needs_sm=80,
        gpu_precisions=_HALF,
        images=_WITH_SAGE,
        latent_tolerance=_INT8_AND_FP8,
    ),
)
