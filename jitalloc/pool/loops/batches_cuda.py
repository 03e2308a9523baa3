"""What a batch of counts, one a sequence, sums up to: by one block, or in parts by all."""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.calls import integer
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import NOWHERE, any_thread, block_min, block_scan, block_share
from jitalloc.state import INT32_MAX


@device_helper
def count_of(counts, wide, i, n):
    """Return `(counts[i], the same between 0 and INT32_MAX + 1)`, 0 from `n` on."""
    count = integer(counts, wide, i) if i < n else np.int64(0)
    return count, min(max(count, np.int64(0)), np.int64(INT32_MAX + 1))


@device_helper
def running(shared, totals, start, n):
    """Make of `totals[start:start + n]` the sums before each, by one block; return the sum."""
    total = np.int64(0)
    for tile in range(0, n, gpu.blockDim.x):
        i = np.int64(tile + gpu.threadIdx.x)
        before, tile_total = block_scan(shared, totals[start + i] if i < n else np.int64(0))
        if i < n:
            totals[start + i] = total + before
        total += tile_total
    gpu.syncthreads()
    return total


@device_helper
def part_total(shared, counts, wide, n):
    """Return `(sum of this block's part of n counts, whether one of them is negative)`."""
    begin, end = block_share(n)
    i, total, bad = begin + gpu.threadIdx.x, np.int64(0), False
    while i < end:
        count, mine = count_of(counts, wide, i, n)
        bad |= count < 0
        total += mine
        i += gpu.blockDim.x
    _before, total = block_scan(shared, total)
    return total, any_thread(bad)


@device_helper
def share_indptr(shared, counts, wide, indptr, begin, end, total):
    """Write where the pages of the sequences `begin .. end - 1` begin; `total` come before."""
    tile = begin
    while tile < end:
        i = np.int64(tile + gpu.threadIdx.x)
        _count, mine = count_of(counts, wide, i, end)
        before, tile_total = block_scan(shared, mine)
        if i < end:
            indptr[i] = total + before
        total += tile_total
        tile += gpu.blockDim.x


@device_helper
def first_beyond(shared, counts, wide, begin, end, left):
    """Return the first of the counts `begin .. end - 1` up to which they sum up to above `left`.

    By one block; NOWHERE where they do not.
    """
    tile = begin
    while tile < end:
        i = np.int64(tile + gpu.threadIdx.x)
        _count, mine = count_of(counts, wide, i, end)
        before, total = block_scan(shared, mine)
        beyond = i < end and before + mine > left
        if any_thread(beyond):
            return block_min(shared, i if beyond else NOWHERE)
        left -= total
        tile += gpu.blockDim.x
    return NOWHERE


@device_helper
def first_negative(shared, counts, wide, n):
    """Return the place of the first negative one of `n` counts, by one block."""
    i, worst = np.int64(gpu.threadIdx.x), NOWHERE
    while i < n and worst == NOWHERE:
        if integer(counts, wide, i) < 0:
            worst = i
        i += gpu.blockDim.x
    return block_min(shared, worst)
