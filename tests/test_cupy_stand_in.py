"""The stand-in for CuPy is held to CuPy wherever that is installed, with a GPU or without."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda
from tests.cupy_stand_in import ndarray

pytestmark = pytest.mark.skipif(_cuda.SIMULATED, reason="the simulator takes the place of CuPy")


def test_the_real_cupy_has_all_of_it() -> None:
    """Names and orders of arguments, which need no GPU."""
    cupy = pytest.importorskip("cupy")
    signature = cupy.cuda.driver.launchKernel.__doc__.splitlines()[0]
    names = [each.split()[-1] for each in signature.partition("(")[2].rstrip(")").split(", ")]
    grid = ["grid_dim_x", "grid_dim_y", "grid_dim_z"]
    block = ["block_dim_x", "block_dim_y", "block_dim_z"]
    after = ["shared_mem_bytes", "stream", "kernel_params", "extra"]
    assert names == ["f", *grid, *block, *after]
    assert {"load", "get_function"} <= set(dir(cupy.cuda.function.Module))
    assert "ptr" in dir(cupy.cuda.function.Function)
    assert "device_id" in cupy.cuda.get_current_stream.__doc__
    runtime = ("getDevice", "memGetInfo", "driverGetVersion", "deviceSynchronize")
    for name in (*runtime, "CUDARuntimeError"):
        assert hasattr(cupy.cuda.runtime, name)
    for name in ("Device", "driver"):
        assert hasattr(cupy.cuda, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        stream = cupy.cuda.ExternalStream(5, 1)
    assert (stream.ptr, stream.device_id) == (5, 1)
    for name in ("is_capturing", "synchronize", "wait_event", "__enter__", "__exit__"):
        assert hasattr(stream, name)
    assert "disable_timing" in cupy.cuda.Event.__doc__
    assert "stream=None" in cupy.cuda.Event.record.__doc__
    assert issubclass(cupy.cuda.driver.CUDADriverError, Exception)
    host = np.arange(9)
    where = cupy.cuda.UnownedMemory(host.ctypes.data, host.nbytes, host, 0)
    real = cupy.ndarray(9, np.int64, cupy.cuda.MemoryPointer(where, 0))
    mine = ndarray(host, 0)
    for array, other in ((real, mine), (real[2:5], mine[2:5]), (real[::2], mine[::2])):
        assert array.data.ptr == other.data.ptr
        assert array.data.device_id == other.data.device_id
        for name in ("size", "itemsize", "nbytes", "ndim", "shape", "dtype"):
            assert getattr(array, name) == getattr(other, name)
        assert array.flags.c_contiguous == other.flags.c_contiguous
    assert cupy.ascontiguousarray(real) is real
    assert hasattr(real.data, "memset_async")
    assert hasattr(real, "copy")
    assert hasattr(cupy, "concatenate")
    gpu: Any = SimpleNamespace()
    assert _cuda_device.CupyDevice.wrap(gpu, real[2:5]) == _cuda_device.CupyDevice.wrap(
        gpu, mine[2:5]
    )
