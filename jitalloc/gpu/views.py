"""Columns of a slab in CUDA kernels: as slices they would be most of the code of a kernel.

The functions are NumPy's slices, as numba's simulator runs them. `put_views` puts in their place
what takes a GPU an addition. Nothing of CUDA is imported before it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def int32_column(slab: Any, start: Any, size: Any) -> Any:
    """Return `size` elements of int32 from word `start` of a slab on; a view."""
    return slab[start : start + ((size + 1) >> 1)].view(np.int32)[:size]


def int64_column(slab: Any, start: Any, size: Any) -> Any:
    """Return `size` words of a slab from `start` on; a view."""
    return slab[start : start + size]


def uint64_column(slab: Any, start: Any, size: Any) -> Any:
    """Return `size` words without sign of a slab from `start` on; a view."""
    return slab[start : start + size].view(np.uint64)


def put_views(functions: list[Callable[..., Any]]) -> None:
    """Put what is for the GPU in place of these functions, in the globals of `functions`."""
    made = _intrinsics()
    for function in functions:
        names = function.__globals__
        for view, intrinsic in made.items():
            if names.get(view.__name__) is view:
                names[view.__name__] = intrinsic


def _intrinsics() -> dict[Callable[..., Any], Any]:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic
    from numba.cuda.np.arrayobj import make_array, populate_array

    def column(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slab, start, size = args
        word = builder.gep(make_array(signature.args[0])(context, builder, slab).data, [start])
        view = make_array(signature.return_type)(context, builder)
        item = context.get_abi_sizeof(context.get_data_type(signature.return_type.dtype))
        step = ir.Constant(ir.IntType(64), item)
        data = builder.bitcast(word, view.data.type)
        populate_array(view, data, [size], [step], step, meminfo=None)
        return view._getvalue()

    def made(kind: Any) -> Any:
        def view(typing_context: Any, slab: Any, start: Any, size: Any) -> Any:
            return types.Array(kind, 1, "C")(slab, types.int64, types.int64), column

        return intrinsic(view)

    kinds = {int32_column: types.int32, int64_column: types.int64, uint64_column: types.uint64}
    return {function: made(kind) for function, kind in kinds.items()}
