"""A stand-in for CuPy whose GPU is the machine: one of compute capability 9.0."""

from __future__ import annotations

import ctypes
import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.ptx import device_memory, streams
from tests.ptx.device_memory import adopt, empty, ndarray, new
from tests.ptx.machine import Program
from tests.ptx.streams import CUDARuntimeError, Event, Stream

__version__ = "0+machine"
WORDS_AN_ARRAY = 7
FIRST_HANDLE = 4096


class CUDADriverError(RuntimeError):
    """What CUDA's driver says."""


# Arrays.


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    return new(np.zeros(shape, dtype))


def full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
    return new(np.full(shape, value, dtype))


def arange(*args: Any, **options: Any) -> ndarray:
    return new(np.arange(*args, **options))


def asarray(values: Any, dtype: Any = None) -> ndarray:
    if not isinstance(values, ndarray):
        if hasattr(values, "__cuda_array_interface__"):
            values = adopt(values)
        else:
            streams.waits("a copy from pageable memory of the host")
            return new(np.asarray(values, dtype))
    return values if dtype is None or values.dtype == dtype else values.astype(dtype)


def array(values: Any, dtype: Any = None) -> ndarray:
    made = asarray(values, dtype)
    return made.copy() if made is values else made


def asnumpy(values: ndarray) -> Any:
    return values.get()


def from_dlpack(values: Any) -> ndarray:
    made: ndarray = values.__dlpack__()
    return made


def ascontiguousarray(values: ndarray) -> ndarray:
    return values if values.flags.c_contiguous else concatenate([values])


def concatenate(arrays: list[ndarray]) -> ndarray:
    made = empty(sum(each.size for each in arrays), arrays[0].dtype)
    at = 0
    for each in arrays:
        made[at : at + each.size] = each
        at += each.size
    return made


# Kernels.


class _Function:
    """A kernel as the driver holds it."""

    def __init__(self, program: Program, arrays: list[bool]) -> None:
        self.program, self.arrays = program, arrays
        self.words = sum(WORDS_AN_ARRAY if each else 1 for each in arrays)


_functions: list[_Function] = []
_programs: dict[bytes, _Function] = {}


class Module:
    """What a driver loads: here, PTX."""

    def load(self, code: bytes) -> None:
        streams.waits("to load a kernel")
        self.code = code

    def get_function(self, entry: str) -> Any:
        from jitalloc.gpu.kernel import cuda_kernels

        text = self.code.rstrip(b"\0").decode()
        if f".entry {entry}(" not in text:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND")
        names = [each for each in cuda_kernels() if f"{len(each)}{each}B" in entry]
        if self.code not in _programs:
            arrays = ["[" in each for each in cuda_kernels()[names[0]].parameters]
            _programs[self.code] = _Function(Program(names[0], text), arrays)
        _functions.append(_programs[self.code])
        return SimpleNamespace(ptr=FIRST_HANDLE + len(_functions) - 1)


def launch_kernel(function: int, *numbers: int) -> None:
    """Do what `cuLaunchKernel` does; the parameters are copied before it returns."""
    gx, gy, gz, bx, by, bz, shared, stream, parameters, extra = numbers
    found = _functions[function - FIRST_HANDLE]
    if (gy, gz, by, bz, shared, extra) != (1, 1, 1, 1, 0, 0):
        raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: not of one dimension")
    table = (ctypes.c_void_p * found.words).from_address(parameters)
    words = [ctypes.c_int64.from_address(each).value for each in table]
    ranges, at = [], 0
    for is_array in found.arrays:
        if is_array:
            owner, parent, count, item, address, length, stride = words[at : at + 7]
            if (owner, parent, length, stride) != (0, 0, count, item):
                raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: not an array")
            ranges.append((address, count * item))
        at += WORDS_AN_ARRAY if is_array else 1
    try:
        uses = device_memory.owners(ranges)
    except ValueError as error:
        raise CUDADriverError(f"CUDA_ERROR_ILLEGAL_ADDRESS: {error}") from None
    work = functools.partial(found.program.launch, gx, bx, words, ranges)
    streams.by_pointer(stream).put(work, uses)


class Device:
    """The only GPU."""

    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        if number:
            raise CUDARuntimeError("cudaErrorInvalidDevice")
        self.id = number

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_what: object) -> None:
        pass

    def use(self) -> None:
        """It is the current one."""

    def synchronize(self) -> None:
        wait_for_all()


def wait_for_all() -> None:
    """Do what `cudaDeviceSynchronize` does."""
    streams.waits("to wait for the device")
    streams.finish()


class PinnedMemory(bytearray):
    """Memory of the host that a copy in stream order may read; NumPy sees it as a buffer."""

    @property
    def ptr(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self))


def copy_async(to: int, source: int, size: int, _kind: int, stream: int) -> None:
    """Do what `cudaMemcpyAsync` does."""
    uses = [*_known(to, size), *_known(source, size)]
    streams.by_pointer(stream).put(lambda: ctypes.memmove(to, source, size), uses)


def _known(address: int, size: int) -> list[device_memory.Memory]:
    try:
        return device_memory.owners([(address, size)])
    except ValueError:  # memory of the host
        return []


cuda = SimpleNamespace(
    runtime=SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDevice=lambda: 0,
        getDeviceCount=lambda: 1,
        driverGetVersion=lambda: 12_090,
        runtimeGetVersion=lambda: 12_090,
        memGetInfo=lambda: (0, 0),
        deviceSynchronize=wait_for_all,
        memcpyAsync=copy_async,
        memcpyHostToDevice=1,
        memcpyDeviceToHost=2,
        memcpyDeviceToDevice=3,
    ),
    driver=SimpleNamespace(CUDADriverError=CUDADriverError, launchKernel=launch_kernel),
    function=SimpleNamespace(Module=Module),
    Device=Device,
    Event=Event,
    Stream=Stream,
    ExternalStream=streams.by_pointer,
    alloc_pinned_memory=PinnedMemory,
    get_current_stream=streams.current,
    is_available=lambda: True,
)
