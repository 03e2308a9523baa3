"""Loops of commits: what of sequences is computed, and so may enter the prefix cache.

`prefix` is the slab of the prefix cache, or an array of one element where there is none: then
nothing is to enter.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import kernel
from jitalloc.errors import BUSY, NEGATIVE, POSITION_RANGE, TOKEN_DIFFERS
from jitalloc.pool.state import STEP
from jitalloc.prefix.loops.prefix import negative_token
from jitalloc.sequences.loops.committing import (
    first_difference,
    row_cached,
    row_compute,
    write_tokens,
)
from jitalloc.sequences.loops.row_locks import has_prefix
from jitalloc.sequences.loops.rows import live_rows
from jitalloc.sequences.loops.tables import tables_column
from jitalloc.sequences.state import GAP, KNOWN, LENGTH


@kernel("int64(int64[::1], int64[::1], int64[::1], int64, int64, int32[::1])")
def commits_row_cpu(pool, tables, prefix, row, num_tokens, tokens):
    """Mutates pool, tables and prefix cache: the first `num_tokens` tokens of `row` are computed,
    or all where it is below 0, and `row` is known to begin with `tokens`. Its full pages of tokens
    that are both enter the cache, or give way to the cached ones.

    Reads `tokens`, requires a live row, and no more of both than it has; returns how many of its
    tokens are cached.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = negative_token(tokens, np.int64(0))
    if has_prefix(prefix) and tokens.size > 0:
        known = tables_column(tables, KNOWN)
        at = first_difference(pool, tables, prefix, row, tokens)
        if at >= 0:
            status = fail(TOKEN_DIFFERS, at)
        if status == 0 and tokens.size > known[row] and tables_column(tables, GAP)[row] == 0:
            write_tokens(tables, prefix, row, known[row], tokens[known[row] :])
            known[row] = tokens.size
    if status == 0:
        row_compute(pool, tables, prefix, row, num_tokens)
        status = row_cached(tables, row)
        pool[STEP] += 1
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[:], int64[:], int64[::1])")
def commits_batch_cpu(pool, tables, prefix, rows, counts, out):
    """Mutates pool, tables and prefix cache: the first tokens of each of `rows` are computed, and
    its full pages enter the cache as by `commits_row_cpu`, or none does; and `out`, how many
    tokens of each are cached.

    Reads `rows` and `counts`, one a row or one for all, or none where all tokens are computed.
    Requires `out` as long as `rows`.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    length = tables_column(tables, LENGTH)
    status = live_rows(tables, rows)
    for i in range(rows.size if status == 0 and counts.size > 0 else 0):
        n = counts[i if counts.size > 1 else 0]
        if status == 0 and (n < 0 or n > length[rows[i]]):
            status = fail(NEGATIVE if n < 0 else POSITION_RANGE, i)
    if status == 0:
        for i in range(rows.size):
            n = counts[i if counts.size > 1 else 0] if counts.size > 0 else np.int64(-1)
            row_compute(pool, tables, prefix, np.int64(rows[i]), n)
        for i in range(rows.size):  # last: a fork locks what the other one enters
            out[i] = row_cached(tables, np.int64(rows[i]))
        pool[STEP] += 1
    unlock(pool)
    return status
