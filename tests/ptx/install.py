"""Puts the machine where jitalloc looks for a GPU."""

from __future__ import annotations

import os
import sys

ASKED = os.environ.get("JITALLOC_GPU") == "machine"


def install() -> None:
    """Let `import cupy` find the machine, and kernels stay PTX."""
    from jitalloc.gpu import images as _cuda_images
    from tests.ptx import cupy

    sys.modules["cupy"] = cupy
    _cuda_images._linked = lambda _text, _capability: None
