"""A stand-in for CuPy on a machine without a GPU: what `CupyDevice` uses of it, on host memory.

Each launch is taken apart as the driver would: addresses of parameters, then words, then arrays,
which have to lie in memory that was handed out. `test_cuda_device.py` holds it to the real CuPy.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from jitalloc import _cuda_device, _cuda_images
from jitalloc._cuda import CudaKernel, cuda_kernels


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

    def __init__(self, host: Any, gpu: int) -> None:
        self._host = host
        self.device_id = gpu
        self.ptr = host.ctypes.data if host.size else 0

    def memset_async(self, value: int, size: int) -> None:
        self._host.view(np.uint8)[:size] = value


class ndarray:
    """An array of a GPU; its contents are for tests alone."""

    def __init__(self, host: Any, gpu: int) -> None:
        self.host = host
        self.data = Pointer(host, gpu)

    def __getattr__(self, name: str) -> Any:
        if name in ("size", "itemsize", "nbytes", "dtype", "ndim", "shape", "flags", "tolist"):
            return getattr(self.host, name)
        raise AttributeError(name)

    def __getitem__(self, index: Any) -> ndarray:
        return ndarray(self.host[index], self.data.device_id)

    def __setitem__(self, index: Any, value: ndarray) -> None:
        self.host[index] = value.host

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self.host.view(dtype), self.data.device_id)


class Stream:
    """A stream, and what it was told to wait for."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr
        self.waits: list[Any] = []

    def record(self) -> str:
        return f"event of stream {self.ptr}"

    def wait_event(self, event: str) -> None:
        self.waits.append(event)


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
    """The package `cupy`, of a machine with some GPUs."""

    def __init__(self, gpus: int = 1, driver: int = 12_090) -> None:
        self.ndarray = ndarray
        self.gpus, self.driver, self.current = gpus, driver, 0
        self.stream = Stream(0)
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
            ),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError, launchKernel=self._launch),
            function=SimpleNamespace(Module=lambda: Module(self)),
            Device=lambda number: SimpleNamespace(compute_capability=self.capabilities[number]),
            ExternalStream=Stream,
            get_current_stream=lambda number: self.stream,
        )

    def _get_device(self) -> int:
        if not self.gpus:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return self.current

    def _bind(self) -> tuple[int, int]:
        self.bound += 1
        return 0, 0

    def _new(self, host: Any) -> ndarray:
        self.memory.append(host)
        return ndarray(host, self.current)

    def empty(self, size: int, dtype: Any) -> ndarray:
        return self._new(np.full(size, 77, dtype))

    def asarray(self, values: Any) -> ndarray:
        """A copy of what lies on the host; what lies on a GPU as it is."""
        if isinstance(values, np.ndarray):
            return self._new(values.copy())
        interface = values.__cuda_array_interface__
        assert interface.get("stream") is None, "CuPy would let the host wait for the stream"
        return ndarray(values.host, values.gpu) if hasattr(values, "host") else self.adopted(values)

    def adopted(self, values: Any) -> ndarray:
        """An array handed over by an interface that another object holds for it."""
        owner = values.values
        assert values.__cuda_array_interface__["data"] == owner.__cuda_array_interface__["data"]
        return ndarray(owner.host, owner.gpu)

    def from_dlpack(self, values: Any) -> ndarray:
        return ndarray(values.host, values.__dlpack_device__()[1])

    def asnumpy(self, values: ndarray) -> Any:
        return values.host.copy()

    def ascontiguousarray(self, values: ndarray) -> ndarray:
        if values.flags.c_contiguous:
            return values
        return self._new(np.ascontiguousarray(values.host))

    def _launch(self, function: int, *numbers: int) -> None:
        gx, gy, gz, bx, by, bz, shared, stream, parameters, extra = numbers
        assert shared == extra == 0
        kernel, gpu = self.functions[function - 4096]
        assert gpu == self.current, "a function of another context"
        assert self.bound, "CUDA_ERROR_INVALID_CONTEXT"
        table = (ctypes.c_void_p * kernel.words).from_address(parameters)
        words = [ctypes.c_int64.from_address(each).value for each in table if each]
        arguments = self._arguments(kernel, words)
        self.launches.append(Launch(kernel.name, (gx, gy, gz), (bx, by, bz), stream, arguments))
        run = self.runs.get(kernel.name)
        if run is not None:
            run(*arguments)

    def _arguments(self, kernel: CudaKernel, words: list[int]) -> list[Any]:
        """Return what the words of a launch are by the kernel's signature, as numba reads them."""
        made: list[Any] = []
        at = 0
        for each in kernel.signature.removeprefix("void(").removesuffix(")").split(", "):
            if "[" in each:
                made.append(self._array(np.dtype(each.partition("[")[0]), words[at : at + 7]))
                at += 7
            else:
                made.append(words[at])
                at += 1
        assert at == len(words) == kernel.words
        return made

    def _array(self, dtype: np.dtype[Any], words: list[int]) -> Any:
        owner, parent, count, item, address, size, stride = words
        assert (owner, parent) == (0, 0)
        assert (size, stride, item) == (count, dtype.itemsize, dtype.itemsize)
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
    monkeypatch.setattr(_cuda_images, "CACHE_FOLDER", str(folder))
    monkeypatch.setattr(_cuda_images, "_compile", compiled)
    for module in (_cuda_images, _cuda_device):
        monkeypatch.setattr(module, "compiler_versions", lambda: ("1.2", "12.9"))
    return names
