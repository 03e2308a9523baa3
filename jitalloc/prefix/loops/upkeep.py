"""Loops over a whole prefix cache: check, rename, resize, copy, unlock.

A kernel to which the pool is given holds its lock while it works, and answers BUSY where somebody
else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import (
    BUSY,
)
from jitalloc.prefix.loops.check_lists import prefix_fault
from jitalloc.prefix.loops.check_nodes import is_node
from jitalloc.prefix.loops.children import bucket_column, hash_link
from jitalloc.prefix.loops.expiries import expiry_ends, expiry_links
from jitalloc.prefix.loops.nodes import (
    following_column,
    node_class,
    node_expiries,
    node_records,
    node_stamps,
    previous_column,
    token_column,
)
from jitalloc.prefix.loops.paths import demote
from jitalloc.prefix.loops.queues import put_in_order, queue_ends
from jitalloc.prefix.state import (
    BY_PRIORITY,
    BY_SLRU,
    COLUMNS_AT,
    FILLED_AT,
    HASH_MASK,
    NODE_CHILD,
    NODE_END,
    NODE_FIELDS,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    NUM_LOCKED,
    NUM_PINNED,
    NUM_PROTECTED,
    PAGES,
    PINS_SHIFT,
    POLICY,
    PREFIX_PAGE_SIZE,
    QUEUE_FOLLOWING,
    QUEUE_PREVIOUS,
    SIBLING_FOLLOWING,
    SIBLING_PREVIOUS,
    STAMPS_AT,
    TOP,
    UNCACHED,
)


@kernel("int64(int64[::1], int64[::1], uint64[::1])")
def prefix_upkeep_check_cpu(pool, prefix, seen):
    """Mutates `seen` alone: a bit for each cached page.
    Reads the pool and the prefix cache, requires `seen` to have a bit a page, all zero.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = prefix_fault(pool, prefix, seen)
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64[::1])")
def prefix_upkeep_copy_cpu(pool, prefix, out):
    """Mutates `out`, which becomes a copy of the prefix slab.
    Reads all of the slab, requires `out` to be as long.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    for i in range(prefix.size):
        out[i] = prefix[i]
    unlock(pool)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int32[::1])")
def prefix_upkeep_roots_cpu(pool, prefix, out):
    """Mutates `out`: the root of each node that begins a path.
    Reads the list of these nodes, requires room in `out` for all of them: a page each is enough.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    count = np.int64(0)
    node = prefix[TOP]
    while node >= 0:
        out[count] = previous_pages[node]
        count += 1
        node = np.int64(nodes[node, SIBLING_FOLLOWING])
    unlock(pool)
    return count


@helper
def rehash(prefix):
    """Build the hash table anew."""
    buckets = bucket_column(prefix)
    for at in range(buckets.size):
        buckets[at] = -1
    for page in range(prefix[PAGES]):
        if is_node(prefix, np.int64(page)):
            hash_link(prefix, np.int64(page))


@helper
def copy_row(source, page, out, to):
    """Copy what stands in the columns of `source` for `page` to `to` in `out`."""
    following_column(out)[to] = following_column(source)[page]
    previous_column(out)[to] = previous_column(source)[page]
    node_stamps(out)[to] = node_stamps(source)[page]
    for field in range(NODE_FIELDS):
        node_records(out)[to, field] = node_records(source)[page, field]
    if source[POLICY] == BY_PRIORITY:
        node_expiries(out)[to] = node_expiries(source)[page]
        for side in range(2):
            expiry_links(out)[to, side] = expiry_links(source)[page, side]
    size = source[PREFIX_PAGE_SIZE]
    mine, theirs = token_column(source), token_column(out)
    for j in range(size):
        theirs[to * size + j] = mine[page * size + j]


@helper
def rename_all(pages, names):
    """Rename the pages in a row of links, where they are pages."""
    for i in range(pages.size):
        if pages[i] >= 0:
            pages[i] = names[pages[i]]


