"""What the threads of a block, and the blocks of a call, do together.

Every thread of a block has to call these. `shared` is an array of `SHARED_WORDS` that the kernel
itself makes: one made in a helper is linked twice where two helpers call it, and NVVM refuses that.
Warp intrinsics stand in this file alone; numba's simulator has none, so it gets
`block_scan_shared`.
"""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import MOST_THREADS, SIMULATED, device_helper, gpu
from jitalloc.state import LOWEST, TICKET

ALL_LANES = 0xFFFFFFFF
SHARED_WORDS = MOST_THREADS if SIMULATED else 32
NONE = np.int64(2**62)  # above every position


@device_helper
def block_scan_shared(shared, value):
    """Return `(sum of the values of the threads before, sum of all)`."""
    me = gpu.threadIdx.x
    shared[me] = value
    gpu.syncthreads()
    before, total = np.int64(0), np.int64(0)
    for i in range(gpu.blockDim.x):
        if i == me:
            before = total
        total += shared[i]
    gpu.syncthreads()
    return before, total


@device_helper
def block_scan_warps(shared, value):
    """Return `(sum of the values of the threads before, sum of all)`, for whole warps."""
    me = gpu.threadIdx.x
    lane, warp, warps = me & 31, me >> 5, gpu.blockDim.x >> 5
    upto = np.int64(value)
    step = 1
    while step < 32:
        lower = gpu.shfl_up_sync(ALL_LANES, upto, step)
        if lane >= step:
            upto += lower
        step <<= 1
    if lane == 31:
        shared[warp] = upto
    gpu.syncthreads()
    if warp == 0:
        sum_upto = shared[lane] if lane < warps else np.int64(0)
        step = 1
        while step < 32:
            lower = gpu.shfl_up_sync(ALL_LANES, sum_upto, step)
            if lane >= step:
                sum_upto += lower
            step <<= 1
        shared[lane] = sum_upto
    gpu.syncthreads()
    before = upto - value
    if warp > 0:
        before += shared[warp - 1]
    total = shared[31]
    gpu.syncthreads()
    return before, total


block_scan = block_scan_shared if SIMULATED else block_scan_warps


@device_helper
def any_thread(condition):
    """Return whether the condition holds for a thread of the block."""
    return gpu.syncthreads_or(np.int32(1) if condition else np.int32(0)) != 0


@device_helper
def block_min(shared, value):
    """Return the lowest value of all threads."""
    if gpu.threadIdx.x == 0:
        shared[0] = NONE
    gpu.syncthreads()
    gpu.atomic.min(shared, 0, value)
    gpu.syncthreads()
    found = shared[0]
    gpu.syncthreads()
    return found


@device_helper
def block_highest_before(shared, value, lowest):
    """Return the highest of `lowest` and the values of the threads before.

    `shared` holds an element for each thread of the block.
    """
    me = gpu.threadIdx.x
    shared[me] = value
    gpu.syncthreads()
    step = 1
    while step < gpu.blockDim.x:
        other = shared[me - step] if me >= step else lowest
        gpu.syncthreads()
        shared[me] = max(shared[me], other)
        gpu.syncthreads()
        step <<= 1
    found = max(lowest, shared[me - 1]) if me > 0 else lowest
    gpu.syncthreads()
    return found


@device_helper
def is_last_block(record, shared):
    """Return whether all other blocks of the call are done; what they wrote can be read."""
    if gpu.gridDim.x == 1:
        gpu.syncthreads()
        return True
    gpu.threadfence()
    gpu.syncthreads()
    if gpu.threadIdx.x == 0:
        ticket = gpu.atomic.add(record, TICKET, 1)
        shared[0] = 0
        if ticket == gpu.gridDim.x - 1:
            shared[0] = 1
            record[TICKET] = 0
        gpu.threadfence()
    gpu.syncthreads()
    last = shared[0] == 1
    gpu.syncthreads()
    return last


@device_helper
def call_min(record, shared, value):
    """Return `(whether this is the last block, the lowest value of all threads of the call)`.

    A value is NONE or from 0 on. Elsewhere than in the last block the lowest is not known.
    """
    lowest = NONE
    if any_thread(value != NONE):
        lowest = block_min(shared, value)
    if gpu.gridDim.x == 1:
        return True, lowest
    if lowest != NONE and gpu.threadIdx.x == 0:
        gpu.atomic.max(record, LOWEST, NONE - lowest)
    if not is_last_block(record, shared):
        return False, NONE
    if gpu.threadIdx.x == 0:
        # By an atomic: another block may have left an old value in the cache of this processor.
        shared[0] = NONE - gpu.atomic.exch(record, LOWEST, np.int64(0))
    gpu.syncthreads()
    lowest = shared[0]
    gpu.syncthreads()
    return True, lowest
