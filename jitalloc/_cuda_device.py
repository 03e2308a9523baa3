"""Where pools of the GPU live and their kernels run: CuPy's device, or numba's simulator.

Nothing of CUDA is imported before `device()` is called.
"""

from __future__ import annotations

import importlib
import struct
import threading
from array import array
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc._cuda import (
    MOST_WORDS,
    SIMULATED,
    THREADS,
    WORDS_AN_ARRAY,
    CudaKernel,
    cuda_kernels,
    load_compiler,
)
from jitalloc._cuda_images import Image, compiler_versions, kernel_image
from jitalloc.errors import WrongDevice

T = TypeVar("T")

WORD: Final = struct.Struct("q")
ARRAY: Final = struct.Struct(f"{WORDS_AN_ARRAY}q")
DLPACK_CUDA: Final = (2, 13)  # kDLCUDA, kDLCUDAManaged


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

    def capturing(self) -> bool:
        """Return whether a CUDA graph is captured on the current stream."""

    def pairs(self, values: Any) -> Any:
        """Return a contiguous array of int64 for a kernel that reads it as pairs of int32."""

    def wrap(self, values: Any) -> Any:
        """Return an array in the form in which `launch` takes it."""

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arguments: Any) -> None:
        """Start a kernel with wrapped arrays and int64 on the current stream."""

    def load(self, kernel: CudaKernel) -> Any:
        """Compile a kernel and load it, or take it from disk; a second call does nothing."""

    def carried(self, work: Callable[[], T]) -> Callable[[], T]:
        """Return `work` for another thread, there on the device and the stream of this one."""


def _elsewhere(name: str, values: Any) -> WrongDevice:
    return WrongDevice(name, type(values).__name__, "the pool lives on the GPU")


class _Parameters:
    """Room for the parameters of one launch, and their addresses as `cuLaunchKernel` wants them."""

    __slots__ = ("_table", "_words", "address", "room")

    def __init__(self) -> None:
        size = WORD.size
        self._words = array("q", bytes(size * MOST_WORDS))
        first = self._words.buffer_info()[0]
        self._table = array("q", range(first, first + size * MOST_WORDS, size))
        self.room = memoryview(self._words).cast("B")
        self.address = self._table.buffer_info()[0]


class _Thread(threading.local):
    """What a thread of the host has done."""

    bound = False  # it has a context of CUDA


class _WithoutStream:
    """An array of somebody else, without the stream that its contents wait for."""

    def __init__(self, values: Any, interface: dict[str, Any]) -> None:
        self.values = values  # kept alive
        self.__cuda_array_interface__ = interface | {"stream": None}


