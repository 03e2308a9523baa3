"""How a call that one block does has the help of others where a merge is due in it.

Whether one is due only shows when the rows have been looked at. The block that begins first looks,
and says so; where it is not, it does the call and the others are done. Where it is, all merge their
parts, and the last of them does the call, for what the first has seen is in its registers.
"""

from __future__ import annotations

from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import is_last_block, take_part
from jitalloc.pool.loops.merging_cuda import end_merge, merge_part
from jitalloc.sequences.state import DUE, LEADER

NOT_DUE = 1
IS_DUE = 2


@device_helper
def leads(tables, shared):
    """Return whether this block begins first; alone it does."""
    return take_part(tables, shared, LEADER) == 0


@device_helper
def all_know(tables, shared, leading, due):
    """Return whether a merge is due: `due` in the block that is `leading`, to all."""
    if gpu.gridDim.x == 1:
        return False
    gpu.threadfence()
    gpu.syncthreads()  # what the first has undone is undone before a merge begins
    if gpu.threadIdx.x == 0:
        known = IS_DUE if due else NOT_DUE
        if leading:
            gpu.atomic.max(tables, DUE, known)
        else:
            known = gpu.atomic.max(tables, DUE, 0)
            while known == 0:  # the first is running, and waits for nobody
                known = gpu.atomic.max(tables, DUE, 0)
        shared[0] = known
    gpu.syncthreads()
    due = shared[0] == IS_DUE
    gpu.syncthreads()
    return due


@device_helper
def merges_last(pool, words, shared):
    """Do a part of the merge that is due; return whether this block is the last, so all is done."""
    merge_part(pool, shared)
    if not is_last_block(words, shared):
        return False
    end_merge(pool)
    return True


@device_helper
def end_lead(words, tables, shared, merged):
    """Forget what the blocks of a call have said, by the last of them; `merged`: this is it."""
    if gpu.gridDim.x == 1:
        return
    if merged or is_last_block(words, shared):
        if gpu.threadIdx.x == 0:
            tables[LEADER] = 0
            tables[DUE] = 0
