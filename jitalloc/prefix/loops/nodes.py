"""Nodes of the tree of cached pages: the columns of the slab, and what stands in them for a node.

Shared by the loops of the prefix cache. `end` stands for the last page of a node, or for the root
of a namespace, `-2 - namespace`; `node` for the first page of one.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import int32_column, int32_rows, int64_column
from jitalloc._jit import counting, helper
from jitalloc.prefix.state import (
    EXPIRIES_AT,
    FOLLOWING_AT,
    NODE_FIELDS,
    NODE_STATE,
    NODES_AT,
    PAGES,
    PREFIX_PAGE_SIZE,
    PREVIOUS_AT,
    STAMPS_AT,
    TOKENS_AT,
)

FIRST = 0  # rows of `queue_ends` and of `expiry_ends`
LAST = 1


@counting
def following_column(prefix):
    """Return for each page the one that follows it in its node."""
    return int32_column(prefix, prefix[FOLLOWING_AT], prefix[PAGES])


@counting
def previous_column(prefix):
    """Return for each page the one before it on its path."""
    return int32_column(prefix, prefix[PREVIOUS_AT], prefix[PAGES])


@counting
def node_records(prefix):
    """Return the records of the nodes, by their first pages."""
    return int32_rows(prefix, prefix[NODES_AT], prefix[PAGES], NODE_FIELDS)


@counting
def node_stamps(prefix):
    """Return the stamps of the nodes' first pages."""
    return int64_column(prefix, prefix[STAMPS_AT], prefix[PAGES])


@counting
def node_expiries(prefix):
    """Return the expiries of the nodes (policy `priority` only)."""
    return int64_column(prefix, prefix[EXPIRIES_AT], prefix[FOLLOWING_AT] - prefix[EXPIRIES_AT])


@counting
def token_column(prefix):
    """Return the tokens of all pages, one page behind the other."""
    return int32_column(prefix, prefix[TOKENS_AT], prefix[PAGES] * prefix[PREFIX_PAGE_SIZE])


@helper
def node_of(prefix, end):
    """Return the node that ends with page `end`."""
    return np.int64(~following_column(prefix)[end])


@helper
def node_class(prefix, node):
    """Return the class of `node`: the queue that it belongs to."""
    return np.int64(node_records(prefix)[node, NODE_STATE] & 255)
