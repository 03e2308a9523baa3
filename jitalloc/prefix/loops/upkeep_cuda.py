"""Token ids of pages that move."""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.kernel import cuda_kernel, gpu
from jitalloc.prefix.loops.upkeep import prefix_upkeep_rename_cpu


@cuda_kernel("void(int32[::1], int32[::1], int32[::1], int64)", twin=prefix_upkeep_rename_cpu)
def prefix_upkeep_rename_cuda(column, src, dst, size):
    """Mutates `column`: the token ids of each page in `src` are copied to that in `dst`.

    Reads `src` and `dst`, requires that no page is in both: rows are copied in any order.
    """
    for i in range(gpu.grid(1), src.size * size, gpu.gridsize(1)):
        page, offset = i // size, i % size
        column[np.int64(dst[page]) * size + offset] = column[np.int64(src[page]) * size + offset]
