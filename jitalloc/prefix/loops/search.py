"""The search for the longest cached prefix: token against token, in slices as long as possible.

Shared by the loops of the prefix cache. What is searched for stands in `tokens`: page `i` of it
from `i * page_size` on or, where `rows` has elements, from `rows[i] * page_size` on (so that the
token column itself can be searched for).
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import int32_column
from jitalloc._jit import helper
from jitalloc.prefix.loops.children import bucket_column, first_child, page_hash
from jitalloc.prefix.loops.compare import agreement, consecutive, page_agrees
from jitalloc.prefix.loops.nodes import (
    following_column,
    node_records,
    previous_column,
    token_column,
)
from jitalloc.prefix.loops.split_join import split_node
from jitalloc.prefix.state import (
    BUCKET_MASK,
    CHAIN_FOLLOWING,
    HIDDEN,
    MATCH_PARTIAL_PAGE,
    MATCH_PARTIAL_TOKENS,
    NODE_LENGTH,
    NODE_STATE,
    PREFIX_PAGE_SIZE,
    SIBLING_FOLLOWING,
)

PARTIAL_CHILDREN = 32  # nodes of the namespace that are looked at for a partial page
PARTIAL_LOOKS = 64  # and nodes at the roots of all namespaces


@helper
def find_child(prefix, end, tokens, at):
    """Return the node behind `end` whose first page has the tokens from `tokens[at]` on, or -1.

    One that is hidden is not found.
    """
    nodes = node_records(prefix)
    if end >= 0:
        node = first_child(prefix, end)
        if node < 0:
            return node
        if nodes[node, NODE_STATE] & HIDDEN == 0 and page_agrees(prefix, node, tokens, at):
            return node
        if nodes[node, SIBLING_FOLLOWING] < 0:
            return np.int64(-1)
    previous_pages = previous_column(prefix)
    code = page_hash(prefix, end, tokens, at)
    node = np.int64(bucket_column(prefix)[code & prefix[BUCKET_MASK]])
    while node >= 0 and not (
        previous_pages[node] == end
        and nodes[node, NODE_STATE] & HIDDEN == 0
        and page_agrees(prefix, node, tokens, at)
    ):
        node = np.int64(nodes[node, CHAIN_FOLLOWING])
    return node


@helper
def follow(prefix, node, tokens, rows, at, size, out):
    """Write the pages of `node` that agree with pages `at` .. `size - 1` of what is searched for.

    The first is known to agree. Returns how many there are.
    """
    following_pages, column = following_column(prefix), token_column(prefix)
    width = prefix[PREFIX_PAGE_SIZE]
    page = node
    out[at] = page
    done = np.int64(1)
    size = min(size - at, np.int64(node_records(prefix)[node, NODE_LENGTH]))
    while done < size:
        step = np.int64(0)
        if rows.size == 0:
            step = consecutive(following_pages, page, size - done)
        if step > 0:
            start = (at + done) * width
            same = agreement(column, (page + 1) * width, tokens, start, step * width) // width
        else:
            step = np.int64(1)
            page = np.int64(following_pages[page]) - 1
            start = rows[at + done] * width if rows.size > 0 else (at + done) * width
            same = np.int64(page_agrees(prefix, page + 1, tokens, start))
        block = out[at + done : at + done + same]
        for j in range(same):
            block[j] = page + 1 + j
        page += same
        done += same
        if same < step:
            break
    return done


@helper
def descend(prefix, end, tokens, rows, size, out):
    """Find the longest cached continuation behind `end`; return `(number of pages, last page)`.

    Writes the pages into `out` (of `size` elements). A node ends with the last page, for the node
    that went on behind it has been split.
    """
    nodes = node_records(prefix)
    done = np.int64(0)
    while done < size:
        at = (rows[done] if rows.size > 0 else done) * prefix[PREFIX_PAGE_SIZE]
        node = find_child(prefix, end, tokens, at)
        if node < 0:
            break
        same = follow(prefix, node, tokens, rows, done, size, out)
        done += same
        end = np.int64(out[done - 1])
        if same < nodes[node, NODE_LENGTH]:
            split_node(prefix, node, end, same)
            break
    return done, end


@helper
def find(prefix, root, tokens, out):
    """Find the longest cached prefix of `tokens` at `root`; return `(number of pages, end)`.

    Writes the pages into `out`, which has room for every whole page of `tokens`. A node ends
    with the last page, or it is the root.
    """
    rows = int32_column(prefix, 0, 0)  # none
    return descend(prefix, root, tokens, rows, tokens.size // prefix[PREFIX_PAGE_SIZE], out)


@helper
def find_partial(prefix, root, end, tokens, at, record):
    """Write into `record` which page behind `end` agrees most with the tokens from `at` on."""
    nodes = node_records(prefix)
    previous_pages = previous_column(prefix)
    column = token_column(prefix)
    size = min(prefix[PREFIX_PAGE_SIZE], tokens.size - at)
    record[MATCH_PARTIAL_PAGE] = -1
    record[MATCH_PARTIAL_TOKENS] = 0
    node = first_child(prefix, end) if size > 0 else np.int64(-1)
    children, looks = 0, 0
    while node >= 0 and children < PARTIAL_CHILDREN and looks < PARTIAL_LOOKS:
        looks += 1
        if end >= 0 or previous_pages[node] == root:
            children += 1
            same = np.int64(0)
            if nodes[node, NODE_STATE] & HIDDEN == 0:
                same = agreement(column, node * prefix[PREFIX_PAGE_SIZE], tokens, at, size)
            if same > record[MATCH_PARTIAL_TOKENS]:
                record[MATCH_PARTIAL_TOKENS] = same
                record[MATCH_PARTIAL_PAGE] = node
        node = np.int64(nodes[node, SIBLING_FOLLOWING])


@helper
def peek_node(prefix, end, tokens, done, size, out):
    """Return the node behind `end` that agrees with page `done` of `tokens`, or -1, and how many of
    its pages do, up to page `size`: these are written to `out`, and it is not split.
    """
    rows = int32_column(prefix, 0, 0)  # none
    node, same = find_child(prefix, end, tokens, done * prefix[PREFIX_PAGE_SIZE]), np.int64(0)
    if node >= 0:
        same = follow(prefix, node, tokens, rows, done, size, out)
    return node, same


@helper
def peek(prefix, root, tokens, out):
    """Find what `find` does, but split no node; return `(number of pages, last page)`."""
    size, done, end = tokens.size // prefix[PREFIX_PAGE_SIZE], np.int64(0), root
    while done < size and (end < 0 or following_column(prefix)[end] < 0):
        node, same = peek_node(prefix, end, tokens, done, size, out)
        if node < 0:
            break
        done += same
        end = np.int64(out[done - 1])
    return done, end


@helper
def peek_partial(prefix, root, end, tokens, at, record):
    """Write into `record` what `find_partial` does; `end` may stand within a node."""
    following = np.int64(following_column(prefix)[end]) if end >= 0 else np.int64(-1)
    if following < 0:
        find_partial(prefix, root, end, tokens, at, record)
    else:
        size = min(prefix[PREFIX_PAGE_SIZE], tokens.size - at)
        column, start = token_column(prefix), following * prefix[PREFIX_PAGE_SIZE]
        same = agreement(column, start, tokens, at, size)
        record[MATCH_PARTIAL_PAGE] = following if same > 0 else -1
        record[MATCH_PARTIAL_TOKENS] = same
