"""A stand-in for CuPy on a machine without a GPU: what `CupyDevice` uses of it, on host memory.

Each launch is taken apart as the driver would: addresses of parameters, then words, then arrays,
which have to lie in memory that was handed out. `test_cupy_stand_in.py` holds it to the real CuPy.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu.kernel import CudaKernel, cuda_kernels

SHOWN = ("size", "itemsize", "nbytes", "dtype", "ndim", "shape", "strides", "flags", "tolist")


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class Launch(NamedTuple):
    """One call of `cuLaunchKernel`, its parameters as what the kernel would see."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    stream: int
    arguments: list[Any]


class Pointer:
    """`ndarray.data`."""

    def __init__(self, host: Any, gpu: int, cupy: Cupy | None) -> None:
        self._host, self._cupy = host, cupy
        self.device_id = gpu
        self.ptr = host.ctypes.data if host.size else 0

    def memset_async(self, value: int, size: int) -> None:
        if self._cupy is not None:
            self._cupy.note("memset")
        self._host.view(np.uint8)[:size] = value


class ndarray:
    """An array of a GPU; its contents are for tests alone."""

    def __init__(self, host: Any, gpu: int, cupy: Cupy | None = None) -> None:
        self.host, self.cupy = host, cupy
        self.data = Pointer(host, gpu, cupy)

    def __getattr__(self, name: str) -> Any:
        if name in SHOWN:
            return getattr(self.host, name)
        raise AttributeError(name)

    def _like(self, host: Any) -> ndarray:
        return ndarray(host, self.data.device_id, self.cupy)

    def __getitem__(self, index: Any) -> ndarray:
        return self._like(self.host[index])

    def __setitem__(self, index: Any, value: ndarray) -> None:
        if self.cupy is not None:
            self.cupy.note("assignment")
        self.host[index] = value.host

    def view(self, dtype: Any) -> ndarray:
        return self._like(self.host.view(dtype))

    def reshape(self, *shape: Any) -> ndarray:
        return self._like(self.host.reshape(*shape))

    def copy(self) -> ndarray:
        assert self.cupy is not None
        self.cupy.note("copy")
        return self.cupy.kept(self.host.copy())


class BaseStream:
    """A stream, what it was told to wait for, and whether it is being captured."""

    cupy: Cupy  # of a class made for it

    def __init__(self, ptr: int, device_id: int) -> None:
        self.ptr, self.device_id = ptr, device_id
        self.waits: list[Any] = []

    def is_capturing(self) -> bool:
        assert self.ptr > 1, "cudaErrorStreamCaptureImplicit, while another stream is captured"
        return self.ptr in self.cupy.captured

    def synchronize(self) -> None:
        self.cupy.wait_for(self.ptr)

    def wait_event(self, event: Event) -> None:
        self.waits.append(f"event of stream {event.stream}")

    def __enter__(self) -> BaseStream:
        self.cupy.within.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.cupy.within.pop()


class ExternalStream(BaseStream):
    """A stream that others have made: since CuPy 14 its constructor warns."""

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        warnings.warn("ExternalStream is deprecated", DeprecationWarning, stacklevel=2)
        super().__init__(ptr, device_id)


