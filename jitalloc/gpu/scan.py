"""What the threads of a block, and the blocks of a call, do together.

Every thread of a block has to call these. `shared` is an array of `SHARED_WORDS` that the kernel
itself makes: one made in a helper is linked twice where two helpers call it, and NVVM refuses that.
Warp intrinsics stand in this file alone; numba's simulator has none, so there a warp is one thread.
"""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.kernel import MOST_THREADS, SIMULATED, device_helper, gpu
from jitalloc.gpu.record import LOWEST, TICKET

ALL_LANES = 0xFFFFFFFF
LANES = 1 if SIMULATED else 32  # threads of a warp
SHARED_WORDS = MOST_THREADS if SIMULATED else 32
NOWHERE = np.int64(2**62)  # above every position
TICKET_BITS = 12  # of the record's ticket count blocks, those above them add up what these bring


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
def warps_scan_shuffled(shared, value):
    """Return `(sum of the warps before, sum of all)`; the value of a warp is its last lane's."""
    me = gpu.threadIdx.x
    lane, warp, warps = me & 31, me >> 5, gpu.blockDim.x >> 5
    if lane == 31:
        shared[warp] = value
    gpu.syncthreads()
    if warp == 0:
        upto = shared[lane] if lane < warps else np.int64(0)
        step = 1
        while step < 32:
            lower = gpu.shfl_up_sync(ALL_LANES, upto, step)
            if lane >= step:
                upto += lower
            step <<= 1
        shared[lane] = upto
    gpu.syncthreads()
    before = shared[warp - 1] if warp > 0 else np.int64(0)
    total = shared[31]
    gpu.syncthreads()
    return before, total


@device_helper
def block_scan_warps(shared, value):
    """Return `(sum of the values of the threads before, sum of all)`, for whole warps."""
    lane = gpu.threadIdx.x & 31
    upto = np.int64(value)
    step = 1
    while step < 32:
        lower = gpu.shfl_up_sync(ALL_LANES, upto, step)
        if lane >= step:
            upto += lower
        step <<= 1
    before, total = warps_scan_shuffled(shared, upto)
    return before + upto - value, total


@device_helper
def vote_of_one(condition):
    """Return a bit for each thread of the warp: whether the condition holds for it."""
    return np.uint32(1) if condition else np.uint32(0)


@device_helper
def votes_of_warp(condition):
    """Return a bit for each thread of the warp: whether the condition holds for it."""
    return np.uint32(gpu.ballot_sync(ALL_LANES, condition))


block_scan = block_scan_shared if SIMULATED else block_scan_warps
warps_scan = block_scan_shared if SIMULATED else warps_scan_shuffled
warp_votes = vote_of_one if SIMULATED else votes_of_warp


@device_helper
def votes_before(votes):
    """Return how many threads of the warp before this one have voted yes."""
    lane = gpu.threadIdx.x & (LANES - 1)
    return np.int64(gpu.popc(votes & np.uint32((np.int64(1) << np.int64(lane)) - 1)))


@device_helper
def block_rank(shared, condition):
    """Return `(for how many threads before the condition holds, for how many of all)`.

    A vote takes the place of the five shuffles that `block_scan` needs within a warp.
    """
    votes = warp_votes(condition)
    before, total = warps_scan(shared, np.int64(gpu.popc(votes)))
    return before + votes_before(votes), total


@device_helper
def first_of_one(votes, value):
    """Return `(first thread of the warp with a vote, its value)`."""
    return np.int64(0), np.int64(value)


@device_helper
def first_of_warp(votes, value):
    """Return `(first thread of the warp with a vote, its value)`; any where there is none."""
    first = np.int64(gpu.popc(np.uint32(~votes & (votes - np.uint32(1)))) & 31)
    return first, np.int64(gpu.shfl_sync(ALL_LANES, np.int64(value), np.int32(first)))


warp_first = first_of_one if SIMULATED else first_of_warp


@device_helper
def warp_run(value, chosen):
    """Return a bit for each value, from this thread's on, that it has to speak for, or 0.

    Where the values of the threads with `chosen` follow that of the first of them as the threads
    do, the first one speaks for all; the others with `chosen` for themselves.
    """
    lane = np.int64(gpu.threadIdx.x & (LANES - 1))
    votes = warp_votes(chosen)
    first, base = warp_first(votes, value - lane)
    follows = chosen and value - lane == base
    together = warp_votes(follows)
    if not chosen:
        return np.uint32(0)
    if follows:
        return together >> np.uint32(first) if lane == first else np.uint32(0)
    return np.uint32(1)


@device_helper
def own_part(n):
    """Return `(begin, end)` of the share of `n` elements that this thread takes, in their order."""
    share = (n + gpu.blockDim.x - 1) // gpu.blockDim.x
    begin = min(np.int64(share * gpu.threadIdx.x), np.int64(n))
    return begin, min(begin + share, np.int64(n))


@device_helper
def any_thread(condition):
    """Return whether the condition holds for a thread of the block."""
    return gpu.syncthreads_or(np.int32(1) if condition else np.int32(0)) != 0


