"""Loops of token slots: extend prompts, decode one token a sequence."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import borrow, fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import (
    BUSY,
    CHANGED,
    LAST_SLOT_MISALIGNED,
    LAST_SLOT_NOT_HELD,
    LAST_SLOT_RANGE,
    NEGATIVE,
    OUT_OF_PAGES,
    SEQ_BELOW_PREFIX,
    TOO_MANY,
)
from jitalloc.pool.loops.pool import pool_advance, pool_reserve, pool_views
from jitalloc.pool.state import (
    FIRST_PAGE,
    FREE,
    HEAD,
    NUM_PAGES,
    PAGE_SHIFT,
    PAGE_SIZE,
    RELEASED,
    STEP,
)
from jitalloc.state import INT32_MAX


@helper
def tokens_last_code(slab, refcount, length, last):
    """Return why `last` cannot be the slot of the last of `length` tokens, or 0."""
    size = slab[PAGE_SIZE]
    if length == 0 or last == -1:
        return 0 if length == 0 and last == -1 else LAST_SLOT_MISALIGNED
    if last < 0 or last >= slab[NUM_PAGES] * size or last // size < slab[FIRST_PAGE]:
        return LAST_SLOT_RANGE
    if (last + 1) % size != length % size:
        return LAST_SLOT_MISALIGNED
    return LAST_SLOT_NOT_HELD if refcount[last // size] == 0 else 0


@helper
def tokens_fill(out, put, slot, n):
    """Write the `n` consecutive slots from `slot` on to `out[put:]`."""
    first = np.uint64(put)
    for j in range(np.uint64(n)):  # unsigned: a signed index may count from the end
        out[first + j] = slot + np.int64(j)


@helper
def tokens_extend_need(slab, prefix_lens, seq_lens, last_slots):
    """Return `(tokens, pages)` of a valid batch of extensions, or `(status word, 0)`."""
    _free_pages, refcount, _released = pool_views(slab)
    size = slab[PAGE_SIZE]
    tokens = np.int64(0)
    pages = np.int64(0)
    for i in range(prefix_lens.size):
        prefix, seq = prefix_lens[i], seq_lens[i]
        if prefix < 0:
            return fail(NEGATIVE, i), np.int64(0)
        if seq < prefix:
            return fail(SEQ_BELOW_PREFIX, i), np.int64(0)
        tokens += min(seq - prefix, INT32_MAX + 1)
        if seq > INT32_MAX or tokens > INT32_MAX:
            return fail(TOO_MANY, i), np.int64(0)
        code = tokens_last_code(slab, refcount, prefix, last_slots[i])
        if code != 0:
            return fail(code, i), np.int64(0)
        pages += (seq + size - 1) // size - (prefix + size - 1) // size
    return tokens, pages


@helper
def claim_run(free_pages, refcount, head, end, most):
    """Claim the pages at `head` as long as their ids are consecutive; return how many.

    Slots of consecutive pages are consecutive too, and are written by one vectorised loop.
    """
    page = free_pages[head]
    run = np.int64(0)
    while run < most and head + run < end and free_pages[head + run] == page + run:
        refcount[page + run] = 1
        run += 1
    return run


@kernel("int64(int64[::1], int64[:], int64[:], int64[:])")
def tokens_total_cpu(slab, prefix_lens, seq_lens, last_slots):
    """Mutates nothing.

    Reads the pool and the three arrays, requires them of one length. It only sizes the buffer;
    `tokens_extend_cpu`, which fills it, tests all of it again.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    tokens, pages = tokens_extend_need(slab, prefix_lens, seq_lens, last_slots)
    available = slab[FREE] + slab[RELEASED]
    unlock(slab)
    return fail(OUT_OF_PAGES, available) if pages > available else tokens


