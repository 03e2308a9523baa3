"""CUDA kernels and how they are compiled; with `device` the door to CUDA.

Nothing of CUDA is imported before `load_compiler` is called, so that files of kernels can be read
anywhere. Under the simulator (`NUMBA_ENABLE_CUDASIM=1`) kernels are Python that numba runs.
"""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import Kernel
from jitalloc.gpu.views import put_views

F = TypeVar("F", bound=Callable[..., Any])

SIMULATED: Final = bool(numba.config.ENABLE_CUDASIM)
MOST_THREADS: Final = 1024  # of a block
THREADS: Final = 512  # of a block mostly: a thread may then use 128 registers; extend needs 96
WORDS_AN_ARRAY: Final = 7  # of a kernel's parameters; see `CupyDevice.wrap`
# A kernel has at most eight arguments, one of them perhaps a tuple of as many arrays.
MOST_WORDS: Final = 15 * WORDS_AN_ARRAY

TUPLE: Final = r"UniTuple\(([^,]+), (\d+)\)"  # of arrays, in a signature

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
    words : int
        How many words of 8 bytes its parameters are.
    wide : bool
        Its blocks may have twice as many threads as those of others, of half the registers.
    twin : Kernel or None
        The loop of the CPU that does the same, or of which this does a part.
    step : bool
        Whether the pool counts one for it; not for what changes nothing, or is a part of a call.
    """

    __slots__ = ("function", "name", "signature", "step", "twin", "wide", "words")

    def __init__(
        self,
        function: Callable[..., Any],
        signature: str,
        wide: bool = False,
        twin: Kernel | None = None,
        step: bool = True,
    ) -> None:
        self.name = function.__name__
        self.function = function
        self.signature = signature
        self.words = sum(WORDS_AN_ARRAY if "[" in each else 1 for each in self.parameters)
        self.wide = wide
        self.twin = twin
        self.step = step

    @property
    def parameters(self) -> list[str]:
        """The types of its parameters in order, the arrays of a tuple one by one."""
        inner = self.signature.removeprefix("void(").removesuffix(")")
        single = re.sub(TUPLE, lambda found: ", ".join([found[1]] * int(found[2])), inner)
        return [each.strip() for each in single.split(",")]

    @property
    def most_threads(self) -> int:
        """The most threads of a block that it is compiled for."""
        return MOST_THREADS if self.wide else THREADS

    def ptx(self, capability: tuple[int, int]) -> str:
        """Return the kernel in PTX for GPUs of a compute capability; no GPU is needed."""
        compiler = load_compiler()
        from numba.core import sigutils

        arguments, _nothing = sigutils.normalize_signature(self.signature)
        with _compiling_for(capability):
            # Limits the registers of wide kernels, whatever assembles them: no launch fails for
            # want of them. With blocks of 512, ptxas would spill to fit three at a time.
            text, _type = compiler.compile_ptx(
                self.function,
                arguments,
                cc=capability,
                launch_bounds=self.most_threads if self.wide else None,
            )
        self._takes_what_launches_hand_over(str(text))
        return str(text)

    def _takes_what_launches_hand_over(self, text: str) -> None:
        """Raise RuntimeError where the kernel in a text of PTX has other parameters."""
        entry = text.partition(".entry ")[2].partition("{")[0]
        words = len(re.findall(r"\.param \.[bsu]64\b", entry))
        if not words == entry.count(".param") == self.words:
            raise RuntimeError(
                f"{self.name}: numba-cuda {version('numba-cuda')} made {entry.count('.param')} "
                f"parameters, {words} of them of 8 bytes, of {self.signature}, not {self.words}; "
                "install the numba-cuda that jitalloc[cuda12] asks for"
            )


class _Capability:
    def __init__(self, capability: tuple[int, int]) -> None:
        self.compute_capability = capability


@contextmanager
def _compiling_for(capability: tuple[int, int]) -> Iterator[None]:
    """Let numba-cuda compile for a compute capability, and lose no store; others wait meanwhile."""
    lock: Any = importlib.import_module("numba.cuda.core.compiler_lock")
    dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
    passes: Any = importlib.import_module("numba.cuda.core.typed_passes")
    with lock.global_compiler_lock:
        _has_dead_code_pass(passes)
        before = dispatcher.get_current_device, passes.dead_code_elimination
        # Helpers are compiled for the device that the dispatcher believes in.
        dispatcher.get_current_device = lambda: _Capability(capability)
        # Where the inliner is done, this pass takes an array that a view or a slice has made for
        # one that nobody else sees, and drops the stores to it that are not read afterwards: 75
        # stores of our kernels (Numba's issue 10041 is the same mechanism). What is really dead
        # LLVM removes anyway.
        passes.dead_code_elimination = lambda *args, **options: None
        try:
            yield
        finally:
            dispatcher.get_current_device, passes.dead_code_elimination = before


def _has_dead_code_pass(passes: Any) -> None:
    """Raise RuntimeError where the inliner does not call the pass that is put out of its way."""
    name = "dead_code_elimination"
    inliner = getattr(passes, "InlineOverloads", None)
    code = getattr(getattr(inliner, "run_pass", None), "__code__", None)
    if name not in vars(passes) or code is None or name not in code.co_names:
        raise RuntimeError(
            f"numba-cuda {version('numba-cuda')} does not call {name} where jitalloc switches it "
            "off: kernels might lose stores; install the numba-cuda that jitalloc[cuda12] asks for"
        )


def cuda_kernel(
    signature: str, twin: Kernel | None, wide: bool = False, step: bool = True
) -> Callable[[Callable[..., Any]], CudaKernel]:
    """Make a module-level function a `CudaKernel` of one Numba signature.

    `twin`: the loop of the CPU that does the same. Where the GPU takes several launches, each has
    that one; None: the CPU needs no loop for it. `wide`: blocks of up to `MOST_THREADS` run it.
    `step`: the pool counts one for it, as it does not for what changes nothing or is but a part.
    """

    def wrap(function: Callable[..., Any]) -> CudaKernel:
        made = CudaKernel(function, signature, wide, twin, step)
        _kernels[made.name] = made
        return made

    return wrap


def device_helper(function: F) -> F:
    """Make a function callable from CUDA kernels. Every thread of a block has to call it."""
    _helpers.append(function)
    return function


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
        put_views(functions)
    return cuda


def entry_name(ptx: str) -> str:
    """Return the name of the only kernel in a text of PTX."""
    return ptx.partition(".entry ")[2].partition("(")[0].strip()
