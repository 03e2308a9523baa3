"""The compiler of the CPU: decorators, disk cache, lazy compilation.

Every kernel is compiled for exactly one signature, at its first call, and called through the
compiled entry point rather than through Numba's dispatcher: that saves the type look-up, about
0.1 us a call of 0.25 us. The entry point trusts its caller, so the facade has to check dtype
and number of dimensions before it calls.

The disk cache lies in a folder named after a digest of all files that kernels are made from (see
`_sources`). Numba alone would look only at the file that a kernel stands in, and miss an edit to
a constant in `state.py`.
Numba writes cache files under a temporary name and renames them; with one signature a kernel,
processes that start together on an empty folder can only write the same thing twice.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numba import njit

from jitalloc._sources import source_digest
from jitalloc.errors import BUSY, pack_status

F = TypeVar("F", bound=Callable[..., Any])

JIT_DISABLED: Final = bool(numba.config.DISABLE_JIT)
CACHE_ENABLED: Final = os.environ.get("JITALLOC_CACHE", "1") != "0" and not JIT_DISABLED

BUSY_STATUS: Final = pack_status(BUSY, 0)  # another thread has the lock of the slab

compiling = threading.RLock()
_kernels: dict[str, Kernel] = {}


@cache
def cache_folder() -> str:
    """Return the folder of compiled kernels: `NUMBA_CACHE_DIR` or the user's cache, by source.

    Asked for when the first kernel is compiled: by then all are registered, whose files, and
    those that they import, the name is made from.
    """
    digest = source_digest([compile_kernels, *(each.function for each in _kernels.values())])
    base = numba.config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base else Path.home() / ".cache"
    return str(root / "jitalloc" / f"numba-{numba.__version__}-{digest}")


class Kernel:
    """One compiled loop. `run` is the entry point; before the first call it compiles.

    Attributes
    ----------
    name : str
        Name of the function.
    function : callable
        The Python that it is made from.
    signature : str
        Its Numba signature.
    run : callable
        Calls the kernel. Arguments must be what the signature says: the compiled entry point
        checks the item size of an array, but neither its number of dimensions nor its layout.
    """

    __slots__ = ("_counted", "function", "name", "run", "signature")

    def __init__(self, function: Callable[..., Any], signature: str, counted: bool) -> None:
        self.name = function.__name__
        self.function = function
        self.signature = signature
        self._counted = counted
        self.run: Callable[..., Any] = function if JIT_DISABLED else self._compile_and_run

    def _compile_and_run(self, *args: Any) -> Any:
        self.compile()
        return self.run(*args)

    def compile(self) -> None:
        """Compile the kernel, or load it from the disk cache; a second call does nothing."""
        with compiling:
            if self.run != self._compile_and_run:
                return
            collects = gc.isenabled()
            gc.disable()  # it would look through Numba's many objects again and again: 6 %
            try:
                dispatcher = self._compiled()
            except Exception:
                # Most likely a damaged file in the disk cache: begin it anew. A fault of the
                # kernel itself shows again.
                dispatcher = self._compiled(anew=True)
            finally:
                if collects:
                    gc.enable()
            (compiled,) = dispatcher.overloads.values()
            self.run = compiled.entry_point

    def _compiled(self, anew: bool = False) -> Any:
        options = {"nogil": True, "no_cfunc_wrapper": True, "_nrt": self._counted}
        dispatcher: Any = njit(**options)(self.function)
        if CACHE_ENABLED:
            _enable_cache(dispatcher)
            if anew and dispatcher._cache is not None:
                dispatcher._cache.flush()
        dispatcher.compile(self.signature)
        return dispatcher


def _enable_cache(dispatcher: Any) -> None:
    # Numba reads the folder from its configuration when caching is switched on, and only then.
    try:
        folder = cache_folder()
    except OSError:
        return  # the sources cannot be read: nobody would see that they changed
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = folder
    try:
        dispatcher.enable_caching()
    except (OSError, RuntimeError):
        pass  # nowhere to write: compile each time, as JITALLOC_CACHE=0 would
    finally:
        numba.config.CACHE_DIR = before


def kernel(signature: str, counted: bool = False) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a module-level function a `Kernel` of one Numba signature, compiled when first run.

    `counted`: references to arrays are counted. Only what allocates an array needs that: a caller
    keeps what it hands over, and to count takes time at each call and a tenth of the compilation.
    """

    def wrap(function: Callable[..., Any]) -> Kernel:
        made = Kernel(function, signature, counted)
        _kernels[made.name] = made
        return made

    return wrap


def helper(function: F) -> F:
    """Make a function callable from kernels; it is compiled into each of them."""
    options = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    made: F = njit(**options)(function)
    return made


def counting(function: F) -> F:
    """Make a function that makes scratch or a view a helper: it counts references."""
    options = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": True}
    made: F = njit(**options)(function)
    return made


def wait_for_lock(run: Callable[..., int], *args: Any) -> int:
    """Return the status of `run(*args)`, a kernel's, once it does not find the lock taken."""
    pause = 1e-6
    while True:
        time.sleep(pause)
        pause = min(2 * pause, 1e-3)
        status = run(*args)
        if status != BUSY_STATUS:
            return status


def kernels() -> dict[str, Kernel]:
    """Return every kernel by name."""
    return dict(_kernels)


def compile_kernels() -> int:
    """Compile every kernel, or load it from the disk cache; return how many there are."""
    for each in _kernels.values():
        each.compile()
    return len(_kernels)


def versions() -> dict[str, str]:
    """Return the versions of the packages that compile and hold the arrays."""
    return {"numpy": np.__version__, "numba": numba.__version__}
