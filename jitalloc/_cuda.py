"""The only importer of numba.cuda and cupy: CUDA kernels, how they are compiled and launched.

Nothing of CUDA is imported before `device()` is called, so that files of kernels can be read
anywhere. What differs between a GPU and the simulator (`NUMBA_ENABLE_CUDASIM=1`) is behind
`Device`: arrays are CuPy's, or NumPy's in a dress of their own; kernels are PTX that CuPy loads
and launches on its current stream, or Python that numba's simulator runs.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Protocol, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import WrongDevice

F = TypeVar("F", bound=Callable[..., Any])

SIMULATED: Final = bool(numba.config.ENABLE_CUDASIM)
MOST_THREADS: Final = 1024  # of a block
WORDS_AN_ARRAY: Final = 7  # of a kernel's parameters; see `CupyDevice.wrap`

_kernels: dict[str, CudaKernel] = {}
_helpers: list[Callable[..., Any]] = []
_loading = threading.Lock()


class _Gpu:
    """Stands for `numba.cuda` in the files of kernels, until `load_compiler` puts that there.

    Under the simulator it stays: what a thread sees belongs to the kernel that runs.
    """

    def __getattr__(self, name: str) -> Any:
        from numba.cuda.simulator import kernel as running

        found = getattr(running._kernel_context, name)
        return _SharedMemory(found._allocations) if name == "shared" else found


class _SharedMemory:
    """Makes an array for each place in the source that asks for one, as the simulator does.

    Its own looks whether there is one and then makes it: two threads may come out with two.
    """

    lock = threading.Lock()

    def __init__(self, arrays: dict[Any, NDArray[Any]]) -> None:
        self._arrays = arrays

    def array(self, size: int, dtype: Any) -> NDArray[Any]:
        place = sys._getframe(1)
        with self.lock:
            return self._arrays.setdefault(
                (place.f_code.co_filename, place.f_lineno), np.full(size, 77, dtype)
            )


gpu: Any = _Gpu()


class CudaKernel:
    """One loop for the GPU. `Device.launch` compiles it at its first call.

    Attributes
    ----------
    name : str
    function : callable
    signature : str
    """

    __slots__ = ("function", "name", "signature")

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.name = function.__name__
        self.function = function
        self.signature = signature

    def ptx(self, capability: tuple[int, int]) -> str:
        """Return the kernel in PTX for GPUs of a compute capability; no GPU is needed."""
        compiler = load_compiler()
        from numba.core import sigutils

        arguments, _nothing = sigutils.normalize_signature(self.signature)
        with _loading:  # helpers are compiled for the device that the dispatcher believes in
            dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
            before = dispatcher.get_current_device
            dispatcher.get_current_device = lambda: _Capability(capability)
            try:
                text, _type = compiler.compile_ptx(self.function, arguments, cc=capability)
            finally:
                dispatcher.get_current_device = before
        return str(text)


class _Capability:
    def __init__(self, capability: tuple[int, int]) -> None:
        self.compute_capability = capability


def cuda_kernel(signature: str) -> Callable[[Callable[..., Any]], CudaKernel]:
    """Make a module-level function a `CudaKernel` of one Numba signature."""

    def wrap(function: Callable[..., Any]) -> CudaKernel:
        made = CudaKernel(function, signature)
        _kernels[made.name] = made
        return made

    return wrap


def device_helper(function: F) -> F:
    """Make a function callable from CUDA kernels. Every thread of a block has to call it."""
    _helpers.append(function)
    return function


def shared_helper(function: F) -> F:
    """Return the Python behind a helper of the CPU, callable from CUDA kernels.

    It must call no other helper: what a function calls is looked up where it was written.
    """
    made: F = getattr(function, "py_func", function)
    _helpers.append(made)
    return made


def cuda_kernels() -> dict[str, CudaKernel]:
    """Return every CUDA kernel by name."""
    return dict(_kernels)


@cache
def load_compiler() -> Any:
    """Import `numba.cuda`, show it the helpers, and return it."""
    from numba import cuda

    if not SIMULATED:
        from numba.cuda.extending import register_jitable

        for helper in _helpers:
            register_jitable(helper)
        functions = [*_helpers, *(each.function for each in _kernels.values())]
        for function in functions:
            names = function.__globals__
            if names.get("gpu") is gpu:
                names["gpu"] = cuda
    return cuda


class Device(Protocol):
    """Where the arrays of a CUDA pool live, and how kernels run on them.

    Attributes
    ----------
    threads : int
        The most threads of a block that a call starts.
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

    def wrap(self, values: Any) -> Any:
        """Return an array in the form in which `launch` takes it."""

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arrays: Any) -> None:
        """Start a kernel with wrapped arrays on the current stream."""


def _elsewhere(name: str, values: Any) -> WrongDevice:
    return WrongDevice(name, type(values).__name__, "the pool lives on the GPU")


class CupyDevice:
    """CuPy's current device."""

    threads = 512  # a thread may then use 128 registers; extend needs 96

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

    def wrap(self, values: Any) -> Any:
        # What numba makes of a one-dimensional array: owner, parent, number of elements, size of
        # one, address, shape, stride. `test_cuda_compile` holds the number of parameters.
        size, item = values.size, values.itemsize
        return (0, 0, size, item, values.data.ptr, size, item)

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arrays: Any) -> None:
        key = (kernel.name, self._cupy.cuda.runtime.getDevice())
        entry = self._loaded.get(key)
        if entry is None:
            entry = self._loaded[key] = self._load(kernel)
        entry((blocks,), (threads,), [word for array in arrays for word in array])

    def _load(self, kernel: CudaKernel) -> Any:
        digits = str(self._cupy.cuda.Device().compute_capability)
        text = kernel.ptx((int(digits[:-1]), int(digits[-1])))
        module = self._cupy.cuda.function.Module()
        module.load(text.encode() + b"\0")
        return module.get_function(entry_name(text))


def entry_name(ptx: str) -> str:
    """Return the name of the only kernel in a text of PTX."""
    return ptx.partition(".entry ")[2].partition("(")[0].strip()


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
        return np.ascontiguousarray(values)

    def wrap(self, values: Any) -> Any:
        return self._fake(values.view(np.ndarray))

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arrays: Any) -> None:
        self._compiler.jit(kernel.function)[blocks, threads](*arrays)


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
