"""Twins of the loops of token slots: extend prompts, decode one token a sequence."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import (
    LAST_SLOT_MISALIGNED,
    LAST_SLOT_NOT_HELD,
    LAST_SLOT_RANGE,
    NEGATIVE,
    OUT_OF_PAGES,
    OUT_SHORT,
    SEQ_BELOW_PREFIX,
    STATUS_BITS,
    STATUS_MASK,
    TOO_MANY,
)
from jitalloc.gpu.calls import fail, fault_key, fill_null, integer, ring_place
from jitalloc.gpu.kernel import MOST_THREADS, cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS
from jitalloc.gpu.scan import (
    LANES,
    NOWHERE,
    SHARED_WORDS,
    block_min,
    block_scan,
    is_last_block,
    last_block,
    owner_of,
)
from jitalloc.pool.loops.extends_cuda import (
    extend_look,
    extend_need,
    extend_tile,
    last_code,
    lengths_of,
    offset_of,
)
from jitalloc.pool.loops.merging_cuda import end_merge, merge_part, pool_views
from jitalloc.pool.loops.pool_cuda import end_call, page_of, pool_advance
from jitalloc.pool.loops.tokens import tokens_decode_cpu, tokens_extend_cpu
from jitalloc.pool.state import FIRST_PAGE, FREE, HEAD, NUM_PAGES, PAGE_SHIFT, PAGE_SIZE, RELEASED
from jitalloc.state import INT32_MAX, NULL

EXTEND = CALL_KINDS.index("alloc_extend")
DECODE = CALL_KINDS.index("alloc_decode")


FAULT = np.int64(1) << np.int64(32)  # counts for a sequence that cannot decode; above any count


@device_helper
def token_value(key, prefix, seq, last):
    """Return what a failure is about: of a sequence's lengths and its last slot."""
    code = key & STATUS_MASK
    if code == LAST_SLOT_NOT_HELD or code == LAST_SLOT_MISALIGNED or code == LAST_SLOT_RANGE:
        return last
    return prefix if code == NEGATIVE else seq


@device_helper
def decode_fault(slab, seq, last, i):
    """Return the key of why a sequence cannot decode, or NOWHERE."""
    _free_pages, refcount, _released = pool_views(slab)
    if seq == NULL:
        return NOWHERE
    if seq < 1:
        return fault_key(SEQ_BELOW_PREFIX, i)
    if seq > INT32_MAX:
        return fault_key(TOO_MANY, i)
    code = last_code(slab, refcount, seq - 1, last)
    return fault_key(code, i) if code != 0 else NOWHERE


@device_helper
def decode_look(slab, shared, seq_lens, last_slots, wide, first, end):
    """Return `(pages that the sequences before need, that all need, whether all can decode)`.

    By one block; the sequences `first .. end - 1` are this thread's.
    """
    _free_pages, refcount, _released = pool_views(slab)
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    lowest, above = slab[FIRST_PAGE] * size, slab[NUM_PAGES] * size
    mine = np.int64(0)
    i = first
    while i < end:
        seq, last = integer(seq_lens, wide, i), last_slots[i]
        held = lowest <= last < above
        owners = refcount[page_of(last if held else lowest, size, shift)]
        offset = offset_of(last + 1, size, shift)
        sound = held and owners > 0 and 1 < seq <= INT32_MAX
        sound = sound and offset == offset_of(seq - 1, size, shift)
        sound = sound or seq == NULL or (seq == 1 and last == NULL)
        mine += (FAULT if not sound else np.int64(0)) + np.int64(offset == 0 and seq != NULL)
        i += 1
    before, pages = block_scan(shared, mine)
    return np.int32(before & (FAULT - 1)), pages & (FAULT - 1), pages < FAULT


@device_helper
def decode_first_fault(slab, shared, seq_lens, last_slots, wide, first, end):
    """Return the key of the first sequence that cannot decode, by one block."""
    key = NOWHERE
    for i in range(first, end):
        key = min(key, decode_fault(slab, integer(seq_lens, wide, i), last_slots[i], i))
    return block_min(shared, key)


