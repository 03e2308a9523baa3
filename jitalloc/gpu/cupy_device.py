"""One GPU by CuPy: its arrays, its streams, and how kernels are handed to the driver.

CuPy itself is imported by `_cuda_device.device()`, when somebody asks for a device.
"""

from __future__ import annotations

import os
import struct
import threading
import warnings
import weakref
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import InvalidArgument, WrongDevice
from jitalloc.gpu.images import Image, kernel_image
from jitalloc.gpu.kernel import MOST_WORDS, THREADS, WORDS_AN_ARRAY, CudaKernel

T = TypeVar("T")

WORD: Final = struct.Struct("q")
ARRAY: Final = struct.Struct(f"{WORDS_AN_ARRAY}q")
DLPACK_CUDA: Final = (2, 13)  # kDLCUDA, kDLCUDAManaged
LEGACY_STREAM: Final = 1  # like 0, it stands for the default stream, which cannot be captured
GONE: Final = "what a call makes for itself is freed before the graph runs"


def elsewhere(name: str, values: Any) -> WrongDevice:
    """Return the exception for an array that does not live on a GPU."""
    return WrongDevice(name, type(values).__name__, "the pool lives on the GPU")


def fitting(driver: int) -> str:
    """Return what fits a driver, known by the version of CUDA that it supports, or 0."""
    if not driver:
        return "no driver of NVIDIA is installed"
    major, minor = driver // 1000, driver % 1000 // 10
    fits = f"jitalloc[cuda{min(major, 13)}] fits it" if major >= 12 else "12.0 is the least"
    return f"the driver supports CUDA {major}.{minor}; {fits}"


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


