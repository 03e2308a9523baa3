"""Comparing tokens with cached pages, in slices as long as possible.

Shared by the loops of the prefix cache.
"""

from __future__ import annotations

import numpy as np

from jitalloc._jit import helper
from jitalloc.prefix.loops.nodes import token_column
from jitalloc.prefix.state import PREFIX_PAGE_SIZE

BLOCK = 64  # elements that are compared without a way out
SHORT = 16


@helper
def slices_agree(left, at, right, start, size):
    """Return whether `size` tokens of `left[at:]` are those of `right[start:]`."""
    a, b = np.uint64(at), np.uint64(start)
    different = np.int32(0)
    for j in range(np.uint64(size)):  # no early way out and no signed index, so it vectorises
        different |= left[a + j] ^ right[b + j]
    return different == 0


@helper
def agreement(left, at, right, start, size):
    """Return how many tokens agree of `left[at:]` and `right[start:]`, at most `size`."""
    done = np.int64(0)
    while done + BLOCK <= size and slices_agree(left, at + done, right, start + done, BLOCK):
        done += BLOCK
    while done + SHORT <= size and slices_agree(left, at + done, right, start + done, SHORT):
        done += SHORT
    while done < size and left[at + done] == right[start + done]:
        done += 1
    return done


@helper
def consecutive(following_pages, page, size):
    """Return how many pages behind `page` have the ids that follow its own, at most `size`."""
    done = np.int64(0)
    if size == 0 or following_pages[page] != page + 1:
        return done
    while done + BLOCK <= size:
        first = np.uint64(page + done)
        following = np.int32(first) + np.int32(1)
        different = np.int32(0)
        for j in range(np.uint64(BLOCK)):
            different |= following_pages[first + j] ^ (following + np.int32(j))
        if different != 0:
            break
        done += BLOCK
    while done < size and following_pages[page + done] == page + done + 1:
        done += 1
    return done


@helper
def page_agrees(prefix, page, tokens, at):
    """Return whether the tokens of `page` are those from `tokens[at]` on."""
    size = prefix[PREFIX_PAGE_SIZE]
    return agreement(token_column(prefix), page * size, tokens, at, size) == size