@device_helper
def decode_write(slab, seq_lens, last_slots, out, wide, first, end, before):
    """Write the slots of the sequences of a thread, which takes pages from place `before` on."""
    free_pages, refcount, _released = pool_views(slab)
    size, shift, ring = slab[PAGE_SIZE], slab[PAGE_SHIFT], slab[NUM_PAGES]
    at = slab[HEAD] + before
    for i in range(first, end):
        slot = last_slots[i] + 1
        if integer(seq_lens, wide, i) == NULL:
            slot = np.int64(NULL)
        elif offset_of(slot, size, shift) == 0:
            page = np.int64(free_pages[ring_place(at, ring)])
            refcount[page] = 1
            slot = page * size
            at += 1
        out[i] = slot


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int64[::1], int64[::1], int64)",
    twin=tokens_decode_cpu,
    wide=True,
)
def tokens_decode_cuda(slab, record, seq_lens, last_slots, out, wide):
    """Mutates the pool, its record and `out`, the slot of one new token a sequence, or NULL where
    the call fails.

    Reads `seq_lens`, which count the new token, and `last_slots`, requires all three of one length.
    `wide`: lengths of int64.

    One block decodes, and a thread reads last_slots[i] before it writes out[i]: they may be the
    same. A thread has its sequences side by side, mostly one, so that one scan does for all: the
    time is that of four reads one behind the other (header, last slot, its page's count, page). The
    others are there for a merge. Where one could be due all look, and the last one decodes; where
    not they are done at once, and the last of all books, for they have read the header.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    n = np.int32(last_slots.size)  # int32 takes half the registers, of which wide blocks have few
    share = np.int32(np.uint32(n + gpu.blockDim.x - 1) // np.uint32(gpu.blockDim.x))
    first = np.int32(min(gpu.threadIdx.x * share, n))
    end = np.int32(min(first + share, n))
    free, waiting = slab[FREE], slab[RELEASED]
    # What does the batch need?
    merges, decodes = waiting > 0 and n > free, gpu.blockIdx.x == 0
    before, pages, sound = np.int32(0), np.int64(0), False
    if merges or decodes:
        before, pages, sound = decode_look(slab, shared, seq_lens, last_slots, wide, first, end)
    fits = sound and pages <= free + waiting
    # A merge, where one is due, by all blocks.
    if merges:
        if fits and pages > free:
            merge_part(slab, shared)
        decodes = is_last_block(record, shared)
        if decodes and fits and pages > free:
            end_merge(slab)
    # One block writes the slots, or says what is wrong.
    if decodes and fits:
        decode_write(slab, seq_lens, last_slots, out, wide, first, end, before)
    elif decodes:
        status, value = fail(OUT_OF_PAGES, free + waiting), np.int64(0)
        if not sound:
            key = decode_first_fault(slab, shared, seq_lens, last_slots, wide, first, end)
            at, pages = key >> STATUS_BITS, np.int64(0)
            status, seq = -key, integer(seq_lens, wide, at)
            value = token_value(key, seq, seq, last_slots[at])
            gpu.syncthreads()
        fill_null(out, 0, gpu.threadIdx.x, gpu.blockDim.x)
        if gpu.threadIdx.x == 0:
            end_call(slab, record, DECODE, status, value, pages)
    # The last block books the call.
    taken = pages + 1 if decodes and fits else np.int64(0)
    if merges:
        gpu.syncthreads()
    else:
        decodes, taken = last_block(record, shared, taken)
    if decodes and taken > 0 and gpu.threadIdx.x == 0:
        pool_advance(slab, slab[HEAD] + taken - 1, taken - 1)
        end_call(slab, record, DECODE, np.int64(0), np.int64(0), taken - 1)


@device_helper
def first_token(tile, count, totals, rank, size, shift):
    """Return the first token of a tile that has its new page `rank` or a later one.

    Tokens in pages held already go with the page before. `totals`: tokens and pages of the tile.
    """
    _shared, starts, firsts, prefixes = tile
    tokens, pages = totals
    if rank <= 0 or rank >= pages:
        return np.int64(0) if rank <= 0 else tokens
    j = owner_of(firsts, rank, count)
    prefix = np.int64(prefixes[j])
    block = page_of(prefix + size - 1, size, shift) + rank - firsts[j]
    return starts[j] + block * size - prefix


@device_helper
def extend_fill(slab, lens, last_slots, out, tile, known, walk):
    """Write slots of a valid batch, and claim the pages begun; blocks share the work.

    Every thread of a block has to come here. `known`: tokens and pages of the batch, where it is
    one tile that stands in shared memory already, else -1. `walk`: place of its first new page in
    the freelist; which new pages are the block's; and which warp this is of those that share them.
    """
    _shared, starts, firsts, prefixes = tile
    free_pages, refcount, _released = pool_views(slab)
    size, shift, ring = slab[PAGE_SIZE], slab[PAGE_SHIFT], slab[NUM_PAGES]
    place, low, high, warp, warps = walk
    lane = np.int64(gpu.threadIdx.x & (LANES - 1))
    n, width = np.int64(last_slots.size), np.int64(gpu.blockDim.x)
    put, begin = np.int64(0), np.int64(0)
    while begin < n:
        totals = known if known[0] >= 0 else extend_tile(slab, lens, n, begin, tile)
        tokens, pages = totals
        count = min(width, n - begin)
        start = first_token(tile, count, totals, low, size, shift)
        end = tokens  # also where the tile begins no page
        if high < pages:
            end = first_token(tile, count, totals, high, size, shift)
        rows = np.int64(np.uint32(end - start + LANES - 1) // np.uint32(LANES))
        rows = np.int64(np.uint32(rows + warps - 1) // np.uint32(warps))  # of a warp's tokens
        token = start + warp * rows * LANES + lane
        end = min(end, start + (warp + 1) * rows * LANES)
        j = owner_of(starts, token, count)
        while token < end:
            while j + 1 < count and starts[j + 1] <= token:
                j += 1
            prefix = np.int64(prefixes[j])
            position = prefix + token - starts[j]
            block, held = page_of(position, size, shift), page_of(prefix + size - 1, size, shift)
            slot = position - block * size
            if block < held:
                slot = last_slots[begin + j] + 1 + position - prefix
            else:
                page = np.int64(free_pages[ring_place(place + firsts[j] + block - held, ring)])
                if slot == 0:
                    refcount[page] = 1
                slot += page * size
            out[put + token] = slot
            token += LANES
        put += tokens
        place += pages
        low -= pages
        high -= pages
        begin += width
        gpu.syncthreads()


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64[::1], int64[::1], int64)",
    twin=tokens_extend_cpu,
)
def tokens_extend_cuda(slab, record, prefix_lens, seq_lens, last_slots, out, wide):
    """Mutates the pool, its record and `out`, the slots of the new tokens of each sequence, NULL
    behind them or where the call fails.

    Reads the other three arrays, requires them of one length. `wide`: 1 for prefix_lens of int64,
    and 2 for seq_lens of int64.

    All blocks look at all sequences, and share the tokens. Where a merge is due, they do it, and
    each takes the tokens in those new pages that stand in its part of the list.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    starts = gpu.shared.array(MOST_THREADS, np.int32)
    firsts = gpu.shared.array(MOST_THREADS, np.int32)
    prefixes = gpu.shared.array(MOST_THREADS, np.int32)
    # What does the batch need?
    lens, tile = (prefix_lens, seq_lens, wide), (shared, starts, firsts, prefixes)
    tokens, pages = extend_look(slab, lens, last_slots, tile)
    known = (tokens if last_slots.size <= gpu.blockDim.x else np.int64(-1), pages)
    if tokens < 0:
        tokens, pages = extend_need(slab, shared, lens, last_slots)
    head, free, available = slab[HEAD], slab[FREE], slab[FREE] + slab[RELEASED]
    status, wanted = np.int64(0), pages
    if tokens < 0:
        status = tokens
    elif pages > available:
        status = fail(OUT_OF_PAGES, available)
    elif tokens > out.size:
        status, wanted = fail(OUT_SHORT, out.size), tokens
    # Slots and pages, by all blocks; where a merge is due, each behind its part of it.
    fill_null(out, np.int64(0) if status < 0 else tokens, gpu.grid(1), gpu.gridsize(1))
    warp, warps = np.int64(gpu.grid(1) // LANES), np.int64(gpu.gridsize(1) // LANES)
    low, high, merges = np.int64(0), pages, status >= 0 and pages > free
    if merges:
        low, high = merge_part(slab, shared)
        head -= slab[RELEASED]
        low, high = low - head, min(high - head, pages)
        warp, warps = np.int64(gpu.threadIdx.x // LANES), np.int64(gpu.blockDim.x // LANES)
    if status >= 0:
        extend_fill(slab, lens, last_slots, out, tile, known, (head, low, high, warp, warps))
    # The last block books the call.
    if not is_last_block(record, shared):
        return
    if merges:
        end_merge(slab)
    if gpu.threadIdx.x == 0:
        value = np.int64(0)
        if tokens < 0:
            at = -tokens >> STATUS_BITS
            prefix, seq, _pads = lengths_of(lens, at)
            value = token_value(-tokens, prefix, seq, last_slots[at])
        if status >= 0:
            pool_advance(slab, slab[HEAD] + pages, pages)
        end_call(slab, record, EXTEND, status, value, wanted)
