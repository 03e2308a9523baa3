"""Twins of the loops of token slots: extend prompts, decode one token a sequence."""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import MOST_THREADS, cuda_kernel, device_helper, gpu
from jitalloc.errors import (
    LAST_SLOT_FREE,
    LAST_SLOT_MISALIGNED,
    LAST_SLOT_RANGE,
    NEGATIVE,
    OUT_OF_PAGES,
    OUT_SHORT,
    SEQ_BELOW_PREFIX,
    STATUS_BITS,
    STATUS_MASK,
    TOO_MANY,
)
from jitalloc.kernels.cuda.merging import block_merge
from jitalloc.kernels.cuda.owners import page_of
from jitalloc.kernels.cuda.pool import (
    end_call,
    fail,
    fault_key,
    fill_null,
    pool_advance,
    pool_views,
    ring_place,
)
from jitalloc.kernels.cuda.scan import (
    NONE,
    SHARED_WORDS,
    any_thread,
    block_min,
    block_scan,
    is_last_block,
)
from jitalloc.state import (
    CALL_KINDS,
    FIRST_PAGE,
    FREE,
    HEAD,
    INT32_MAX,
    NUM_PAGES,
    PAGE_SHIFT,
    PAGE_SIZE,
    RELEASED,
)

EXTEND = CALL_KINDS.index("alloc_extend")
DECODE = CALL_KINDS.index("alloc_decode")

FAULT = np.int64(1) << np.int64(32)  # counts for a sequence that cannot decode; above any count


@device_helper
def offset_of(slot, size, shift):
    """Return the place of a slot within its page."""
    return slot & (size - 1) if shift >= 0 else slot % size


@device_helper
def last_code(slab, refcount, length, last):
    """Return what `tokens_last_code` of the CPU does, by shifts where the page size has one.

    A division of int64 is about a hundred instructions on a GPU, and that has four.
    """
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    if length == 0 or last == -1:
        return np.int64(0 if length == 0 and last == -1 else LAST_SLOT_MISALIGNED)
    page = page_of(last, size, shift)
    if last < 0 or page < slab[FIRST_PAGE] or page >= slab[NUM_PAGES]:
        return np.int64(LAST_SLOT_RANGE)
    if offset_of(last + 1, size, shift) != offset_of(length, size, shift):
        return np.int64(LAST_SLOT_MISALIGNED)
    return np.int64(LAST_SLOT_FREE if refcount[page] == 0 else 0)


@device_helper
def token_value(key, prefix_lens, seq_lens, last_slots):
    """Return the element that a failure is about."""
    code, i = key & STATUS_MASK, key >> STATUS_BITS
    if code == LAST_SLOT_FREE or code == LAST_SLOT_MISALIGNED or code == LAST_SLOT_RANGE:
        return last_slots[i]
    return prefix_lens[i] if code == NEGATIVE else seq_lens[i]


