"""The only importer of numba: decorators, disk cache, lazy compilation, the lock.

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
from numba import njit, types
from numba.extending import intrinsic

from jitalloc._sources import source_digest
from jitalloc.errors import BUSY, STATUS_BITS, pack_status
from jitalloc.state import LOCK

F = TypeVar("F", bound=Callable[..., Any])

MIX_FACTOR: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: odd, and no bit pattern repeats
JIT_DISABLED: Final = bool(numba.config.DISABLE_JIT)
CACHE_ENABLED: Final = os.environ.get("JITALLOC_CACHE", "1") != "0" and not JIT_DISABLED

BUSY_STATUS: Final = pack_status(BUSY, 0)  # another thread has the lock of the slab

_compiling = threading.RLock()
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
        with _compiling:
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


def wait_for_lock(run: Callable[[], int]) -> int:
    """Return the status of `run`, a kernel's, once it does not find the lock of its slab taken."""
    pause = 1e-6
    while True:
        time.sleep(pause)
        pause = min(2 * pause, 1e-3)
        status = run()
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


if JIT_DISABLED:

    def try_lock(slab):  # type: ignore[no-untyped-def]
        """Take the lock of a pool's slab; False where another thread holds it."""
        if slab[LOCK]:
            return False
        slab[LOCK] = 1
        return True

    def unlock(slab):  # type: ignore[no-untyped-def]
        """Give the lock of a pool's slab back."""
        slab[LOCK] = 0

    def trailing_zeros(word):  # type: ignore[no-untyped-def]
        """Return the index of the lowest set bit of a non-zero uint64."""
        return (int(word) & -int(word)).bit_length() - 1

    def bit_count(word):  # type: ignore[no-untyped-def]
        """Return how many bits of a uint64 are set."""
        return int(word).bit_count()

    def bit(page):  # type: ignore[no-untyped-def]
        """Return the mask of `page` in its 64-bit word."""
        return np.uint64(1 << (int(page) & 63))

    def fail(code, detail):  # type: ignore[no-untyped-def]
        """Return the status word of `code` and `detail`."""
        return np.int64(-(int(detail) << STATUS_BITS | code))

    def mix(state, word):  # type: ignore[no-untyped-def]
        """Return the hash `state` with `word` taken in, both uint64."""
        return np.uint64((int(state) ^ int(word)) * MIX_FACTOR & (2**64 - 1))

    def borrow(array):  # type: ignore[no-untyped-def]
        """Return an argument of a kernel as a view that no helper need count references of."""
        return array

    def int64_column(slab, start, size):  # type: ignore[no-untyped-def]
        """Return `size` int64 of a slab from word `start` on, as a view."""
        return slab[start : start + size]

    def int32_column(slab, start, size):  # type: ignore[no-untyped-def]
        """Return `size` int32 of a slab from word `start` on, as a view."""
        return slab[start : start + (size + 1) // 2].view(np.int32)[:size]

    def int32_rows(slab, start, size, width):  # type: ignore[no-untyped-def]
        """Return `size` rows of `width` int32 of a slab from word `start` on, as a view."""
        column = int32_column(slab, start, size * width)  # type: ignore[no-untyped-call]
        return column.reshape(size, width)

    def int64_rows(slab, start, size, width):  # type: ignore[no-untyped-def]
        """Return `size` rows of `width` int64 of a slab from word `start` on, as a view."""
        return slab[start : start + size * width].reshape(size, width)

else:
    from llvmlite import ir
    from numba.core import cgutils  # noqa: F401  (arrayobj needs the module loaded first)
    from numba.np.arrayobj import make_array, populate_array

    def _lock_word(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
        data = make_array(array_type)(context, builder, array).data
        return builder.gep(data, [ir.Constant(ir.IntType(64), LOCK)])

    @intrinsic
    def try_lock(typing_context, slab):  # type: ignore[no-untyped-def]
        """Take the lock of a pool's slab by one compare-and-swap; False where it is held."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            word = _lock_word(context, builder, signature.args[0], args[0])
            zero, one = (ir.Constant(ir.IntType(64), i) for i in (0, 1))
            swapped = builder.cmpxchg(word, zero, one, "acquire", "monotonic")
            return builder.extract_value(swapped, 1)

        return types.boolean(slab), codegen

    @intrinsic
    def unlock(typing_context, slab):  # type: ignore[no-untyped-def]
        """Give the lock of a pool's slab back."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            word = _lock_word(context, builder, signature.args[0], args[0])
            builder.store_atomic(ir.Constant(ir.IntType(64), 0), word, "release", 8)
            return context.get_dummy_value()

        return types.void(slab), codegen

    @intrinsic
    def trailing_zeros(typing_context, word):  # type: ignore[no-untyped-def]
        """Return the index of the lowest set bit of a non-zero uint64."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

        return types.int64(types.uint64), codegen

    @intrinsic
    def bit_count(typing_context, word):  # type: ignore[no-untyped-def]
        """Return how many bits of a uint64 are set."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.ctpop(args[0])

        return types.int64(types.uint64), codegen

    # As helpers, these two would be compiled once for each code and type that they are given.

    @intrinsic
    def bit(typing_context, page):  # type: ignore[no-untyped-def]
        """Return the mask of `page` in its 64-bit word."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            one, last = (ir.Constant(ir.IntType(64), i) for i in (1, 63))
            return builder.shl(one, builder.and_(args[0], last))

        return types.uint64(types.int64), codegen

    @intrinsic
    def fail(typing_context, code, detail):  # type: ignore[no-untyped-def]
        """Return the status word of `code` and `detail`."""

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            bits = ir.Constant(ir.IntType(64), STATUS_BITS)
            return builder.neg(builder.or_(builder.shl(args[1], bits), args[0]))

        return types.int64(types.int64, types.int64), codegen

    @helper
    def mix(state, word):  # type: ignore[no-untyped-def]
        """Return the hash `state` with `word` taken in, both uint64."""
        return (state ^ word) * np.uint64(MIX_FACTOR)

    # Views that borrow. In a kernel that counts, `slab[a:b].view(...)` counts a reference up and
    # down by atomic operations, and so does every helper for each array that it is given: 10 ns
    # each. An argument outlives the kernel, so nothing needs to be counted.

    def _borrowed(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slab, start, *shape = args
        word = builder.gep(make_array(signature.args[0])(context, builder, slab).data, [start])
        view = make_array(signature.return_type)(context, builder)
        size = context.get_abi_sizeof(context.get_data_type(signature.return_type.dtype))
        item = context.get_constant(types.intp, size)
        strides = [item] if len(shape) == 1 else [builder.mul(shape[1], item), item]
        data = builder.bitcast(word, view.data.type)
        populate_array(view, data, shape, strides, item, meminfo=None)
        return view._getvalue()

    @intrinsic
    def int64_column(typing_context, slab, start, size):  # type: ignore[no-untyped-def]
        """Return `size` int64 of a slab from word `start` on, as a view."""
        view = types.Array(types.int64, 1, "C")
        return view(slab, types.int64, types.int64), _borrowed

    @intrinsic
    def int32_column(typing_context, slab, start, size):  # type: ignore[no-untyped-def]
        """Return `size` int32 of a slab from word `start` on, as a view."""
        view = types.Array(types.int32, 1, "C")
        return view(slab, types.int64, types.int64), _borrowed

    @intrinsic
    def int32_rows(typing_context, slab, start, size, width):  # type: ignore[no-untyped-def]
        """Return `size` rows of `width` int32 of a slab from word `start` on, as a view."""
        view = types.Array(types.int32, 2, "C")
        return view(slab, types.int64, types.int64, types.int64), _borrowed

    @intrinsic
    def int64_rows(typing_context, slab, start, size, width):  # type: ignore[no-untyped-def]
        """Return `size` rows of `width` int64 of a slab from word `start` on, as a view."""
        view = types.Array(types.int64, 2, "C")
        return view(slab, types.int64, types.int64, types.int64), _borrowed

    @intrinsic
    def borrow(typing_context, array):  # type: ignore[no-untyped-def]
        """Return an argument of a kernel as a view that no helper need count references of."""
        view = types.Array(array.dtype, 1, "C")

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            shape = make_array(signature.args[0])(context, builder, args[0]).shape
            start, size = context.get_constant(types.int64, 0), builder.extract_value(shape, 0)
            return _borrowed(context, builder, signature, (args[0], start, size))

        return view(array), codegen


def versions() -> dict[str, str]:
    """Return the versions of the packages that compile and hold the arrays."""
    return {"numpy": np.__version__, "numba": numba.__version__}
