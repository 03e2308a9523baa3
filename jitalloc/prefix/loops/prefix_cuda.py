"""What the prefix cache, whose index lives on the host, does to a pool and to token ids on the GPU.

No kernel here can fail, and none is a call of the pool: the loops of the host have looked at what
`prefix_fetch_cuda` brought, and a change stands for a step that the host has counted already.
"""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.kernel import cuda_kernel, gpu
from jitalloc.gpu.record import RECORD_SLOTS
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.state import NUM_PAGES
from jitalloc.prefix.loops.prefix import prefix_insert_cpu
from jitalloc.state import HEADER_SLOTS


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64[::1], int32[::1])",
    twin=prefix_insert_cpu,
    step=False,
)
def prefix_fetch_cuda(slab, record, pages, tokens, words, out):
    """Mutates `words`, a copy of record and header, and `out`: the pages, how many owners each has,
    and the tokens.

    Reads the pool, `pages` and `tokens`, requires both to have room for that. A page that the pool
    has not is one without owners.
    """
    _free_pages, refcount, _released = pool_views(slab)
    first, step, n = gpu.grid(1), gpu.gridsize(1), np.int64(pages.size)
    for i in range(first, RECORD_SLOTS, step):
        words[i] = record[i]
    for i in range(first, HEADER_SLOTS, step):
        words[RECORD_SLOTS + i] = slab[i]
    for i in range(first, n, step):
        page = np.int64(pages[i])
        out[i] = page
        out[n + i] = refcount[page] if 0 <= page < slab[NUM_PAGES] else np.int32(0)
    for i in range(first, tokens.size, step):
        out[2 * n + i] = tokens[i]


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int32[::1], int64)",
    twin=prefix_insert_cpu,
    step=False,
)
def prefix_insert_cuda(slab, record, column, pages, tokens, size):
    """Mutates the pool, where each of `pages` gets one owner more, and `column`: its `size` token
    ids go into the row of the page.

    Reads `pages` and `tokens`, requires `size` of them a page, and pages that the host has looked
    at.
    """
    _free_pages, refcount, _released = pool_views(slab)
    for i in range(gpu.grid(1), tokens.size, gpu.gridsize(1)):
        page, offset = np.int64(pages[i // size]), i % size
        column[page * size + offset] = tokens[i]
        if offset == 0:
            gpu.atomic.add(refcount, page, np.int32(1))
