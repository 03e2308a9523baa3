"""Loops of the CPU for the GPU: the same Python, compiled for one thread of it.

What follows links through flat arrays, like the prefix cache, has no order but its own; one thread
of the GPU runs it from the source that the CPU runs, so that both come to the same bits. A loop is
given again with globals in which its helpers are for the GPU as well, and the intrinsics of `_jit`
are those below. Nothing of CUDA is imported before `gpu_loops` is called.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba.core.dispatcher import Dispatcher

from jitalloc._jit import MIX_FACTOR, Kernel, views
from jitalloc.errors import STATUS_BITS
from jitalloc.prefix_state import PAGES

JIT: Final = Kernel.__module__

_wanted: dict[int, Callable[..., Any]] = {}  # by id: what `from_cpu` has returned


def from_cpu(loop: Any) -> Any:
    """Return a kernel or helper of the CPU as what one thread of a CUDA kernel can call.

    Scratch that it asks for lies behind the last word of the prefix cache: `scratch_words`.
    """
    function = loop.function if isinstance(loop, Kernel) else getattr(loop, "py_func", loop)
    _wanted[id(function)] = function
    return function


def as_rows(array, size, width):  # type: ignore[no-untyped-def]
    """Return a flat array as `size` rows of `width` elements; a view."""
    return array.reshape(size, width)


_wanted[id(as_rows)] = as_rows  # numba reshapes by a function that no GPU has


def scratch_words(num_pages: int) -> int:
    """Return how many words of scratch stand behind a prefix cache on the GPU."""
    return (num_pages + 1) // 2 + num_pages + 1  # `page_scratch`, then `zero_counts`


def gpu_loops(functions: list[Callable[..., Any]]) -> None:
    """Put what is for the GPU in place of what is from the CPU, in the globals of `functions`."""
    made = _GpuLoops()
    for function in functions:
        names = function.__globals__
        for name, value in list(names.items()):
            wanted = _wanted.get(id(value))
            if wanted is not None:
                names[name] = made.loop(wanted)


class _GpuLoops:
    """Functions of `jitalloc` again, each with globals for the GPU."""

    def __init__(self) -> None:
        from numba.cuda.extending import register_jitable

        self._register = register_jitable
        self._made: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._globals: dict[str, dict[str, Any]] = {}
        self._intrinsics = _intrinsics()

    def loop(self, function: Callable[..., Any]) -> Any:
        """Return `function` for the GPU."""
        if function.__module__ == JIT or function is as_rows:
            return self._intrinsics[function.__name__]
        if function not in self._made:
            made = types.FunctionType(
                function.__code__, self._names(function.__module__), function.__name__
            )
            # An array that a function makes can be returned only where it is inlined.
            inline = "always" if function in views else "never"
            self._made[function] = self._register(inline=inline)(made)
        return self._made[function]

    def _names(self, module: str) -> dict[str, Any]:
        if module not in self._globals:
            names = self._globals[module] = dict(vars(sys.modules[module]))
            for name, value in list(names.items()):
                if getattr(value, "__module__", None) == JIT and name in self._intrinsics:
                    names[name] = self._intrinsics[name]
                elif isinstance(value, Dispatcher):
                    names[name] = self.loop(value.py_func)
        return self._globals[module]


def _intrinsics() -> dict[str, Any]:
    """Return what stands for the intrinsics of `_jit` on the GPU, by name."""
    from llvmlite import ir
    from numba import cuda
    from numba.cuda import types as gpu_types
    from numba.cuda.extending import intrinsic, register_jitable
    from numba.cuda.np.arrayobj import make_array, populate_array

    @register_jitable
    def try_lock(slab):  # type: ignore[no-untyped-def]
        return True  # calls on one pool are ordered

    @register_jitable
    def unlock(slab):  # type: ignore[no-untyped-def]
        pass

    @register_jitable
    def trailing_zeros(word):  # type: ignore[no-untyped-def]
        return np.int64(cuda.ffs(word)) - 1

    @register_jitable
    def bit_count(word):  # type: ignore[no-untyped-def]
        return np.int64(cuda.popc(word))

    @register_jitable
    def bit(page):  # type: ignore[no-untyped-def]
        return np.uint64(1) << np.uint64(page & 63)

    @register_jitable
    def fail(code, detail):  # type: ignore[no-untyped-def]
        return -((np.int64(detail) << STATUS_BITS) | code)

    @register_jitable
    def mix(state, word):  # type: ignore[no-untyped-def]
        return (state ^ word) * np.uint64(MIX_FACTOR)

    @register_jitable(inline="always")
    def borrow(array):  # type: ignore[no-untyped-def]
        return array

    # As slices, these four would be four fifths of the code of a kernel.

    def column(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slab, start, *shape = args
        word = builder.gep(make_array(signature.args[0])(context, builder, slab).data, [start])
        view = make_array(signature.return_type)(context, builder)
        size = context.get_abi_sizeof(context.get_data_type(signature.return_type.dtype))
        item = ir.Constant(ir.IntType(64), size)
        strides = [item] if len(shape) == 1 else [builder.mul(shape[1], item), item]
        data = builder.bitcast(word, view.data.type)
        populate_array(view, data, shape, strides, item, meminfo=None)
        return view._getvalue()

    word_type = gpu_types.int64

    @intrinsic
    def int64_column(typing_context, slab, start, size):  # type: ignore[no-untyped-def]
        return gpu_types.Array(word_type, 1, "C")(slab, word_type, word_type), column

    @intrinsic
    def int32_column(typing_context, slab, start, size):  # type: ignore[no-untyped-def]
        return gpu_types.Array(gpu_types.int32, 1, "C")(slab, word_type, word_type), column

    @intrinsic
    def int32_rows(typing_context, slab, start, size, width):  # type: ignore[no-untyped-def]
        made = gpu_types.Array(gpu_types.int32, 2, "C")
        return made(slab, word_type, word_type, word_type), column

    @intrinsic
    def int64_rows(typing_context, slab, start, size, width):  # type: ignore[no-untyped-def]
        made = gpu_types.Array(word_type, 2, "C")
        return made(slab, word_type, word_type, word_type), column

    def split(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, size, width = args
        view = make_array(signature.return_type)(context, builder)
        source = make_array(signature.args[0])(context, builder, array)
        item = source.itemsize
        strides = [builder.mul(width, item), item]
        populate_array(view, source.data, [size, width], strides, item, meminfo=None)
        return view._getvalue()

    @intrinsic
    def as_rows(typing_context, array, size, width):  # type: ignore[no-untyped-def]
        return gpu_types.Array(array.dtype, 2, "C")(array, word_type, word_type), split

    register_jitable(scratch_words)

    @register_jitable
    def fill_zero(counts):  # type: ignore[no-untyped-def]
        for i in range(counts.size):
            counts[i] = 0

    @register_jitable(inline="always")
    def page_scratch(prefix, size):  # type: ignore[no-untyped-def]
        return int32_column(prefix, prefix.size - scratch_words(prefix[PAGES]), size)

    @register_jitable(inline="always")
    def zero_counts(prefix, size):  # type: ignore[no-untyped-def]
        counts = int64_column(prefix, prefix.size - prefix[PAGES] - 1, size)
        fill_zero(counts)
        return counts

    stand_ins: list[Any] = [try_lock, unlock, trailing_zeros, bit_count, bit, fail, mix, borrow]
    stand_ins += [int64_column, int32_column, int32_rows, int64_rows]
    stand_ins += [page_scratch, zero_counts, as_rows]
    return {each.__name__: each for each in stand_ins}
