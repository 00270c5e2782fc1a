"""Compiles Quanto's CUDA extension for the Python that runs this, in an image's build: where rows run there
is no nvcc, the environment is read-only, and minutes cost money.

    python docker/build_quanto.py docker/nvcc/requirements.txt

nvcc is installed into a temporary folder and goes with it. No GPU is needed; the extension is loaded once, as
proof. A torch of another CUDA than nvcc's is left without it, and said so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ARCHITECTURES = "8.0;9.0"
"""A100; H100 and H200."""
LEAST_ARCHITECTURE = "-DQUANTO_CUDA_ARCH=800"
"""Quanto asks the GPU of this machine, of which a build has none."""
KEPT = ("quanto_cuda.so", "pytorch_version.txt")


def cuda_of(lock: str) -> str:
    """``13.0``: the CUDA of the locked nvcc."""
    found = re.search(r"^nvidia-cuda-nvcc==(\d+\.\d+)\.", lock, re.MULTILINE)
    assert found, "the lock holds no nvcc"
    return found[1]


def install_nvcc(lock: Path, folder: str) -> Path:
    """Returns what CUDA_HOME is to be."""
    pip = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--progress-bar=off"]
    options = ["--target", folder, "--no-deps", "--require-hashes", "-r", str(lock)]
    subprocess.run([*pip, *options], check=True)
    (home,) = Path(folder, "nvidia").glob("cu*")
    # As an installed CUDA is laid out, and as torch links.
    (home / "lib64").symlink_to("lib")
    (runtime,) = (home / "lib").glob("libcudart.so.*")
    (home / "lib" / "libcudart.so").symlink_to(runtime.name)
    return home


def main() -> None:
    lock = Path(sys.argv[1])
    import torch

    if torch.version.cuda != cuda_of(lock.read_text()):
        print(f"torch is of CUDA {torch.version.cuda}: Quanto's CUDA extension is not built")
        return
    with tempfile.TemporaryDirectory() as folder:
        home = install_nvcc(lock, folder)
        headers = Path(sysconfig.get_path("purelib"), "nvidia", home.name, "include")
        os.environ |= {
            "CUDA_HOME": str(home),
            "CPATH": str(headers),  # cuBLAS' and others', which came with torch
            "TORCH_CUDA_ARCH_LIST": ARCHITECTURES,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # ninja's
        }
        from optimum.quanto.library.extensions.cuda import ext

        ext.extra_cflags = ["-O3"]
        asked = [flag for flag in ext.extra_cuda_cflags if "QUANTO_CUDA_ARCH" not in flag]
        ext.extra_cuda_cflags = [*asked, LEAST_ARCHITECTURE]
        print(f"built and loaded {ext.lib.__file__}")
    for path in Path(ext.build_directory).iterdir():
        if path.name not in KEPT:
            path.unlink()


if __name__ == "__main__":
    main()
