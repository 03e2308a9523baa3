"""CUDA kernels and how they are compiled; with `_cuda_loops` and `_cuda_device` the door to CUDA.

Nothing of CUDA is imported before `load_compiler` is called, so that files of kernels can be read
anywhere. Under the simulator (`NUMBA_ENABLE_CUDASIM=1`) kernels are Python that numba runs.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from jitalloc._cuda_loops import gpu_loops
from jitalloc._cuda_views import put_views

F = TypeVar("F", bound=Callable[..., Any])

SIMULATED: Final = bool(numba.config.ENABLE_CUDASIM)
MOST_THREADS: Final = 1024  # of a block
THREADS: Final = 512  # of a block mostly: a thread may then use 128 registers; extend needs 96
WORDS_AN_ARRAY: Final = 7  # of a kernel's parameters; see `CupyDevice.wrap`
MOST_WORDS: Final = 8 * WORDS_AN_ARRAY  # a kernel has at most eight arguments

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
    serial : bool
        It is run by one thread.
    words : int
        How many words of 8 bytes its parameters are.
    wide : bool
        Its blocks may have twice as many threads as those of others, of half the registers.
    """

    __slots__ = ("function", "name", "serial", "signature", "wide", "words")

    def __init__(
        self, function: Callable[..., Any], signature: str, serial: bool, wide: bool
    ) -> None:
        self.name = function.__name__
        self.function = function
        self.signature = signature
        self.serial = serial
        arrays = signature.count("[")
        self.words = signature.count(",") + 1 - arrays + arrays * WORDS_AN_ARRAY
        self.wide = wide

    @property
    def most_threads(self) -> int:
        """The most threads of a block that it is compiled for."""
        return 1 if self.serial else MOST_THREADS if self.wide else THREADS

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
                # Limits the registers of wide kernels, whatever assembles them: no launch fails for
                # want of them. With blocks of 512, ptxas would spill to fit three at a time.
                text, _type = compiler.compile_ptx(
                    self.function,
                    arguments,
                    cc=capability,
                    launch_bounds=self.most_threads if self.wide else None,
                )
            finally:
                dispatcher.get_current_device = before
        return str(text)


class _Capability:
    def __init__(self, capability: tuple[int, int]) -> None:
        self.compute_capability = capability


def cuda_kernel(
    signature: str, serial: bool = False, wide: bool = False
) -> Callable[[Callable[..., Any]], CudaKernel]:
    """Make a module-level function a `CudaKernel` of one Numba signature.

    `serial`: one thread runs it. `wide`: blocks of up to `MOST_THREADS` do.
    """

    def wrap(function: Callable[..., Any]) -> CudaKernel:
        made = CudaKernel(function, signature, serial, wide)
        _kernels[made.name] = made
        return made

    return wrap


def device_helper(function: F) -> F:
    """Make a function callable from CUDA kernels. Every thread of a block has to call it."""
    _helpers.append(function)
    return function


def cuda_twin(name: str) -> CudaKernel:
    """Return the kernel that does on the GPU what `name`, a kernel of the CPU, does there."""
    return _kernels[name.removesuffix("cpu") + "cuda"]


def cuda_kernels() -> dict[str, CudaKernel]:
    """Return every CUDA kernel by name."""
    return dict(_kernels)


def load_compiler() -> Any:
    """Import `numba.cuda`, show it the helpers, and return it."""
    with _loading:
        return _compiler()


@cache
def _compiler() -> Any:
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
        gpu_loops(functions)
        put_views(functions)
    return cuda


def entry_name(ptx: str) -> str:
    """Return the name of the only kernel in a text of PTX."""
    return ptx.partition(".entry ")[2].partition("(")[0].strip()