@device_helper
def block_min(shared, value):
    """Return the lowest value of all threads."""
    if gpu.threadIdx.x == 0:
        shared[0] = NOWHERE
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
def last_block(record, shared, value):
    """Return `(whether all other blocks of the call are done, sum of the values of all blocks)`.

    What they wrote can be read then. `value`, the same in all threads of a block, is no less than
    0, and the sum below 2**50. One atomic counts the blocks and adds up what they bring.
    """
    if gpu.gridDim.x == 1:
        gpu.syncthreads()
        return True, np.int64(value)
    gpu.threadfence()
    gpu.syncthreads()
    if gpu.threadIdx.x == 0:
        mine = np.int64(value)
        ticket = gpu.atomic.add(record, TICKET, (mine << TICKET_BITS) + 1)
        shared[0] = NOWHERE
        if ticket & ((1 << TICKET_BITS) - 1) == gpu.gridDim.x - 1:
            shared[0] = (ticket >> TICKET_BITS) + mine
            record[TICKET] = 0
        gpu.threadfence()
    gpu.syncthreads()
    total = shared[0]
    gpu.syncthreads()
    return total != NOWHERE, total


@device_helper
def is_last_block(record, shared):
    """Return whether all other blocks of the call are done; what they wrote can be read."""
    last, _total = last_block(record, shared, np.int64(0))
    return last


@device_helper
def part_of(n, part):
    """Return `(begin, end)` of a block's part of `0 .. n - 1`, in whole warps."""
    blocks = np.uint32(gpu.gridDim.x)
    size = np.int64((np.uint32(n) + blocks - np.uint32(1)) // blocks)  # 32 bits: one division
    size = (size + LANES - 1) & ~np.int64(LANES - 1)
    begin = min(np.int64(part * size), n)
    return begin, min(begin + size, n)


@device_helper
def block_share(n):
    """Return `(begin, end)` of the part of `0 .. n - 1` that is this block's by its number."""
    return part_of(n, np.int64(gpu.blockIdx.x))


@device_helper
def take_part(words, shared, counter):
    """Return the number of the part that this block takes: in the order in which blocks begin.

    `words[counter]`, 0 between calls, counts those taken. A block may wait for parts below its own,
    in whatever order a GPU starts the blocks: those that have them are running.
    """
    if gpu.gridDim.x == 1:
        return np.int64(0)
    if gpu.threadIdx.x == 0:
        shared[0] = gpu.atomic.add(words, counter, np.int64(1))
    gpu.syncthreads()
    part = np.int64(shared[0])
    gpu.syncthreads()
    return part


@device_helper
def sum_before(words, shared, start, part, value):
    """Return the sum of the values of the parts below `part`; `value`, from 0 on, is its own.

    What a part holds stands in `words[start + part]` plus one, 0 until it is known, and 0 between
    calls. All threads look at once, for none of those before waits for more than its own part.
    """
    if gpu.gridDim.x == 1:
        return np.int64(0)
    if gpu.threadIdx.x == 0:
        gpu.atomic.max(words, start + part, np.int64(value) + 1)
    found, i = np.int64(0), np.int64(gpu.threadIdx.x)
    while i < part:
        # Read by an atomic: a load may be answered by the cache of this processor for ever.
        known = gpu.atomic.max(words, start + i, np.int64(0))
        while known == 0:
            known = gpu.atomic.max(words, start + i, np.int64(0))
        found += known - 1
        i += gpu.blockDim.x
    _before, found = block_scan(shared, found)
    return found


@device_helper
def call_min(record, shared, value):
    """Return `(whether this is the last block, the lowest value of all threads of the call)`.

    A value is NOWHERE or from 0 on. Elsewhere than in the last block the lowest is not known.
    """
    lowest = NOWHERE
    if any_thread(value != NOWHERE):
        lowest = block_min(shared, value)
    if gpu.gridDim.x == 1:
        return True, lowest
    if lowest != NOWHERE and gpu.threadIdx.x == 0:
        gpu.atomic.max(record, LOWEST, NOWHERE - lowest)
    if not is_last_block(record, shared):
        return False, NOWHERE
    if gpu.threadIdx.x == 0:
        # By an atomic: another block may have left an old value in the cache of this processor.
        shared[0] = NOWHERE - gpu.atomic.exch(record, LOWEST, np.int64(0))
    gpu.syncthreads()
    lowest = shared[0]
    gpu.syncthreads()
    return True, lowest


@device_helper
def owner_of(starts, token, count):
    """Return the last of `count` sequences that starts at `token` or before."""
    low, high = np.int64(0), np.int64(count - 1)
    while low < high:
        middle = (low + high + 1) >> 1
        if starts[middle] <= token:
            low = middle
        else:
            high = middle - 1
    return low


@device_helper
def mentions(pages, page, begin, end):
    """Return how often `page` stands in `pages[begin:end]`."""
    count = np.int64(0)
    for i in range(begin, end):
        if pages[i] == page:
            count += 1
    return count