class Event:
    """An event, and the stream that it was recorded on."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        assert disable_timing, "an event with a time costs more"
        self.stream = -1

    def record(self, stream: Any) -> None:
        self.stream = stream.ptr


class Device(NamedTuple):
    """A GPU, which a `with` makes current."""

    compute_capability: str

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Module:
    """A module of the driver. What it loads is the image that `image_of` made."""

    def __init__(self, cupy: Cupy) -> None:
        self._cupy = cupy

    def load(self, code: bytes) -> None:
        name = code.decode().removesuffix("\0").removeprefix("code of ")
        if name not in cuda_kernels() or name in self._cupy.refused:
            raise CUDADriverError(f"CUDA_ERROR_UNSUPPORTED_PTX_VERSION: {name}")
        self._cupy.loads.append((name, self._cupy.current))
        self.name = name

    def get_function(self, entry: str) -> SimpleNamespace:
        if entry != f"entry of {self.name}":
            raise CUDADriverError(f"CUDA_ERROR_NOT_FOUND: {entry}")
        kernel = cuda_kernels()[self.name]
        self._cupy.functions.append((kernel, self._cupy.current))
        return SimpleNamespace(ptr=4096 + len(self._cupy.functions) - 1)


class Cupy:
    """The package `cupy`, of a machine with some GPUs.

    Attributes
    ----------
    notes : list
        `(what, address of the stream)` for each launch, copy and new array.
    pause : float
        Seconds that the host spends in a launch or a download, so that other threads run.
    captured : set
        Addresses of the streams that are being captured.
    """

    def __init__(self, gpus: int = 1, driver: int = 12_090) -> None:
        self.ndarray = ndarray
        self.gpus, self.driver, self.current = gpus, driver, 0
        of_mine: dict[str, Any] = {"cupy": self}
        self.stream = type("Stream", (BaseStream,), of_mine)(0, -1)
        self._local = threading.local()
        self.captured: set[int] = set()
        self.notes: list[tuple[str, int]] = []
        self.pause = 0.0
        self.quiet: Callable[[], None] = lambda: None  # what happens while the host waits for all
        self.capabilities = ["90", "120"]
        self.refused: set[str] = set()  # kernels that the driver does not load
        self.bound = 0  # how often a thread asked for a context
        self.memory: list[Any] = []
        self.loads: list[tuple[str, int]] = []
        self.functions: list[tuple[CudaKernel, int]] = []
        self.launches: list[Launch] = []
        self.runs: dict[str, Callable[..., Any]] = {}  # what a kernel does, where a test wants it
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDevice=self._get_device,
                driverGetVersion=lambda: self.driver,
                memGetInfo=self._bind,
                deviceSynchronize=self._wait_for_all,
            ),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError, launchKernel=self._launch),
            function=SimpleNamespace(Module=lambda: Module(self)),
            Device=lambda number: Device(self.capabilities[number]),
            ExternalStream=type("ExternalStream", (ExternalStream,), of_mine),
            Event=Event,
            get_current_stream=lambda number: self.current_stream(),
        )

    @property
    def within(self) -> list[Any]:
        """The streams that a `with` has made current in this thread."""
        found: list[Any] = self._local.__dict__.setdefault("within", [])
        return found

    def current_stream(self) -> Any:
        return self.within[-1] if self.within else self.stream

    def note(self, what: str) -> None:
        """Note what goes to the current stream."""
        self.notes.append((what, self.current_stream().ptr))

    def wait_for(self, stream: int) -> None:
        assert stream not in self.captured, "cudaErrorStreamCaptureUnsupported"
        self.notes.append(("wait", stream))

    def _wait_for_all(self) -> None:
        self.quiet()

    def _get_device(self) -> int:
        if not self.gpus:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return self.current

    def _bind(self) -> tuple[int, int]:
        self.bound += 1
        return 0, 0

    def kept(self, host: Any) -> ndarray:
        """Return an array of the current GPU, in memory that was handed out."""
        self.memory.append(host)
        return ndarray(host, self.current, self)

    def empty(self, size: int, dtype: Any) -> ndarray:
        if size:
            self.note("empty")
        return self.kept(np.full(size, 77, dtype))

    def asarray(self, values: Any) -> ndarray:
        """A copy of what lies on the host; what lies on a GPU as it is."""
        if isinstance(values, np.ndarray):
            if values.size:
                self.note("upload")
            return self.kept(values.copy())
        interface = values.__cuda_array_interface__
        assert interface.get("stream") is None, "CuPy would let the host wait for the stream"
        return ndarray(values.host, values.gpu) if hasattr(values, "host") else self.adopted(values)

    def adopted(self, values: Any) -> ndarray:
        """An array handed over by an interface that another object holds for it."""
        owner = values.values
        assert values.__cuda_array_interface__["data"] == owner.__cuda_array_interface__["data"]
        return ndarray(owner.host, owner.gpu)

    def from_dlpack(self, values: Any) -> ndarray:
        self.note("from_dlpack")
        return ndarray(values.host, values.__dlpack_device__()[1])

    def asnumpy(self, values: ndarray) -> Any:
        self.note("download")
        self.wait_for(self.current_stream().ptr)
        time.sleep(self.pause)
        return values.host.copy()

    def ascontiguousarray(self, values: ndarray) -> ndarray:
        self.note("copy")
        return self.kept(np.ascontiguousarray(values.host))

    def concatenate(self, arrays: list[ndarray]) -> ndarray:
        self.note("copy")
        return self.kept(np.concatenate([each.host for each in arrays]))

    def _launch(self, function: int, *numbers: int) -> None:
        gx, gy, gz, bx, by, bz, shared, stream, parameters, extra = numbers
        assert shared == extra == 0
        kernel, gpu = self.functions[function - 4096]
        assert gpu == self.current, "a function of another context"
        assert self.bound, "CUDA_ERROR_INVALID_CONTEXT"
        table = (ctypes.c_void_p * kernel.words).from_address(parameters)
        words = [ctypes.c_int64.from_address(each).value for each in table if each]
        arguments = self._arguments(kernel, words)
        self.notes.append((kernel.name, stream))
        self.launches.append(Launch(kernel.name, (gx, gy, gz), (bx, by, bz), stream, arguments))
        run = self.runs.get(kernel.name)
        if run is not None:
            run(*arguments)
        time.sleep(self.pause)

    def _arguments(self, kernel: CudaKernel, words: list[int]) -> list[Any]:
        """Return what the words of a launch are by the kernel's signature, as numba reads them."""
        made: list[Any] = []
        at = 0
        for each in kernel.parameters:
            if "[" in each:
                dtype = np.dtype(each.partition("[")[0])
                made.append(self._array(dtype, words[at : at + 7]))
                at += 7
            else:
                made.append(words[at])
                at += 1
        assert at == len(words) == kernel.words
        return made

    def _array(self, dtype: np.dtype[Any], words: list[int]) -> Any:
        owner, parent, count, item, address, size, stride = words
        assert (owner, parent) == (0, 0)
        assert (size, stride) == (count, item)
        # Integers of 64 bits for a kernel that reads pairs: see `integer` in gpu/calls.py.
        assert item == dtype.itemsize or (item, dtype) == (8, np.int32)
        if count == 0:
            return np.empty(0, dtype)
        ends = [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in self.memory]
        stop = address + count * item
        assert any(first <= address and stop <= last for first, last in ends), "a wild address"
        return np.frombuffer((ctypes.c_char * (count * item)).from_address(address), dtype)


def install(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Cupy:
    """Let `import cupy` find a stand-in."""
    cupy = Cupy(**options)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def compile_to_text(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Compile kernels to a line of text, kept in `folder`; return the names, as they come."""
    names: list[str] = []

    def compiled(kernel: CudaKernel, capability: tuple[int, int]) -> _cuda_images.Image:
        names.append(kernel.name)
        code = f"code of {kernel.name}\0".encode()
        return _cuda_images.Image(f"entry of {kernel.name}", code)

    monkeypatch.setattr(_cuda_images, "CACHE_ENABLED", True)
    monkeypatch.setattr(_cuda_images, "cache_folder", lambda: str(folder))
    monkeypatch.setattr(_cuda_images, "_compile", compiled)
    for module in (_cuda_images, _cuda_device):
        monkeypatch.setattr(module, "compiler_versions", lambda: ("1.2", "12.9"))
    return names
