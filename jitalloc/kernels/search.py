"""The search for the longest cached prefix: token against token, in slices as long as possible.

Shared by the loops of the prefix cache. What is searched for stands in `tokens`: page `i` of it
from `i * page_size` on or, where `rows` has elements, from `rows[i] * page_size` on (so that the
token column itself can be searched for).
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import int32_column
from jitalloc._jit import helper
from jitalloc.kernels.children import bucket_column, first_child, page_hash
from jitalloc.kernels.comparing import agreement, consecutive, page_agrees
from jitalloc.kernels.joints import split_run
from jitalloc.kernels.runs import next_pages, prev_pages, run_records, token_column
from jitalloc.prefix_state import (
    BUCKET_MASK,
    CHAIN_NEXT,
    MATCH_PARTIAL_PAGE,
    MATCH_PARTIAL_TOKENS,
    ROW,
    RUN_LENGTH,
    SIBLING_NEXT,
)

PARTIAL_CHILDREN = 32  # runs of the namespace that are looked at for a partial page
PARTIAL_LOOKS = 64  # and runs at the roots of all namespaces


@helper
def find_child(prefix, end, tokens, at):
    """Return the run behind `end` whose first page has the tokens from `tokens[at]` on, or -1."""
    runs = run_records(prefix)
    if end >= 0:
        run = first_child(prefix, end)
        if run < 0 or page_agrees(prefix, run, tokens, at):
            return run
        if runs[run, SIBLING_NEXT] < 0:
            return np.int64(-1)
    prevs = prev_pages(prefix)
    code = page_hash(prefix, end, tokens, at)
    run = np.int64(bucket_column(prefix)[code & prefix[BUCKET_MASK]])
    while run >= 0 and not (prevs[run] == end and page_agrees(prefix, run, tokens, at)):
        run = np.int64(runs[run, CHAIN_NEXT])
    return run


@helper
def follow(prefix, run, tokens, rows, at, size, out):
    """Write the pages of `run` that agree with pages `at` .. `size - 1` of what is searched for.

    The first is known to agree. Returns how many there are.
    """
    nexts, column = next_pages(prefix), token_column(prefix)
    width = prefix[ROW]
    page = run
    out[at] = page
    done = np.int64(1)
    size = min(size - at, np.int64(run_records(prefix)[run, RUN_LENGTH]))
    while done < size:
        step = np.int64(0)
        if rows.size == 0:
            step = consecutive(nexts, page, size - done)
        if step > 0:
            start = (at + done) * width
            same = agreement(column, (page + 1) * width, tokens, start, step * width) // width
        else:
            step = np.int64(1)
            page = np.int64(nexts[page]) - 1
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

    Writes the pages into `out` (of `size` elements). A run ends with the last page, for the run
    that went on behind it has been split.
    """
    runs = run_records(prefix)
    done = np.int64(0)
    while done < size:
        at = rows[done] * prefix[ROW] if rows.size > 0 else done * prefix[ROW]
        run = find_child(prefix, end, tokens, at)
        if run < 0:
            break
        same = follow(prefix, run, tokens, rows, done, size, out)
        done += same
        end = np.int64(out[done - 1])
        if same < runs[run, RUN_LENGTH]:
            split_run(prefix, run, end, same)
            break
    return done, end


@helper
def find(prefix, root, tokens, out):
    """Find the longest cached prefix of `tokens` at `root`; return `(number of pages, end)`.

    Writes the pages into `out`, which has room for every whole page of `tokens`. A run ends
    with the last page, or it is the root.
    """
    rows = int32_column(prefix, 0, 0)  # none
    return descend(prefix, root, tokens, rows, tokens.size // prefix[ROW], out)


@helper
def find_partial(prefix, root, end, tokens, at, record):
    """Write into `record` which page behind `end` agrees most with the tokens from `at` on."""
    runs, prevs, column = run_records(prefix), prev_pages(prefix), token_column(prefix)
    size = min(prefix[ROW], tokens.size - at)
    record[MATCH_PARTIAL_PAGE] = -1
    record[MATCH_PARTIAL_TOKENS] = 0
    run = first_child(prefix, end) if size > 0 else np.int64(-1)
    children, looks = 0, 0
    while run >= 0 and children < PARTIAL_CHILDREN and looks < PARTIAL_LOOKS:
        looks += 1
        if end >= 0 or prevs[run] == root:
            children += 1
            same = agreement(column, run * prefix[ROW], tokens, at, size)
            if same > record[MATCH_PARTIAL_TOKENS]:
                record[MATCH_PARTIAL_TOKENS] = same
                record[MATCH_PARTIAL_PAGE] = run
        run = np.int64(runs[run, SIBLING_NEXT])
