"""Twins of the loops over a whole pool: clear."""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import cuda_kernel, gpu
from jitalloc.kernels.cuda.pool import end_call, pool_views
from jitalloc.kernels.cuda.scan import SHARED_WORDS, is_last_block
from jitalloc.state import (
    CALL_KINDS,
    FIRST_PAGE,
    FREE,
    FREED,
    HEAD,
    NUM_PAGES,
    ORDER,
    RELEASED,
    SORTED,
)

CLEAR = CALL_KINDS.index("clear")


@cuda_kernel("void(int64[::1], int64[::1])")
def upkeep_clear_cuda(slab, record):
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    free_pages, refcount, released = pool_views(slab)
    n, first = slab[NUM_PAGES], slab[FIRST_PAGE]
    start, step = gpu.grid(1), gpu.gridsize(1)
    for page in range(start, n, step):
        refcount[page] = 1 if page < first else 0
        free_pages[page] = page
    for w in range(start, released.size, step):
        released[w] = np.uint64(0)
    if is_last_block(record, shared) and gpu.threadIdx.x == 0:
        slab[FREED] += n - first - slab[FREE] - slab[RELEASED]
        slab[HEAD] = first if slab[ORDER] == SORTED else first % n
        slab[FREE] = n - first
        slab[RELEASED] = 0
        end_call(slab, record, CLEAR, np.int64(0), np.int64(0), np.int64(0))
