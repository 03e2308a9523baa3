"""The GPU's half of a mirror of block tables: it does what a message of `mirror_pack_cpu` says."""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.kernel import cuda_kernel, gpu
from jitalloc.sequences.loops.mirror import (
    COUNT,
    FIRST,
    HEADER_WORDS,
    LATER,
    NOBODY,
    NULLS,
    RECORD_WORDS,
    RECORDS,
    ROW,
    START,
    TOKENS,
    mirror_pack_cpu,
)
from jitalloc.sequences.loops.row_facts_cuda import column_start, table_pages, table_shape
from jitalloc.sequences.state import LENGTH
from jitalloc.state import HEADER_SLOTS, NULL

WARP = 32


@cuda_kernel("void(int64[::1], int32[::1])", twin=mirror_pack_cpu)
def mirror_apply_cuda(tables, message):
    """Mutates the tables: rows, lengths and pages become what the message says.

    Reads `message`, requires that of `mirror_pack_cpu` for a copy that was told all before it. A
    record is done by the threads of a warp side by side. Rows share words of the bitmap.
    """
    shape = table_shape(tables)
    (pages,) = table_pages(tables, shape)
    records, lanes = np.int64(message[RECORDS]), min(np.int64(gpu.blockDim.x), np.int64(WARP))
    me, lengths = np.int64(gpu.grid(1)), column_start(shape, LENGTH)
    k, lane, ids = me // lanes, me % lanes, HEADER_WORDS + records * RECORD_WORDS
    while k < records:
        record = HEADER_WORDS + k * RECORD_WORDS
        row, tokens = np.int64(message[record + ROW]), np.int64(message[record + TOKENS])
        at, source = row * shape[1] + message[record + FIRST], ids + message[record + START]
        count = np.int64(message[record + COUNT])
        end, j = count + message[record + NULLS], lane
        while j < end:
            pages[at + j] = message[source + j] if j < count else NULL
            j += lanes
        if lane == 0 and tokens != LATER:
            word, mask = HEADER_SLOTS + (row >> 6), np.int64(1) << (row & 63)
            tables[lengths + row] = max(tokens, np.int64(0))
            if tokens == NOBODY:
                gpu.atomic.and_(tables, word, ~mask)
            else:
                gpu.atomic.or_(tables, word, mask)
        k += gpu.gridsize(1) // lanes
