"""Imports what an image is for, as its imports.txt lists it, at the end of its build: a backend that is there
but does not load should fail then, and not on rented hardware.

A build has no GPU, and some backends refuse to load without one. That refusal, and only that, is let pass:
it comes after the package's own dependencies were found.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

EVERYWHERE = ("torch", "diffusers", "transformers", "click", "pydantic", "scipy", "pynvml", "cv2", "skimage")
NO_GPU = ("No Accelerators", "0 active drivers", "libcuda.so", "NVIDIA driver", "no CUDA")


def problem(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return None if any(sign in text for sign in NO_GPU) else f"{module}: {text}"
    return None


def main() -> None:
    modules = (*EVERYWHERE, *Path(sys.argv[1]).read_text().split())
    problems = [found for module in modules if (found := problem(module))]
    if problems:
        sys.exit("\n".join(problems))
    print(f"imported {len(modules)} packages: {', '.join(modules)}")


if __name__ == "__main__":
    main()