class CupyDevice:
    """One GPU, by CuPy. Kernels start on CuPy's current stream.

    A launch goes to the driver by CuPy's binding of `cuLaunchKernel`: CuPy's own `Function` makes
    an object for each word of the parameters, 35 of them for a call with three arrays.
    """

    threads = THREADS

    def __init__(self, cupy: Any, number: int) -> None:
        self.number = number  # CUDA's
        self._cupy = cupy
        self._array = cupy.ndarray
        self._current_device = cupy.cuda.runtime.getDevice
        self._current_stream = cupy.cuda.get_current_stream
        self._start = cupy.cuda.driver.launchKernel
        self._thread = _Thread()
        self._spare: list[_Parameters] = []  # taken while a launch fills it
        self._loading = threading.RLock()
        # By name of the kernel: the driver's handle, bytes of parameters, and CuPy's object.
        self._loaded: dict[str, tuple[int, int, Any]] = {}

    def _look(self) -> None:
        """Refuse a call while another GPU is current: streams and new arrays would be its."""
        current = self._current_device()
        if current != self.number:
            expected = f"this lives on GPU {self.number}; use it within cupy.cuda.Device"
            raise WrongDevice("current device", current, f"{expected}({self.number})")

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        return self._cupy.empty(size, dtype)

    def upload(self, values: NDArray[Any]) -> Any:
        self._look()
        return self._cupy.asarray(values)

    def download(self, values: Any) -> NDArray[Any]:
        self._look()
        got: NDArray[Any] = self._cupy.asnumpy(values)
        return got

    def clear(self, values: Any) -> None:
        self._look()
        values.data.memset_async(0, values.nbytes)

    def adopt(self, name: str, values: Any) -> Any:
        if not isinstance(values, self._array):
            values = self._foreign(name, values)
        if values.data.device_id != self.number:
            shown = f"array of GPU {values.data.device_id}"
            raise WrongDevice(name, shown, f"the pool lives on GPU {self.number}")
        return values

    def _foreign(self, name: str, values: Any) -> Any:
        """Return an array of another library as CuPy's. Its stream is waited for by ours only."""
        if hasattr(values, "__dlpack_device__"):
            if values.__dlpack_device__()[0] in DLPACK_CUDA:
                return self._cupy.from_dlpack(values)
        elif hasattr(values, "__cuda_array_interface__"):
            interface = values.__cuda_array_interface__
            theirs = interface.get("stream")
            if theirs is None:
                return self._cupy.asarray(values)
            # CuPy would let the host wait. 1 stands for the default stream, as 0 does elsewhere.
            ours = self._current_stream(self.number)
            if theirs != (ours.ptr or 1):
                ours.wait_event(self._cupy.cuda.ExternalStream(theirs).record())
            return self._cupy.asarray(_WithoutStream(values, interface))
        raise _elsewhere(name, values)

    def contiguous(self, values: Any) -> Any:
        return self._cupy.ascontiguousarray(values)

    def concatenate(self, arrays: list[Any]) -> Any:
        return self._cupy.concatenate(arrays)

    def capturing(self) -> bool:
        captured: bool = self._current_stream(self.number).is_capturing()
        return captured

    def pairs(self, values: Any) -> Any:
        return values  # a kernel goes by its own type, and where the array begins

    def wrap(self, values: Any) -> Any:
        # What numba makes of a one-dimensional array: owner, parent, number of elements, size of
        # one, address, shape, stride. `test_cuda_compile` holds the number of parameters.
        size, item = values.size, values.itemsize
        return ARRAY.pack(0, 0, size, item, values.data.ptr, size, item)

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arguments: Any) -> None:
        function, size, _keep = self._loaded.get(kernel.name) or self.load(kernel)
        if self._current_device() != self.number:
            self._look()
        if not self._thread.bound:
            self._bind()
        words = b"".join([each if type(each) is bytes else WORD.pack(each) for each in arguments])
        if len(words) != size:
            raise TypeError(f"{kernel.name} takes {size} bytes of parameters, not {len(words)}")
        try:
            parameters = self._spare.pop()
        except IndexError:
            parameters = _Parameters()
        parameters.room[:size] = words
        stream = self._current_stream(self.number).ptr
        self._start(function, blocks, 1, 1, threads, 1, 1, 0, stream, parameters.address, 0)
        self._spare.append(parameters)  # the driver has copied them

    def _bind(self) -> None:
        """Give this thread of the host a context, as CuPy does before its own launches."""
        self._cupy.cuda.runtime.memGetInfo()
        self._thread.bound = True

    def carried(self, work: Callable[[], T]) -> Callable[[], T]:
        place, stream = self._cupy.cuda.Device(self.number), self._current_stream(self.number)

        def there() -> T:
            with place, stream:
                return work()

        return there

    def load(self, kernel: CudaKernel) -> tuple[int, int, Any]:
        self._look()
        with self._loading:
            if kernel.name not in self._loaded:
                function = self._function(kernel)
                self._loaded[kernel.name] = (function.ptr, WORD.size * kernel.words, function)
            return self._loaded[kernel.name]

    def _function(self, kernel: CudaKernel) -> Any:
        digits = str(self._cupy.cuda.Device(self.number).compute_capability)
        capability = (int(digits[:-1]), int(digits[-1]))
        refused = self._cupy.cuda.driver.CUDADriverError
        try:
            return self._module(kernel_image(kernel, capability))
        except refused:  # what lay on disk may be from other times
            try:
                return self._module(kernel_image(kernel, capability, anew=True))
            except refused as error:
                fitting = _fitting(self._cupy.cuda.runtime.driverGetVersion())
                expected = f"its driver does not load {kernel.name} ({error}): {fitting}"
        raise WrongDevice("device", f"GPU {self.number}", expected)

    def _module(self, image: Image) -> Any:
        module = self._cupy.cuda.function.Module()
        module.load(image.code)
        return module.get_function(image.entry)


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

    def capturing(self) -> bool:
        return False

    def pairs(self, values: Any) -> Any:
        return values.view(np.int32)

    def wrap(self, values: Any) -> Any:
        return self._fake(values.view(np.ndarray))

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arguments: Any) -> None:
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


def _fitting(driver: int) -> str:
    """Return what fits a driver, known by the version of CUDA that it supports, or 0."""
    if not driver:
        return "no driver of NVIDIA is installed"
    major, minor = driver // 1000, driver % 1000 // 10
    fits = f"jitalloc[cuda{min(major, 13)}] fits it" if major >= 12 else "12.0 is the least"
    return f"the driver supports CUDA {major}.{minor}; {fits}"


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
        expected = f"no GPU can be used ({error}): {_fitting(cupy.cuda.runtime.driverGetVersion())}"
    raise WrongDevice("device", "cuda", expected)


def load_kernels() -> int:
    """Compile every CUDA kernel for the current GPU and load it; return how many there are."""
    gpu, kernels = device(), cuda_kernels()
    for each in kernels.values():
        gpu.load(each)
    return len(kernels)
