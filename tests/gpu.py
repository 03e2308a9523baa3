"""Where tests of the GPU run, by `pytest -m gpu`: on a real one, or on a stand-in.

`JITALLOC_GPU=machine`: on the machine of `tests/ptx`, which runs the compiled PTX on the CPU, in
the geometry of a real GPU. `NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1`: in numba's simulator.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import pytest

from jitalloc import WrongDevice
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda
from tests.ptx import install
from tests.ptx.settings import settings


@cache
def has_gpu() -> bool:
    """Whether a real GPU can be used."""
    if _cuda.SIMULATED or importlib.util.find_spec("cupy") is None:
        return False
    try:
        _cuda_device.device()
    except WrongDevice:
        return False
    return True


_compiled = [pytest.mark.filterwarnings("ignore")]  # numba-cuda's own, as it compiles
REAL_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="needs a GPU, and jitalloc[cuda12] or [cuda13]"),
    *_compiled,
]
ON_DEVICE = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (_cuda.SIMULATED or has_gpu()), reason="no GPU, and NUMBA_ENABLE_CUDASIM is not set"
    ),
    *([] if _cuda.SIMULATED else _compiled),
]
# Where a device notes what waits: a GPU does not tell.
recorded = pytest.mark.skipif(
    not (_cuda.SIMULATED or install.ASKED), reason="neither the simulator nor the PTX machine"
)
RECORDED = [pytest.mark.gpu, recorded, *([] if _cuda.SIMULATED else _compiled)]
# What launches execute is counted by the machine alone, and is the same each time in order alone.
COUNTED = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not install.ASKED or settings.mode != "order", reason="counted on the PTX machine, in order"
    ),
    *_compiled,
]