@device_helper
def decode_fault(slab, seq, last, i):
    """Return the key of why a sequence cannot decode, or NONE."""
    _free_pages, refcount, _released = pool_views(slab)
    if seq < 1:
        return fault_key(SEQ_BELOW_PREFIX, i)
    if seq > INT32_MAX:
        return fault_key(TOO_MANY, i)
    code = last_code(slab, refcount, seq - 1, last)
    return fault_key(code, i) if code != 0 else NONE


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1])", wide=True)
def tokens_decode_cuda(slab, record, seq_lens, last_slots, out):
    # One block, and a thread reads last_slots[i] before it writes out[i]: they may be the same.
    # A thread has its sequences side by side, mostly one, so that one scan does for all: the time
    # is that of four reads one behind the other (header, last slot, its page's count, new page).
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    n = np.int32(seq_lens.size)  # int32 takes half the registers, of which a wide block has few
    share = np.int32((n + gpu.blockDim.x - 1) // gpu.blockDim.x)
    first = np.int32(min(gpu.threadIdx.x * share, n))
    end = np.int32(min(first + share, n))
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    key, mine = NONE, np.int64(0)
    for i in range(first, end):
        last = last_slots[i]
        key = min(key, decode_fault(slab, seq_lens[i], last, i))
        if offset_of(last + 1, size, shift) == 0:
            mine += 1
    if key != NONE:
        mine += FAULT
    before, pages = block_scan(shared, mine)
    before = np.int32(before & (FAULT - 1))
    available = slab[FREE] + slab[RELEASED]
    status, value = np.int64(0), np.int64(0)
    if pages >= FAULT:
        key = block_min(shared, key)
        status, pages = -key, np.int64(0)
        value = token_value(key, seq_lens, seq_lens, last_slots)
        gpu.syncthreads()
    elif pages > available:
        status = fail(OUT_OF_PAGES, available)
    if status < 0:
        fill_null(out, 0, gpu.threadIdx.x, gpu.blockDim.x)
        if gpu.threadIdx.x == 0:
            end_call(slab, record, DECODE, status, value, pages)
        return
    if pages > slab[FREE]:
        block_merge(slab, shared)
    free_pages, refcount, _released = pool_views(slab)
    head, ring = slab[HEAD], slab[NUM_PAGES]
    gpu.syncthreads()
    at = head + before
    for i in range(first, end):
        last = last_slots[i]
        if offset_of(last + 1, size, shift) == 0:
            page = np.int64(free_pages[ring_place(at, ring)])
            refcount[page] = 1
            out[i] = page * size
            at += 1
        else:
            out[i] = last + 1
    if gpu.threadIdx.x == 0:  # nobody reads the header any more
        pool_advance(slab, head + pages, pages)
        end_call(slab, record, DECODE, np.int64(0), np.int64(0), pages)


@device_helper
def extend_fault(slab, prefix, seq, last, i, tokens):
    """Return the key of why a sequence cannot be extended, or NONE; `tokens`: up to it."""
    _free_pages, refcount, _released = pool_views(slab)
    if prefix < 0:
        return fault_key(NEGATIVE, i)
    if seq < prefix:
        return fault_key(SEQ_BELOW_PREFIX, i)
    if seq > INT32_MAX or tokens > INT32_MAX:
        return fault_key(TOO_MANY, i)
    code = last_code(slab, refcount, prefix, last)
    return fault_key(code, i) if code != 0 else NONE


@device_helper
def new_pages(prefix, seq, size, shift):
    """Return how many pages a sequence needs to grow from `prefix` to `seq` tokens."""
    return page_of(seq + size - 1, size, shift) - page_of(prefix + size - 1, size, shift)


@device_helper
def extend_need(slab, shared, prefix_lens, seq_lens, last_slots):
    """Return `(tokens, pages)` of a valid batch of extensions, or `(status word, 0)`."""
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    n = prefix_lens.size
    tokens, pages = np.int64(0), np.int64(0)
    for begin in range(0, n, gpu.blockDim.x):
        i = np.int64(begin + gpu.threadIdx.x)
        prefix = prefix_lens[i] if i < n else np.int64(0)
        seq = seq_lens[i] if i < n else np.int64(0)
        grown = np.int64(0)
        if 0 <= prefix <= seq:
            grown = min(seq - prefix, np.int64(INT32_MAX + 1))
        before, total = block_scan(shared, grown)
        key = NONE
        if i < n:
            upto = tokens + before + grown
            key = extend_fault(slab, prefix, seq, last_slots[i], i, upto)
        tokens += total
        if any_thread(key != NONE):
            return -block_min(shared, key), np.int64(0)
        _before, total = block_scan(shared, new_pages(prefix, seq, size, shift))
        pages += total
    return tokens, pages


@device_helper
def extend_tile(slab, shared, prefix_lens, seq_lens, begin, starts, firsts):
    """Put into shared memory which slots and new pages of the tile are whose.

    Sequence `begin + j` gets the slots from `starts[j]` on, and the new pages from `firsts[j]`
    on, counted from those of the tile. Returns the totals of the tile.
    """
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    i = np.int64(begin + gpu.threadIdx.x)
    both = np.int64(0)  # neither passes int32, so one scan does for two
    if i < prefix_lens.size:
        prefix, seq = prefix_lens[i], seq_lens[i]
        both = (seq - prefix) << np.int64(32) | new_pages(prefix, seq, size, shift)
    before, total = block_scan(shared, both)
    starts[gpu.threadIdx.x] = before >> np.int64(32)
    firsts[gpu.threadIdx.x] = before & np.int64(0xFFFFFFFF)
    gpu.syncthreads()
    return total >> np.int64(32), total & np.int64(0xFFFFFFFF)


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
def extend_fill(slab, shared, prefix_lens, seq_lens, last_slots, out, first, step):
    """Write every `step`-th slot of a valid batch from `first` on, and claim the pages begun.

    Every thread of a block has to come here; blocks may share the work.
    """
    starts = gpu.shared.array(MOST_THREADS, np.int32)
    firsts = gpu.shared.array(MOST_THREADS, np.int32)
    free_pages, refcount, _released = pool_views(slab)
    size, shift, ring = slab[PAGE_SIZE], slab[PAGE_SHIFT], slab[NUM_PAGES]
    head, put = slab[HEAD], np.int64(0)
    n = prefix_lens.size
    for begin in range(0, n, gpu.blockDim.x):
        tokens, pages = extend_tile(slab, shared, prefix_lens, seq_lens, begin, starts, firsts)
        count = min(np.int64(gpu.blockDim.x), np.int64(n - begin))
        for token in range(first, tokens, step):
            j = owner_of(starts, token, count)
            prefix = prefix_lens[begin + j]
            position = prefix + token - starts[j]
            held = page_of(prefix + size - 1, size, shift)
            block = page_of(position, size, shift)
            if block < held:
                out[put + token] = last_slots[begin + j] + 1 + position - prefix
            else:
                at = ring_place(head + firsts[j] + block - held, ring)
                page = np.int64(free_pages[at])
                offset = position - block * size
                if offset == 0:
                    refcount[page] = 1
                out[put + token] = page * size + offset
        head = ring_place(head + pages, ring)
        put += tokens
        gpu.syncthreads()


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1])")
def tokens_extend_cuda(slab, record, prefix_lens, seq_lens, last_slots, out):
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    tokens, pages = extend_need(slab, shared, prefix_lens, seq_lens, last_slots)
    free, available = slab[FREE], slab[FREE] + slab[RELEASED]
    first, step = gpu.grid(1), gpu.gridsize(1)
    me, width = gpu.threadIdx.x, gpu.blockDim.x
    status, wanted = np.int64(0), pages
    if tokens < 0:
        status = tokens
    elif pages > available:
        status = fail(OUT_OF_PAGES, available)
    elif tokens > out.size:
        status, wanted = fail(OUT_SHORT, out.size), tokens
    fill_null(out, np.int64(0) if status < 0 else tokens, first, step)
    if status >= 0 and pages <= free:
        extend_fill(slab, shared, prefix_lens, seq_lens, last_slots, out, first, step)
    if not is_last_block(record, shared):
        return
    if status >= 0 and pages > free:
        block_merge(slab, shared)
        extend_fill(slab, shared, prefix_lens, seq_lens, last_slots, out, me, width)
        gpu.syncthreads()
    if me == 0:
        value = np.int64(0)
        if tokens < 0:
            value = token_value(-tokens, prefix_lens, seq_lens, last_slots)
        if status >= 0:
            pool_advance(slab, slab[HEAD] + pages, pages)
        end_call(slab, record, EXTEND, status, value, wanted)
