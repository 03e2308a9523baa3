"""What the kernels of a batch of rows, which one block runs, look at and write.

No two threads are to decide who comes first: a mark or a count that several change tells by its
final value alone.
"""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import device_helper, gpu
from jitalloc._cuda_loops import from_cpu
from jitalloc.errors import REFCOUNT_OVERFLOW, ROW_NOT_EMPTY, ROW_REPEATED
from jitalloc.kernels import rows as loops
from jitalloc.kernels import tables as table_loops
from jitalloc.kernels.cuda.pool import bit, fault_key, pool_views
from jitalloc.kernels.cuda.releasing import release_tile
from jitalloc.kernels.cuda.scan import NONE, block_min, block_scan, own_part, warp_place
from jitalloc.kernels.cuda.tokens import owner_of
from jitalloc.state import INT32_MAX, LENGTH, MAX_PAGES, NULL, ORDER, SORTED, STEP

share_row = from_cpu(loops.share_row)
touch = from_cpu(loops.touch)
tables_column = from_cpu(table_loops.tables_column)
tables_marks = from_cpu(table_loops.tables_marks)
tables_pages = from_cpu(table_loops.tables_pages)
tables_pages_of = from_cpu(table_loops.tables_pages_of)
tables_row_code = from_cpu(table_loops.tables_row_code)


@device_helper
def claims(tables, row):
    """Mark a live row; return whether nobody had."""
    marks = tables_marks(tables)
    return gpu.atomic.or_(marks, row >> 6, bit(row)) & bit(row) == np.uint64(0)


@device_helper
def unclaim(tables, rows):
    """Take all marks away, once every thread has set its own."""
    marks = tables_marks(tables)
    for i in range(gpu.threadIdx.x, rows.size, gpu.blockDim.x):
        row = np.int64(rows[i])
        if tables_row_code(tables, row) == 0:
            marks[row >> 6] = np.uint64(0)


@device_helper
def row_fault(tables, rows, i):
    """Return the key of why `rows[i]` is no live row named for the first time, or NONE."""
    row = np.int64(rows[i])
    code = tables_row_code(tables, row)
    if code != 0:
        return fault_key(code, i)
    for j in range(i):
        if rows[j] == row:
            return fault_key(ROW_REPEATED, i)
    return NONE


@device_helper
def pairs_look(tables, rows, others, empty):
    """Look at a share of the pairs of live rows, and mark `rows`; return whether all is sound.

    With `empty`, what lives in `rows` must be so.
    """
    length = tables_column(tables, LENGTH)
    sound = True
    for i in range(gpu.threadIdx.x, rows.size, gpu.blockDim.x):
        row = np.int64(rows[i])
        if tables_row_code(tables, row) == 0:
            mine = claims(tables, row)
            sound = sound and mine and (not empty or length[row] == 0)
        else:
            sound = False
        sound = sound and tables_row_code(tables, np.int64(others[i])) == 0
    return sound


@device_helper
def pages_full(pool, tables, others):
    """Return whether a page of live rows could not take as many owners more as there are rows."""
    _free_pages, refcount, _released = pool_views(pool)
    length, pages = tables_column(tables, LENGTH), tables_pages(tables)
    warp, warps, lane, lanes = warp_place()
    full = False
    for i in range(warp, others.size, warps):
        at = np.int64(others[i]) * tables[MAX_PAGES]
        for j in range(lane, tables_pages_of(tables, length[others[i]]), lanes):
            full = full or refcount[pages[at + j]] > INT32_MAX - others.size
    return full


@device_helper
def pairs_fault(pool, shared, tables, rows, others, empty):
    """Return the key of the first failure of a batch of pairs that is not sound.

    Its position runs through `rows`, then through `others`.
    """
    length, batch = tables_column(tables, LENGTH), np.int64(rows.size)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    key = NONE
    for i in range(me, batch, step):
        key = min(key, row_fault(tables, rows, np.int64(i)))
    key = block_min(shared, key)
    if key != NONE:
        return key
    for i in range(me, batch, step):
        if empty and length[rows[i]] != 0:
            key = min(key, fault_key(ROW_NOT_EMPTY, np.int64(i)))
    key = block_min(shared, key)
    if key != NONE:
        return key
    for i in range(me, batch, step):
        other = np.int64(others[i])
        code = tables_row_code(tables, other)
        if code == 0 and not share_row(pool, tables, other, batch):
            code = REFCOUNT_OVERFLOW
        if code != 0:
            key = min(key, fault_key(code, batch + i))
    return block_min(shared, key)


