"""What loops do by one instruction, or as a view that borrows: intrinsics of Numba.

Where Numba is switched off each is plain Python of the same name. A file of kernels takes from
here what it names, and its decorators from `_jit`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import intrinsic

from jitalloc._jit import JIT_DISABLED, helper
from jitalloc.errors import STATUS_BITS, pack_status
from jitalloc.state import LOCK

MIX_FACTOR: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: odd, and no bit pattern repeats
ALL_ONES: Final = np.uint64(0xFFFFFFFFFFFFFFFF)  # a word of a bitmap
ONE: Final = np.uint64(1)

if JIT_DISABLED:

    def try_lock(slab):
        """Take the lock of a slab; False where another thread holds it."""
        if slab[LOCK]:
            return False
        slab[LOCK] = 1
        return True

    def unlock(slab):
        """Give the lock of a slab back."""
        slab[LOCK] = 0

    def trailing_zeros(word):
        """Return the index of the lowest set bit of a non-zero uint64."""
        return (int(word) & -int(word)).bit_length() - 1

    def bit_count(word):
        """Return how many bits of a uint64 are set."""
        return int(word).bit_count()

    def bit(index):
        """Return the mask of bit `index` in its 64-bit word."""
        return np.uint64(1 << (int(index) & 63))

    def fail(code, detail):
        """Return the status word of `code` and `detail`."""
        return np.int64(pack_status(code, detail))

    def mix(state, word):
        """Return the hash `state` with `word` taken in, both uint64."""
        return np.uint64((int(state) ^ int(word)) * MIX_FACTOR & (2**64 - 1))

    def borrow(array):
        """Return an argument of a kernel as a view that no helper need count references of."""
        return array

    def int64_column(slab, start, size):
        """Return `size` int64 of a slab from word `start` on, as a view."""
        return slab[start : start + size]

    def int32_column(slab, start, size):
        """Return `size` int32 of a slab from word `start` on, as a view."""
        return slab[start : start + (size + 1) // 2].view(np.int32)[:size]

    def int32_rows(slab, start, size, width):
        """Return `size` rows of `width` int32 of a slab from word `start` on, as a view."""
        column = int32_column(slab, start, size * width)
        return column.reshape(size, width)

    def int64_rows(slab, start, size, width):
        """Return `size` rows of `width` int64 of a slab from word `start` on, as a view."""
        return slab[start : start + size * width].reshape(size, width)

else:
    from llvmlite import ir
    from numba.core.cgutils import true_bit
    from numba.np.arrayobj import make_array, populate_array

    WORD: Final = ir.IntType(64)

    def _lock_word(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
        data = make_array(array_type)(context, builder, array).data
        return builder.gep(data, [WORD(LOCK)])

    @intrinsic
    def try_lock(typing_context, slab):
        """Take the lock of a slab by one compare-and-swap; False where it is held."""

        def codegen(context, builder, signature, args):
            word = _lock_word(context, builder, signature.args[0], args[0])
            swapped = builder.cmpxchg(word, WORD(0), WORD(1), "acquire", "monotonic")
            return builder.extract_value(swapped, 1)

        return types.boolean(slab), codegen

    @intrinsic
    def unlock(typing_context, slab):
        """Give the lock of a slab back."""

        def codegen(context, builder, signature, args):
            word = _lock_word(context, builder, signature.args[0], args[0])
            builder.store_atomic(WORD(0), word, "release", 8)
            return context.get_dummy_value()

        return types.void(slab), codegen

    @intrinsic
    def trailing_zeros(typing_context, word):
        """Return the index of the lowest set bit of a non-zero uint64."""

        def codegen(context, builder, signature, args):
            return builder.cttz(args[0], true_bit)

        return types.int64(types.uint64), codegen

    @intrinsic
    def bit_count(typing_context, word):
        """Return how many bits of a uint64 are set."""

        def codegen(context, builder, signature, args):
            return builder.ctpop(args[0])

        return types.int64(types.uint64), codegen

    # As helpers, the next two would be compiled once for each code and type that they are given.

    @intrinsic
    def bit(typing_context, index):
        """Return the mask of bit `index` in its 64-bit word."""

        def codegen(context, builder, signature, args):
            return builder.shl(WORD(1), builder.and_(args[0], WORD(63)))

        return types.uint64(types.int64), codegen

    @intrinsic
    def fail(typing_context, code, detail):
        """Return the status word of `code` and `detail`."""

        def codegen(context, builder, signature, args):
            return builder.neg(builder.or_(builder.shl(args[1], WORD(STATUS_BITS)), args[0]))

        return types.int64(types.int64, types.int64), codegen

    @helper
    def mix(state, word):
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
    def int64_column(typing_context, slab, start, size):
        """Return `size` int64 of a slab from word `start` on, as a view."""
        view = types.Array(types.int64, 1, "C")
        return view(slab, types.int64, types.int64), _borrowed

    @intrinsic
    def int32_column(typing_context, slab, start, size):
        """Return `size` int32 of a slab from word `start` on, as a view."""
        view = types.Array(types.int32, 1, "C")
        return view(slab, types.int64, types.int64), _borrowed

    @intrinsic
    def int32_rows(typing_context, slab, start, size, width):
        """Return `size` rows of `width` int32 of a slab from word `start` on, as a view."""
        view = types.Array(types.int32, 2, "C")
        return view(slab, types.int64, types.int64, types.int64), _borrowed

    @intrinsic
    def int64_rows(typing_context, slab, start, size, width):
        """Return `size` rows of `width` int64 of a slab from word `start` on, as a view."""
        view = types.Array(types.int64, 2, "C")
        return view(slab, types.int64, types.int64, types.int64), _borrowed

    @intrinsic
    def borrow(typing_context, array):
        """Return an argument of a kernel as a view that no helper need count references of."""
        view = types.Array(array.dtype, 1, "C")

        def codegen(context, builder, signature, args):
            shape = make_array(signature.args[0])(context, builder, args[0]).shape
            start, size = context.get_constant(types.int64, 0), builder.extract_value(shape, 0)
            return _borrowed(context, builder, signature, (args[0], start, size))

        return view(array), codegen