@kernel("int64(int64[::1], int64[:], int64[:], int64[:], int64[::1])")
def tokens_extend_cpu(slab, prefix_lens, seq_lens, last_slots, out):
    """Mutates the pool and `out`, the slots of the new tokens of each sequence.

    Reads the other three arrays, requires them of one length, and `out` as long as
    `tokens_total_cpu` has said.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    # Does all of it fit?
    status, pages = tokens_extend_need(slab, prefix_lens, seq_lens, last_slots)
    if status >= 0 and status != out.size:
        status = fail(CHANGED, 0)
    if status >= 0:
        status = pool_reserve(slab, pages)
    if status < 0:
        unlock(slab)
        return status
    # Sequence by sequence: what its last page has room for, then new pages, by runs of ids.
    free_pages, refcount, _released = pool_views(slab)
    size = slab[PAGE_SIZE]
    head = slab[HEAD]
    put = np.int64(0)
    for i in range(prefix_lens.size):
        left = seq_lens[i] - prefix_lens[i]
        room = (size - prefix_lens[i] % size) % size  # in the partly filled page
        if room > 0 and left > 0:
            n = min(room, left)
            tokens_fill(out, put, last_slots[i] + 1, n)
            put += n
            left -= n
        while left > 0:
            if head == slab[NUM_PAGES]:
                head = np.int64(0)
            first = np.int64(free_pages[head])
            run = claim_run(free_pages, refcount, head, slab[NUM_PAGES], (left + size - 1) // size)
            head += run
            n = min(run * size, left)
            tokens_fill(out, put, first * size, n)
            put += n
            left -= n
    pool_advance(slab, head, pages)
    slab[STEP] += 1
    unlock(slab)
    return np.int64(0)


@helper
def tokens_decode_plausible(seq_lens, last_slots, size, first, end):
    """Return whether all sequences have a token already, and lengths, offsets and ranges fit.

    For a power of two `size` and slots `first .. end - 1`.

    Without a branch, so that it vectorises: 0.2 ns a sequence instead of 2 ns. It says no more
    than "look closer": `tokens_last_code` then finds what is wrong and where.
    """
    bad = np.int64(0)  # its sign bit: something is out of range
    offsets = np.int64(0)  # its low bits: an offset in the page differs
    for i in range(seq_lens.size):
        seq = np.int64(seq_lens[i])
        length = seq - 1
        slot = last_slots[i] + 1
        bad |= seq | (INT32_MAX - seq) | (length - 1) | (slot - 1 - first) | (end - slot)
        offsets |= length ^ slot
    return bad >= 0 and offsets & (size - 1) == 0


@helper
def tokens_decode_fault(slab, refcount, seq_lens, last_slots):
    """Return the status word of the first sequence that cannot decode, or 0."""
    for i in range(seq_lens.size):
        if seq_lens[i] < 1:
            return fail(SEQ_BELOW_PREFIX, i)
        if seq_lens[i] > INT32_MAX:
            return fail(TOO_MANY, i)
        code = tokens_last_code(slab, refcount, seq_lens[i] - 1, last_slots[i])
        if code != 0:
            return fail(code, i)
    return np.int64(0)


@helper
def tokens_decode_pages(last_slots, size, shift):
    """Return how many sequences begin a page."""
    pages = np.int64(0)
    if shift >= 0:
        for i in range(last_slots.size):
            pages += np.int64((last_slots[i] + 1) & (size - 1) == 0)
    else:
        for i in range(last_slots.size):
            pages += np.int64((last_slots[i] + 1) % size == 0)
    return pages


@helper
def tokens_all_held(refcount, last_slots, shift):
    """Return whether every last slot, none of them -1, lies in a held page."""
    owners = np.int32(1)
    for i in range(last_slots.size):
        owners = min(owners, refcount[np.uint64(last_slots[i]) >> np.uint64(shift)])
    return owners > 0


@helper
def tokens_decode_fast(slab, last_slots, out):
    """Write the slot of each new token, for valid input and a freelist that does not wrap.

    No branch on which sequence begins a page (one in 16 does, unpredictably): the next id is
    read either way, at worst from the spare element behind the ring.
    """
    free_pages, refcount, _released = pool_views(slab)
    mask, shift = slab[PAGE_SIZE] - 1, slab[PAGE_SHIFT]
    head = slab[HEAD]
    at = head
    for i in range(out.size):
        slot = last_slots[i] + 1
        begins = slot & mask == 0
        out[i] = np.int64(free_pages[np.uint64(at)]) << shift if begins else slot
        at += np.int64(begins)
    for i in range(head, at):
        refcount[free_pages[i]] = 1
    pool_advance(slab, at, at - head)


@helper
def tokens_decode_claim(slab, last_slots, out, pages):
    """Write the slot of each new token, and take `pages` pages for those that begin one."""
    free_pages, refcount, _released = pool_views(slab)
    size, wrap = slab[PAGE_SIZE], slab[NUM_PAGES]
    head = slab[HEAD]
    for i in range(out.size):
        slot = last_slots[i] + 1
        if slot % size == 0:
            if head == wrap:
                head = np.int64(0)
            slot = np.int64(free_pages[head]) * size
            refcount[free_pages[head]] = 1
            head += 1
        out[i] = slot
    pool_advance(slab, head, pages)


@helper
def tokens_decode(slab, seq_lens, last_slots, out):
    """Decode one token a sequence, the lock being ours; return 0 or a status word."""
    _free_pages, refcount, _released = pool_views(slab)
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    pages = tokens_decode_pages(last_slots, size, shift)
    status = np.int64(0)
    if (
        shift >= 0
        and pages <= slab[FREE]
        and slab[HEAD] + pages <= slab[NUM_PAGES]
        and tokens_decode_plausible(
            seq_lens, last_slots, size, slab[FIRST_PAGE] * size, slab[NUM_PAGES] * size
        )
        and tokens_all_held(refcount, last_slots, shift)
    ):
        tokens_decode_fast(slab, last_slots, out)
    else:  # a wrong call, or one of those that the fast path leaves out
        status = tokens_decode_fault(slab, refcount, seq_lens, last_slots)
        if status == 0:
            status = pool_reserve(slab, pages)
        if status == 0:
            tokens_decode_claim(slab, last_slots, out, pages)
    if status == 0:
        slab[STEP] += 1
    return status


@kernel("int64(int64[::1], int64[:], int64[:], int64[::1])", counted=True)
def tokens_decode_cpu(slab, seq_lens, last_slots, out):
    """Mutates the pool and `out`, the slot of one new token a sequence.

    Reads `seq_lens`, which count the new token, and `last_slots`, requires all three of one length.
    """
    slab = borrow(slab)
    if not try_lock(slab):
        return fail(BUSY, 0)
    seq_lens = np.ascontiguousarray(seq_lens)
    status = tokens_decode(slab, seq_lens, np.ascontiguousarray(last_slots), out)
    unlock(slab)
    return status


@kernel("int64(int64[::1], int32[:], int64[:], int64[::1])", counted=True)
def tokens_decode_narrow_cpu(slab, seq_lens, last_slots, out):
    """Mutates what `tokens_decode_cpu` does, of lengths of int32: as attention kernels read them.

    Reads `seq_lens` and `last_slots`, requires all three of one length.
    """
    slab = borrow(slab)
    if not try_lock(slab):
        return fail(BUSY, 0)
    seq_lens = np.ascontiguousarray(seq_lens)
    status = tokens_decode(slab, seq_lens, np.ascontiguousarray(last_slots), out)
    unlock(slab)
    return status