@kernel("int64(int64[::1], int32[::1], int32[::1], int32[::1])")
def prefix_upkeep_rename_cpu(prefix, names, src, dst):
    """Mutates the prefix slab: every link to a page, and the rows of the pages that move.
    Reads `names[p]`, the new id of page `p`, and which move, `src` to `dst`, requires that the
    caller is inside the pool, and that no page of `dst` is cached.
    """
    nodes = node_records(prefix)
    following_pages = following_column(prefix)
    previous_pages = previous_column(prefix)
    # Records of nodes, and the ends of lists.
    for page in range(prefix[PAGES]):
        if is_node(prefix, np.int64(page)):
            for field in (
                NODE_END,
                NODE_CHILD,
                SIBLING_FOLLOWING,
                SIBLING_PREVIOUS,
                QUEUE_FOLLOWING,
                QUEUE_PREVIOUS,
            ):
                if nodes[page, field] >= 0:
                    nodes[page, field] = names[nodes[page, field]]
            if prefix[POLICY] == BY_PRIORITY:
                rename_all(expiry_links(prefix)[page], names)
    for side in range(2):
        rename_all(queue_ends(prefix)[side], names)
        rename_all(expiry_ends(prefix)[side], names)
    if prefix[TOP] >= 0:
        prefix[TOP] = names[prefix[TOP]]
    # Pages of a path.
    for page in range(prefix[PAGES]):
        following = following_pages[page]
        if following >= 0:
            following_pages[page] = names[following]
        elif following != UNCACHED:
            following_pages[page] = ~names[~following]
        if following != UNCACHED and previous_pages[page] >= 0:
            previous_pages[page] = names[previous_pages[page]]
    # Rows that move. Then the hashes, for they are made of ids.
    for i in range(src.size):
        copy_row(prefix, np.int64(src[i]), prefix, np.int64(dst[i]))
        following_pages[src[i]] = UNCACHED
    rehash(prefix)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1])")
def prefix_upkeep_resize_cpu(prefix, new):
    """Mutates `new`, which takes over whatever the prefix cache counts, lists and holds.
    Reads `prefix`, requires that the caller is inside the pool, `new` is the slab of an empty cache
    with its own size and options, and no page past its end is cached.
    """
    for slot in range(HASH_MASK, STAMPS_AT):
        new[slot] = prefix[slot]
    for word in range(FILLED_AT, COLUMNS_AT):
        new[word] = prefix[word]
    for page in range(min(prefix[PAGES], new[PAGES])):
        copy_row(prefix, np.int64(page), new, np.int64(page))
    rehash(new)
    return np.int64(0)


@kernel("int64(int64[::1], int64)")
def prefix_upkeep_unlock_cpu(prefix, alone):
    """Mutates the prefix slab: every lock and pin goes, what was parked for a lock is queued again.
    Reads the records of all nodes, requires a slab that nobody else has yet.

    Queued again, children or not: `demote` finds there what is protected. It waits for the locks of
    sequences, where there will be some (`alone` is 0).
    """
    nodes = node_records(prefix)
    # Records and counts.
    prefix[NUM_LOCKED] = 0
    prefix[NUM_PINNED] = 0
    prefix[NUM_PROTECTED] = 0
    for node in range(prefix[PAGES]):
        if is_node(prefix, node):
            nodes[node, NODE_LOCKS] = 0
            nodes[node, NODE_STATE] &= (1 << PINS_SHIFT) - 1
            prefix[NUM_PROTECTED] += node_class(prefix, node) * nodes[node, NODE_LENGTH]
    if prefix[POLICY] != BY_SLRU:
        prefix[NUM_PROTECTED] = 0
    # Queues.
    for node in range(prefix[PAGES]):
        if is_node(prefix, node):
            put_in_order(prefix, np.int64(node))
    if alone != 0:
        demote(prefix)
    return np.int64(0)
