"""How a batch of extensions is looked at, and how a last slot is wrong."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import (
    LAST_SLOT_MISALIGNED,
    LAST_SLOT_NOT_HELD,
    LAST_SLOT_RANGE,
    NEGATIVE,
    SEQ_BELOW_PREFIX,
    TOO_MANY,
)
from jitalloc.gpu.calls import fault_key, integer
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import NOWHERE, any_thread, block_min, block_scan
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.loops.pool_cuda import page_of
from jitalloc.pool.state import FIRST_PAGE, NUM_PAGES, PAGE_SHIFT, PAGE_SIZE
from jitalloc.state import INT32_MAX, NULL

MANY_TOKENS = 2**21  # 1,024 sequences that grow by less fit 31 bits together


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
    return np.int64(LAST_SLOT_NOT_HELD if refcount[page] == 0 else 0)


@device_helper
def new_pages(prefix, seq, size, shift):
    """Return how many pages a sequence needs to grow from `prefix` to `seq` tokens."""
    return page_of(seq + size - 1, size, shift) - page_of(prefix + size - 1, size, shift)


@device_helper
def lengths_of(lens, i):
    """Return `(prefix, seq, whether it is padding)` of sequence `i`; padding has no tokens.

    `lens`: `(prefix_lens, seq_lens, wide)`.
    """
    prefix_lens, seq_lens, wide = lens
    seq = integer(seq_lens, wide >> 1, i)
    if seq == NULL:
        return np.int64(0), np.int64(0), True
    return integer(prefix_lens, wide & 1, i), seq, False


@device_helper
def extend_fault(slab, prefix, seq, last, i, tokens):
    """Return the key of why a sequence cannot be extended, or NOWHERE; `tokens`: up to it."""
    _free_pages, refcount, _released = pool_views(slab)
    if prefix < 0:
        return fault_key(NEGATIVE, i)
    if seq < prefix:
        return fault_key(SEQ_BELOW_PREFIX, i)
    if seq > INT32_MAX or tokens > INT32_MAX:
        return fault_key(TOO_MANY, i)
    code = last_code(slab, refcount, prefix, last)
    return fault_key(code, i) if code != 0 else NOWHERE


@device_helper
def extend_need(slab, shared, lens, last_slots):
    """Return `(tokens, pages)` of a batch of extensions, or `(status word, 0)`; one tile twice."""
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    n, begin = np.int64(last_slots.size), np.int64(0)
    tokens, pages = np.int64(0), np.int64(0)
    while begin < n:
        i = begin + gpu.threadIdx.x
        prefix, seq, pads = np.int64(0), np.int64(0), True
        if i < n:
            prefix, seq, pads = lengths_of(lens, i)
        grown = np.int64(0)
        if 0 <= prefix <= seq:
            grown = min(seq - prefix, np.int64(INT32_MAX + 1))
        before, total = block_scan(shared, grown)
        key = NOWHERE
        if not pads:
            key = extend_fault(slab, prefix, seq, last_slots[i], i, tokens + before + grown)
        tokens += total
        if any_thread(key != NOWHERE):
            return -block_min(shared, key), np.int64(0)
        _before, total = block_scan(shared, new_pages(prefix, seq, size, shift))
        pages += total
        begin += gpu.blockDim.x
    return tokens, pages


@device_helper
def extend_both(slab, lens, last_slots, i):
    """Return `(growth, prefix)` of sequence `i`: its new tokens, above its new pages in 32 bits.

    A growth of -1: it is wrong, or grows by very many; `extend_need` finds out.
    """
    _free_pages, refcount, _released = pool_views(slab)
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    lowest, above = slab[FIRST_PAGE] * size, slab[NUM_PAGES] * size
    prefix, seq, pads = lengths_of(lens, i)
    last = last_slots[i]
    held = lowest <= last < above
    owners = refcount[page_of(last if held else lowest, size, shift)]
    sound = held and prefix > 0 and owners > 0
    sound = sound and offset_of(last + 1, size, shift) == offset_of(prefix, size, shift)
    sound = sound or pads or (prefix == 0 and last == NULL)
    grown = seq - prefix
    if not sound or grown < 0 or grown >= MANY_TOKENS or seq > INT32_MAX:
        return np.int64(-1), np.int64(0)
    return grown << np.int64(32) | new_pages(prefix, seq, size, shift), prefix


@device_helper
def put_tile(both, prefix, tile):
    """Put into shared memory which slots and new pages of a tile are whose.

    `tile`: `(shared, starts, firsts, prefixes)`. Sequence `j` gets the slots from `starts[j]` on,
    and the new pages from `firsts[j]` on, counted from those of the tile, behind `prefixes[j]`
    tokens that it has. Returns the totals of the tile.
    """
    shared, starts, firsts, prefixes = tile
    before, total = block_scan(shared, both)
    starts[gpu.threadIdx.x] = before >> np.int64(32)
    firsts[gpu.threadIdx.x] = before & np.int64(0xFFFFFFFF)
    prefixes[gpu.threadIdx.x] = prefix
    gpu.syncthreads()
    return total >> np.int64(32), total & np.int64(0xFFFFFFFF)


@device_helper
def extend_look(slab, lens, last_slots, tile):
    """Return `(tokens, pages)` of a batch of extensions, or `(-1, 0)`: `extend_need` finds out.

    What `extend_tile` puts into shared memory stands there for the last tile.
    """
    n, begin = np.int64(last_slots.size), np.int64(0)
    tokens, pages = np.int64(0), np.int64(0)
    while begin < n and tokens <= INT32_MAX:
        i, both, prefix = begin + gpu.threadIdx.x, np.int64(0), np.int64(0)
        if i < n:
            both, prefix = extend_both(slab, lens, last_slots, i)
        if any_thread(both < 0):
            return np.int64(-1), np.int64(0)
        grown, begun = put_tile(both, prefix, tile)
        tokens += grown
        pages += begun
        begin += gpu.blockDim.x
    return (tokens, pages) if tokens <= INT32_MAX else (np.int64(-1), np.int64(0))


@device_helper
def extend_tile(slab, lens, n, begin, tile):
    """Put into shared memory which slots and new pages of the tile from `begin` on are whose."""
    i, both, prefix = np.int64(begin + gpu.threadIdx.x), np.int64(0), np.int64(0)
    if i < n:
        prefix, seq, _pads = lengths_of(lens, i)
        pages = new_pages(prefix, seq, slab[PAGE_SIZE], slab[PAGE_SHIFT])
        both = (seq - prefix) << np.int64(32) | pages
    return put_tile(both, prefix, tile)