class _Handle:
    """A stream of somebody else, as far as an event asks for it."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class CupyDevice:
    """One GPU, by CuPy. Kernels start on CuPy's current stream.

    A launch goes to the driver by CuPy's binding of `cuLaunchKernel`: CuPy's own `Function` makes
    an object for each word of the parameters, 35 of them for a call with three arrays.

    While the stream is captured, nothing is made that the captured graph would refer to: CuPy takes
    back the memory of an array that nobody holds any more, and the graph would write to it still.
    """

    threads = THREADS
    stream: Any = None

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
        _made.add(self)

    def on(self, stream: Any) -> CupyDevice:
        return self if stream is None else StreamDevice(self, stream)

    def _look(self) -> None:
        """Refuse a call while another GPU is current: streams and new arrays would be its."""
        current = self._current_device()
        if current != self.number:
            expected = f"this lives on GPU {self.number}; use it within cupy.cuda.Device"
            raise WrongDevice("current device", current, f"{expected}({self.number})")

    def capturing(self) -> bool:
        stream = self._current_stream(self.number)
        return bool(stream.ptr > LEGACY_STREAM and stream.is_capturing())

    def _refuse_captured(self, text: str, name: str = "stream", value: Any = None) -> None:
        """Raise `InvalidArgument` about the argument `name` while the stream is captured."""
        stream = self._current_stream(self.number)
        if self.capturing():
            raise InvalidArgument(name, stream.ptr if name == "stream" else value, text)

    def empty(self, size: int, dtype: np.dtype[Any], name: str = "out") -> Any:
        if size:
            self._refuse_captured(f"needed while a stream is captured: {GONE}", name)
        return self._cupy.empty(size, dtype)

    def upload(self, values: NDArray[Any]) -> Any:
        self._look()
        self._refuse_captured(f"captured, and the call copies an array of the host: {GONE}")
        return self._cupy.asarray(values)

    def keep(self, values: NDArray[Any]) -> Any:
        there = self.upload(values)
        self._current_stream(self.number).synchronize()
        return there

    def download(self, values: Any) -> NDArray[Any]:
        self._look()
        self._refuse_captured("captured, and the call waits for the GPU")
        got: NDArray[Any] = self._cupy.asnumpy(values)
        return got

    def wait(self) -> None:
        self._look()
        self._refuse_captured("captured, and the call waits for the GPU")
        self._cupy.cuda.runtime.deviceSynchronize()

    def pinned(self, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        memory = self._cupy.cuda.alloc_pinned_memory(size * dtype.itemsize)
        return np.frombuffer(memory, dtype, size)

    def upload_async(self, values: NDArray[Any], target: Any) -> Any:
        self._look()
        self._refuse_captured("captured, and the call copies what the host has now")
        cuda, stream = self._cupy.cuda, self._current_stream(self.number)
        there, here, size = target.data.ptr, values.ctypes.data, values.nbytes
        cuda.runtime.memcpyAsync(there, here, size, cuda.runtime.memcpyHostToDevice, stream.ptr)
        event = cuda.Event(disable_timing=True)
        event.record(stream)
        return event

    def wait_for(self, event: Any) -> None:
        event.synchronize()

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
            if theirs != (ours.ptr or LEGACY_STREAM):
                event = self._cupy.cuda.Event(disable_timing=True)
                event.record(_Handle(theirs))
                ours.wait_event(event)
            return self._cupy.asarray(_WithoutStream(values, interface))
        raise elsewhere(name, values)

    def contiguous(self, values: Any, name: str = "values") -> Any:
        if values.flags.c_contiguous:
            return values
        text = f"must be contiguous while a stream is captured: {GONE}"
        self._refuse_captured(text, name, values.strides)
        return self._cupy.ascontiguousarray(values)

    def concatenate(self, arrays: list[Any], name: str = "arrays") -> Any:
        text = f"cannot be joined while a stream is captured: {GONE}"
        self._refuse_captured(text, name, f"{len(arrays)} arrays")
        return self._cupy.concatenate(arrays)

    def copy(self, values: Any, name: str = "values") -> Any:
        text = f"cannot be copied while a stream is captured: {GONE}"
        self._refuse_captured(text, name, values.size)
        return values.copy()

    def pairs(self, values: Any) -> Any:
        return values  # a kernel goes by its own type, and where the array begins

    def wrap(self, values: Any) -> Any:
        # What numba makes of a one-dimensional array: owner, parent, number of elements, size of
        # one, address, shape, stride. `test_cuda_compile` holds the number of parameters.
        size, item = values.size, values.itemsize
        return ARRAY.pack(0, 0, size, item, values.data.ptr, size, item)

    def wrap_all(self, arrays: Sequence[Any]) -> Any:
        return b"".join([self.wrap(each) for each in arrays])

    def pack(self, number: int) -> Any:
        return WORD.pack(number)

    def launch(self, kernel: CudaKernel, blocks: int, threads: int, *arguments: Any) -> None:
        function, size, _keep = self._loaded.get(kernel.name) or self.load(kernel)
        if self._current_device() != self.number:
            self._look()
        if not self._thread.bound:
            self._bind()
        try:
            words = b"".join(arguments)
        except TypeError:
            words = b"".join([e if type(e) is bytes else WORD.pack(e) for e in arguments])
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
                text = "captured, and {} is not loaded: call jitalloc.warmup(device='cuda') before"
                self._refuse_captured(text.format(kernel.name))
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
                fits = fitting(self._cupy.cuda.runtime.driverGetVersion())
                expected = f"its driver does not load {kernel.name} ({error}): {fits}"
        raise WrongDevice("device", f"GPU {self.number}", expected)

    def _module(self, image: Image) -> Any:
        module = self._cupy.cuda.function.Module()
        module.load(image.code)
        return module.get_function(image.entry)


class StreamDevice(CupyDevice):
    """One GPU, by CuPy, and one stream, which all goes to, whichever is CuPy's current one.

    What CuPy itself does is done there as well: its memory comes back in the order of the stream
    that was current when it was taken.
    """

    def __init__(self, plain: CupyDevice, stream: Any) -> None:
        self.__dict__.update(plain.__dict__)  # the same kernels, loaded once
        self.stream = stream  # kept alive
        self._plain = plain
        self._current = current = self._as_cupy(stream)
        self._current_stream = lambda _number: current
        _made.add(self)

    def _as_cupy(self, stream: Any) -> Any:
        """Return a stream of CuPy's for one of CuPy, of torch, or its address."""
        ptr = stream
        if hasattr(stream, "cuda_stream"):
            ptr = stream.cuda_stream
        elif hasattr(stream, "ptr"):
            ptr = stream.ptr
        elif hasattr(stream, "__cuda_stream__"):
            ptr = stream.__cuda_stream__()[1]
        if type(ptr) is not int or ptr < 0:
            text = "must be a stream of CuPy or torch, its address, or None"
            raise InvalidArgument("stream", stream, text)
        where = getattr(stream, "device_id", getattr(stream, "device_index", -1))
        if where not in (-1, self.number):
            shown, text = f"stream of GPU {where}", f"the pool lives on GPU {self.number}"
            raise WrongDevice("stream", shown, text)
        if hasattr(stream, "ptr") and hasattr(stream, "__enter__"):
            return stream
        with warnings.catch_warnings():
            # CuPy 14 has something else for it, which destroys the stream together with the object.
            warnings.simplefilter("ignore", DeprecationWarning)
            return self._cupy.cuda.ExternalStream(ptr, self.number)

    def on(self, stream: Any) -> CupyDevice:
        return self._plain.on(stream)

    def empty(self, size: int, dtype: np.dtype[Any], name: str = "out") -> Any:
        with self._current:
            return super().empty(size, dtype, name)

    def upload(self, values: NDArray[Any]) -> Any:
        with self._current:
            return super().upload(values)

    def download(self, values: Any) -> NDArray[Any]:
        with self._current:
            return super().download(values)

    def clear(self, values: Any) -> None:
        with self._current:
            super().clear(values)

    def _foreign(self, name: str, values: Any) -> Any:
        with self._current:
            return super()._foreign(name, values)

    def contiguous(self, values: Any, name: str = "values") -> Any:
        if values.flags.c_contiguous:
            return values
        with self._current:
            return super().contiguous(values, name)

    def concatenate(self, arrays: list[Any], name: str = "arrays") -> Any:
        with self._current:
            return super().concatenate(arrays, name)

    def copy(self, values: Any, name: str = "values") -> Any:
        with self._current:
            return super().copy(values, name)


class _Inherited(CupyDevice):
    """A device in a process that `os.fork` has made of the one which uses it."""

    def __getattribute__(self, name: str) -> NoReturn:
        text = "CUDA does not outlive os.fork: start processes by 'spawn' or 'forkserver', or make"
        text += " the first pool on a GPU in the child"
        raise WrongDevice("process", os.getpid(), text)


_made: weakref.WeakSet[CupyDevice] = weakref.WeakSet()


def _inherit() -> None:
    """Make every device say in a child process what it is: no call has to look for that."""
    for each in list(_made):
        each.__class__ = _Inherited


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)
