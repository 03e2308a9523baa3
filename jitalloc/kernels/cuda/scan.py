"""What the threads of a block, and the blocks of a call, do together.

Every thread of a block has to call these. `shared` is an array of `SHARED_WORDS` that the kernel
itself makes: one made in a helper is linked twice where two helpers call it, and NVVM refuses that.
Warp intrinsics stand in this file alone; numba's simulator has none, so it gets
`block_scan_shared`.
"""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import MOST_THREADS, SIMULATED, device_helper, gpu
from jitalloc.state import TICKET

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
def own_part(n):
    """Return `(begin, end)` of the share of `n` elements that this thread takes, in their order."""
    share = (n + gpu.blockDim.x - 1) // gpu.blockDim.x
    begin = min(np.int64(share * gpu.threadIdx.x), np.int64(n))
    return begin, min(begin + share, np.int64(n))


@device_helper
def warp_place():
    """Return `(warp, warps, lane, lanes)` of this thread in its block."""
    lanes = min(np.int64(32), np.int64(gpu.blockDim.x))
    me = np.int64(gpu.threadIdx.x)
    return me // lanes, gpu.blockDim.x // lanes, me % lanes, lanes


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
