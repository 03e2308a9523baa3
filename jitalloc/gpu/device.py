"""Where pools of the GPU live and their kernels run: CuPy's device, or numba's simulator.

Nothing of CUDA is imported before `device()` is called.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import WrongDevice
from jitalloc.gpu.cupy_device import CupyDevice, elsewhere, fitting
from jitalloc.gpu.images import compiler_versions
from jitalloc.gpu.kernel import SIMULATED, CudaKernel, cuda_kernels, load_compiler

T = TypeVar("T")


class Device(Protocol):
    """Where the arrays of a CUDA pool live, and how kernels run on them.

    While its stream is captured it makes no array and waits for nothing, but raises
    `InvalidArgument` about the argument `name`, or about the stream.

    Attributes
    ----------
    threads : int
        The most threads of a block that a call starts; twice as many where the kernel is wide.
    stream : object or None
        What `on` was given: the stream that all goes to. None: the current one of each call.
    """

    threads: int
    stream: Any

    def on(self, stream: Any) -> Device:
        """Return the device for calls on a stream: CuPy's, torch's, an address, or None."""

    def empty(self, size: int, dtype: np.dtype[Any], name: str = "out") -> Any:
        """Return a new array, its contents undefined."""

    def upload(self, values: NDArray[Any]) -> Any:
        """Return a copy of a NumPy array on the device, there for what the stream does next."""

    def keep(self, values: NDArray[Any]) -> Any:
        """Return a copy of a NumPy array on the device, there for every stream. Waits."""

    def download(self, values: Any) -> NDArray[Any]:
        """Return a copy of a device array as a NumPy array. Waits."""

    def wait(self) -> None:
        """Wait for all streams of the device."""

    def pinned(self, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a new array of the host, from which `upload_async` copies."""

    def upload_async(self, values: NDArray[Any], target: Any) -> Any:
        """Copy a pinned array to the beginning of one of the device; return an event behind it.

        In stream order, so `values` must stay as it is until `wait_for` the event.
        """

    def wait_for(self, event: Any) -> None:
        """Let the host wait until what came before an event is done."""

    def clear(self, values: Any) -> None:
        """Set every element to zero, in stream order."""

    def adopt(self, name: str, values: Any) -> Any:
        """Return `values` as an array of the device without a copy, or raise `WrongDevice`."""

    def contiguous(self, values: Any, name: str = "values") -> Any:
        """Return `values`, or a contiguous copy on the device."""

    def concatenate(self, arrays: list[Any], name: str = "arrays") -> Any:
        """Return a new array of the elements of all, in stream order."""

    def capturing(self) -> bool:
        """Return whether a CUDA graph is captured on the stream of the next launch."""

    def copy(self, values: Any, name: str = "values") -> Any:
        """Return a copy on the device, in stream order."""

    def pairs(self, values: Any) -> Any:
        """Return a contiguous array of int64 for a kernel that reads it as pairs of int32."""

    def wrap(self, values: Any) -> Any:
        """Return an array in the form in which `launch` takes it."""

    def wrap_all(self, arrays: Sequence[Any]) -> Any:
        """Return arrays in the form in which `launch` takes a tuple of them."""

    def pack(self, number: int) -> Any:
        """Return an int64 in the form in which `launch` takes it, which takes ints as well."""

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arguments: Any) -> None:
        """Start a kernel with wrapped arrays and int64 on the current stream."""

    def load(self, kernel: CudaKernel) -> Any:
        """Compile a kernel and load it, or take it from disk; a second call does nothing."""

    def carried(self, work: Callable[[], T]) -> Callable[[], T]:
        """Return `work` for another thread, there on the device and the stream of this one."""


class SimulatedArray(np.ndarray[Any, Any]):
    """What stands in for a CuPy array under the simulator."""


class SimulatedDevice:
    """Numba's simulator: each thread of a kernel is a thread of Python, blocks run in turn."""

    threads = 8
    stream: Any = None

    def __init__(self) -> None:
        self._compiler = load_compiler()
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        self._fake = FakeCUDAArray
        self._running = threading.Lock()  # what a kernel sees as `cuda` is the same for all

    def on(self, stream: Any) -> SimulatedDevice:
        return self  # there is but one

    def empty(self, size: int, dtype: np.dtype[Any], name: str = "out") -> Any:
        return np.full(size, 77, dtype).view(SimulatedArray)

    def upload(self, values: NDArray[Any]) -> Any:
        return np.array(values).view(SimulatedArray)

    def keep(self, values: NDArray[Any]) -> Any:
        return self.upload(values)

    def download(self, values: Any) -> NDArray[Any]:
        return np.array(values, copy=True, subok=False)

    def wait(self) -> None:
        pass  # a launch returns when it is done

    def pinned(self, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.full(size, 77, dtype)

    def upload_async(self, values: NDArray[Any], target: Any) -> Any:
        target[: values.size] = values

    def wait_for(self, event: Any) -> None:
        pass  # all is done at once

    def clear(self, values: Any) -> None:
        values.fill(0)

    def adopt(self, name: str, values: Any) -> Any:
        if isinstance(values, SimulatedArray):
            return values
        raise elsewhere(name, values)

    def contiguous(self, values: Any, name: str = "values") -> Any:
        # NumPy's own function would return an array of the host.
        return values if values.flags.c_contiguous else values.copy()

    def concatenate(self, arrays: list[Any], name: str = "arrays") -> Any:
        return np.concatenate(arrays).view(SimulatedArray)

    def capturing(self) -> bool:
        return False

    def copy(self, values: Any, name: str = "values") -> Any:
        return values.copy()

    def pairs(self, values: Any) -> Any:
        return values.view(np.int32)

    def wrap(self, values: Any) -> Any:
        return self._fake(values.view(np.ndarray))

    def wrap_all(self, arrays: Sequence[Any]) -> Any:
        return tuple(self.wrap(each) for each in arrays)

    def pack(self, number: int) -> Any:
        return int(number)

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arguments: Any) -> None:
        with self._running:
            self._compiler.jit(kernel.function)[blocks, threads](*arguments)

    def load(self, kernel: CudaKernel) -> Any:
        pass  # nothing is compiled

    def carried(self, work: Callable[[], T]) -> Callable[[], T]:
        return work


@cache
def _simulated() -> Device:
    return SimulatedDevice()


@cache
def _gpu(cupy: Any, number: int) -> Device:
    return CupyDevice(cupy, number)


def device() -> Device:
    """Return the device of CUDA pools, CuPy's current one; the packages are imported now.

    Raises
    ------
    WrongDevice
        They are not installed, or there is no GPU.
    """
    if SIMULATED:
        return _simulated()
    cupy: Any = None
    try:
        cupy = importlib.import_module("cupy")
        compiler_versions()
        return _gpu(cupy, cupy.cuda.runtime.getDevice())
    except ImportError as error:
        expected = f"needs the packages of jitalloc[cuda12] or jitalloc[cuda13] ({error})"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        expected = f"no GPU can be used ({error}): {fitting(cupy.cuda.runtime.driverGetVersion())}"
    raise WrongDevice("device", "cuda", expected)


def load_kernels() -> int:
    """Compile every CUDA kernel for the current GPU and load it; return how many there are."""
    gpu, kernels = device(), cuda_kernels()
    for each in kernels.values():
        gpu.load(each)
    return len(kernels)
