"""Heed's operators in Python: torch.ops.heed.*, functions with keyword defaults, and modules over them.

The operators live in libheed_torch.so (build target `heed_torch`). It is looked for in the environment
variable HEED_TORCH_LIBRARY, beside this file, and in build/*/lib of the repository.
"""

import os
import pathlib

import torch


def _library() -> pathlib.Path:
    given = os.environ.get("HEED_TORCH_LIBRARY")
    if given:
        return pathlib.Path(given)
    here = pathlib.Path(__file__).resolve().parent
    places = [here / "libheed_torch.so"]
    places += sorted(here.parents[1].glob("build/*/lib/libheed_torch.so"))
    places += sorted(here.parents[1].glob("build/lib/libheed_torch.so"))
    for path in places:
        if path.exists():
            return path
    raise ImportError(
        "libheed_torch.so was not found; build the target heed_torch, or set HEED_TORCH_LIBRARY to its path"
    )


if not torch.__version__.startswith("2.11"):
    raise ImportError(f"heed needs PyTorch 2.11, this is {torch.__version__}")
torch.ops.load_library(str(_library()))

from . import nn, ops  # noqa: E402

__all__ = ["nn", "ops"]
