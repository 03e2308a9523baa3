"""Where pools of the GPU live and their kernels run: CuPy's device, or numba's simulator.

Nothing of CUDA is imported before `device()` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc._cuda import SIMULATED, THREADS, CudaKernel, entry_name, load_compiler
from jitalloc.errors import WrongDevice

T = TypeVar("T")


class Device(Protocol):
    """Where the arrays of a CUDA pool live, and how kernels run on them.

    Attributes
    ----------
    threads : int
        The most threads of a block that a call starts; twice as many where the kernel is wide.
    """

    threads: int

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        """Return a new array, its contents undefined."""

    def upload(self, values: NDArray[Any]) -> Any:
        """Return a copy of a NumPy array on the device."""

    def download(self, values: Any) -> NDArray[Any]:
        """Return a copy of a device array as a NumPy array. The only call that waits."""

    def clear(self, values: Any) -> None:
        """Set every element to zero, in stream order."""

    def adopt(self, name: str, values: Any) -> Any:
        """Return `values` as an array of the device without a copy, or raise `WrongDevice`."""

    def contiguous(self, values: Any) -> Any:
        """Return `values`, or a contiguous copy on the device."""

    def concatenate(self, arrays: list[Any]) -> Any:
        """Return a new array of the elements of all, in stream order."""

    def wrap(self, values: Any) -> Any:
        """Return an array in the form in which `launch` takes it."""

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arguments: Any) -> None:
        """Start a kernel with wrapped arrays and int64 on the current stream."""

    def carried(self, work: Callable[[], T]) -> Callable[[], T]:
        """Return `work` for another thread, there on the device and the stream of this one."""


def _elsewhere(name: str, values: Any) -> WrongDevice:
    return WrongDevice(name, type(values).__name__, "the pool lives on the GPU")


class CupyDevice:
    """CuPy's current device."""

    threads = THREADS

    def __init__(self) -> None:
        import cupy

        load_compiler()
        self._cupy = cupy
        self._loaded: dict[tuple[str, int], Any] = {}
        cupy.cuda.runtime.getDeviceCount()

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        return self._cupy.empty(size, dtype)

    def upload(self, values: NDArray[Any]) -> Any:
        return self._cupy.asarray(values)

    def download(self, values: Any) -> NDArray[Any]:
        got: NDArray[Any] = self._cupy.asnumpy(values)
        return got

    def clear(self, values: Any) -> None:
        values.fill(0)

    def adopt(self, name: str, values: Any) -> Any:
        if isinstance(values, self._cupy.ndarray):
            return values
        if hasattr(values, "__cuda_array_interface__"):
            return self._cupy.asarray(values)
        if not isinstance(values, np.ndarray) and hasattr(values, "__dlpack__"):
            on_gpu = values.__dlpack_device__()[0] in (2, 13)  # kDLCUDA, kDLCUDAManaged
            if on_gpu:
                return self._cupy.from_dlpack(values)
        raise _elsewhere(name, values)

    def contiguous(self, values: Any) -> Any:
        return self._cupy.ascontiguousarray(values)

    def concatenate(self, arrays: list[Any]) -> Any:
        return self._cupy.concatenate(arrays)

    def wrap(self, values: Any) -> Any:
        # What numba makes of a one-dimensional array: owner, parent, number of elements, size of
        # one, address, shape, stride. `test_cuda_compile` holds the number of parameters.
        size, item = values.size, values.itemsize
        return (0, 0, size, item, values.data.ptr, size, item)

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arguments: Any) -> None:
        key = (kernel.name, self._cupy.cuda.runtime.getDevice())
        entry = self._loaded.get(key)
        if entry is None:
            entry = self._loaded[key] = self._load(kernel)
        words: list[int] = []
        for each in arguments:
            words.extend(each) if type(each) is tuple else words.append(each)
        entry((blocks,), (threads,), words)

    def carried(self, work: Callable[[], T]) -> Callable[[], T]:
        place, stream = self._cupy.cuda.Device(), self._cupy.cuda.get_current_stream()

        def there() -> T:
            with place, stream:
                return work()

        return there

    def _load(self, kernel: CudaKernel) -> Any:
        digits = str(self._cupy.cuda.Device().compute_capability)
        text = kernel.ptx((int(digits[:-1]), int(digits[-1])))
        module = self._cupy.cuda.function.Module()
        module.load(text.encode() + b"\0")
        return module.get_function(entry_name(text))


class SimulatedArray(np.ndarray[Any, Any]):
    """What stands in for a CuPy array under the simulator."""


class SimulatedDevice:
    """Numba's simulator: each thread of a kernel is a thread of Python, blocks run in turn."""

    threads = 8

    def __init__(self) -> None:
        self._compiler = load_compiler()
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        self._fake = FakeCUDAArray

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        return np.full(size, 77, dtype).view(SimulatedArray)

    def upload(self, values: NDArray[Any]) -> Any:
        return np.array(values).view(SimulatedArray)

    def download(self, values: Any) -> NDArray[Any]:
        return np.array(values, copy=True, subok=False)

    def clear(self, values: Any) -> None:
        values.fill(0)

    def adopt(self, name: str, values: Any) -> Any:
        if isinstance(values, SimulatedArray):
            return values
        raise _elsewhere(name, values)

    def contiguous(self, values: Any) -> Any:
        # NumPy's own function would return an array of the host.
        return values if values.flags.c_contiguous else values.copy()

    def concatenate(self, arrays: list[Any]) -> Any:
        return np.concatenate(arrays).view(SimulatedArray)

    def wrap(self, values: Any) -> Any:
        return self._fake(values.view(np.ndarray))

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arguments: Any) -> None:
        self._compiler.jit(kernel.function)[blocks, threads](*arguments)

    def carried(self, work: Callable[[], T]) -> Callable[[], T]:
        return work


@cache
def device() -> Device:
    """Return the device of CUDA pools; the packages of CUDA are imported now.

    Raises
    ------
    WrongDevice
        They are not installed, or there is no GPU.
    """
    try:
        return SimulatedDevice() if SIMULATED else CupyDevice()
    except ImportError as error:
        expected = f"needs the packages of jitalloc[cuda12] or jitalloc[cuda13] ({error})"
    except Exception as error:  # CUDARuntimeError of cupy, CudaSupportError of numba
        expected = f"no GPU can be used ({error})"
    raise WrongDevice("device", "cuda", expected)