@device_helper
def drop_starts(shared, tables, rows, starts):
    """Write how many pages the rows before each one have, and at the end all."""
    length = tables_column(tables, LENGTH)
    begin, end = own_part(rows.size)
    mine = np.int64(0)
    for i in range(begin, end):
        mine += tables_pages_of(tables, length[rows[i]])
    before, total = block_scan(shared, mine)
    for i in range(begin, end):
        starts[i] = before
        before += tables_pages_of(tables, length[rows[i]])
    if gpu.threadIdx.x == 0:
        starts[rows.size] = total
    gpu.syncthreads()


@device_helper
def drop_pages(pool, shared, tables, rows, starts):
    """Take one owner off each page of `rows`, one behind the other; return how many go free.

    In a freelist that is a ring they stand in the order in which each lost its last owner.
    """
    _free_pages, refcount, released = pool_views(pool)
    pages, width = tables_pages(tables), tables[MAX_PAGES]
    warp, warps, lane, lanes = warp_place()
    ring = pool[ORDER] != SORTED
    count = np.int64(0)
    for i in range(warp, rows.size, warps):
        for j in range(lane, starts[i + 1] - starts[i], lanes):
            page = np.int64(pages[np.int64(rows[i]) * width + j])
            before = gpu.atomic.sub(refcount, page, np.int32(1))
            if before == 1 and not ring:
                gpu.atomic.or_(released, page >> 6, bit(page))
                count += 1
    _before, count = block_scan(shared, count)
    if not ring:
        return count
    for i in range(warp, rows.size, warps):  # below zero, a count tells the last mention
        for j in range(lane, starts[i + 1] - starts[i], lanes):
            page = np.int64(pages[np.int64(rows[i]) * width + j])
            if refcount[page] <= 0:
                gpu.atomic.min(refcount, page, np.int32(-1 - starts[i] - j))
    gpu.syncthreads()
    for begin in range(0, starts[rows.size], gpu.blockDim.x):
        at = np.int64(begin + gpu.threadIdx.x)
        page, gone = np.int64(0), False
        if at < starts[rows.size]:
            i = owner_of(starts, at, rows.size)
            page = np.int64(pages[np.int64(rows[i]) * width + at - starts[i]])
            gone = refcount[page] == -1 - at
        if gone:
            refcount[page] = 0
        count += release_tile(pool, shared, page, gone, count)
    return count


@device_helper
def copy_rows(pool, tables, src_rows, dst_rows):
    """Let the empty, marked rows share the pages of others, a warp for each."""
    _free_pages, refcount, _released = pool_views(pool)
    length, pages, marks = tables_column(tables, LENGTH), tables_pages(tables), tables_marks(tables)
    width = tables[MAX_PAGES]
    warp, warps, lane, lanes = warp_place()
    for i in range(warp, dst_rows.size, warps):
        src, dst = np.int64(src_rows[i]), np.int64(dst_rows[i])
        if marks[src >> 6] & bit(src) == np.uint64(0):  # else it is empty, and written to
            for j in range(lane, tables_pages_of(tables, length[src]), lanes):
                page = pages[src * width + j]
                gpu.atomic.add(refcount, np.int64(page), np.int32(1))
                pages[dst * width + j] = page
            if lane == 0:
                length[dst] = length[src]
        if lane == 0:
            touch(tables, dst, pool[STEP] + 1)


@device_helper
def keep_parents(pool, tables, parents, lengths, kept):
    """Write down lengths and pages of `parents`, each of which gets one owner more."""
    _free_pages, refcount, _released = pool_views(pool)
    length, pages, width = tables_column(tables, LENGTH), tables_pages(tables), tables[MAX_PAGES]
    warp, warps, lane, lanes = warp_place()
    for i in range(warp, parents.size, warps):
        parent = np.int64(parents[i])
        lengths[i] = length[parent]
        for j in range(lane, tables_pages_of(tables, length[parent]), lanes):
            page = pages[parent * width + j]
            gpu.atomic.add(refcount, np.int64(page), np.int32(1))
            kept[i * width + j] = page


@device_helper
def replace_rows(pool, tables, rows, starts, lengths, kept):
    """Give `rows` the lengths and pages written down; `starts` tells how many they had."""
    length, pages, width = tables_column(tables, LENGTH), tables_pages(tables), tables[MAX_PAGES]
    warp, warps, lane, lanes = warp_place()
    for i in range(warp, rows.size, warps):
        row, new = np.int64(rows[i]), tables_pages_of(tables, lengths[i])
        for j in range(lane, max(new, starts[i + 1] - starts[i]), lanes):
            pages[row * width + j] = kept[i * width + j] if j < new else np.int32(NULL)
        if lane == 0:
            length[row] = lengths[i]
            touch(tables, row, pool[STEP] + 1)
