"""What callers hand to sequences, and what a status word about it says to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc.arguments import as_count, as_lengths
from jitalloc.errors import (
    NEGATIVE,
    NEGATIVE_TOKEN,
    OUT_OF_PAGES,
    OUT_OF_ROWS,
    PAGE_FREE,
    PAGE_REASONS,
    POSITION_RANGE,
    REFCOUNT_OVERFLOW,
    TABLE_WIDTH,
    TOO_MANY,
    InvalidArgument,
    InvalidPage,
    JitallocError,
    OutOfPages,
    OutOfRows,
    SequenceTooLong,
    argument_error,
    pack_status,
    unpack_status,
)
from jitalloc.pool.loops.pool import pool_total_cpu
from jitalloc.pool.pool import PagePool
from jitalloc.sequences.state import LENGTH
from jitalloc.sequences.tables import BlockTables
from jitalloc.state import INT32_MAX, INT64

OWNERS_TEXT = "a page would have more owners than int32 holds"


def as_growth(n: Any, batch: int) -> tuple[NDArray[np.int64], int]:
    """Return new tokens, for all rows of a batch or of each, and their sum."""
    scalar = np.ndim(n) == 0
    counts = as_lengths("n", [as_count("n", n)] if scalar else n, 1 if scalar else batch)
    total = pool_total_cpu.run(counts) * (batch if scalar else 1)
    if total < 0:
        raise argument_error(total, "n", counts)
    if total > INT32_MAX:
        raise argument_error(pack_status(TOO_MANY, 0), "n", counts)
    return counts, total


def kept_or_dropped(num_tokens: ArrayLike | None, drop: ArrayLike | None) -> tuple[str, Any]:
    """Return which of the arguments of `truncate_batch` is given, and what it is."""
    if (num_tokens is None) == (drop is None):
        given = "both are" if drop is not None else "neither is"
        raise InvalidArgument("num_tokens", None, f"needed, or else drop: {given} given")
    return ("num_tokens", num_tokens) if drop is None else ("drop", drop)


def check_same_length(name: str, values: Any, other: Any) -> None:
    """Raise where an array is not as long as another one."""
    if values.size != other.size:
        expected = f"must have {other.size} elements"
        raise InvalidArgument(name, values.size, expected, fact="size")


def check_token_count(ids: Any, total: int) -> None:
    """Raise where there are not as many ids as new tokens."""
    if ids.size != total:
        text = f"must have {total} elements, one a new token"
        raise InvalidArgument("tokens", ids.size, text, fact="size")


def opening_error(status: int, tokens: int, ids: Any, tables: BlockTables) -> JitallocError:
    """Return why no sequence of so many tokens could begin; `ids`: theirs, or None."""
    code, detail = unpack_status(status)
    pages = -(-tokens // tables.page_size)
    if code == NEGATIVE_TOKEN:
        return argument_error(status, "tokens", ids)
    if code == OUT_OF_PAGES:
        return OutOfPages(pages, detail)
    if code == OUT_OF_ROWS:
        return OutOfRows(f"all {tables.max_sequences} rows hold sequences")
    if code == REFCOUNT_OVERFLOW:
        return InvalidArgument("src_id", None, OWNERS_TEXT)
    if code == POSITION_RANGE:
        return InvalidArgument("num_tokens", tokens, f"the sequence has {detail} tokens")
    return too_long("num_tokens", tokens, pages, None, tables)


def check_page_count(pages: Any, num_tokens: int, page_size: int) -> None:
    """Raise where there are not as many pages as so many tokens need."""
    needed = -(-num_tokens // page_size)
    if pages.size != needed:
        text = f"must have {needed} elements: {num_tokens} tokens, {page_size} a page"
        raise InvalidArgument("pages", pages.size, text, fact="size")


def adopting_error(
    status: int, pool: PagePool, tables: BlockTables, tokens: Any, pages: Any
) -> JitallocError:
    """Return why no sequence could adopt `pages`."""
    code, position = unpack_status(status)
    if code == TABLE_WIDTH:
        return too_long("tokens", tokens.size, pages.size, None, tables)
    if code == PAGE_FREE:
        text = "the page is free; only a held page can be adopted"
        return InvalidPage("pages", int(pages[position]), text, position)
    if code in PAGE_REASONS:
        return pool._page_error(status, pages)
    return opening_error(status, tokens.size, tokens, tables)


def too_long(
    argument: str, tokens: int, pages: int, position: int | None, tables: BlockTables
) -> SequenceTooLong:
    """Return why a sequence of so many tokens does not fit a row."""
    width = tables.max_pages_per_sequence
    text = f"the sequence would need {pages} pages; a row holds {width}, a length fits int32"
    return SequenceTooLong(argument, tokens, text, position)


def append_error(
    status: int,
    pool: PagePool,
    tables: BlockTables,
    rows: NDArray[np.int32],
    counts: NDArray[np.int64],
    ids: NDArray[np.int32],
) -> JitallocError:
    """Return why the sequences in `rows` could not grow."""
    code, position = unpack_status(status)
    counts, size = np.broadcast_to(counts, rows.size), tables.page_size
    if code == NEGATIVE:
        return argument_error(status, "n", counts)
    if code == NEGATIVE_TOKEN:
        return argument_error(status, "tokens", ids)
    if code not in (OUT_OF_PAGES, TABLE_WIDTH):
        return tables._row_error(status, "rows", rows)
    lengths = tables.arrays.columns[LENGTH, rows]
    before, after = -(-lengths // size), -(-(lengths + counts) // size)
    if code == TABLE_WIDTH:
        tokens, pages = int(counts[position]), int(after[position])
        return too_long("n", tokens, pages, position, tables)
    writes = (lengths % size != 0) & (counts > 0)
    last = tables.arrays.pages[rows[writes], before[writes] - 1]
    shared, writers = np.unique(last, return_counts=True)
    copies = np.minimum(writers, pool.refcount(shared) - 1).sum()
    return OutOfPages(int((after - before).sum() + copies), position)


def as_computed(num_tokens: ArrayLike | None, batch: int) -> NDArray[np.int64]:
    """Return how far the sequences of a batch are computed: of each, for all, or nothing of it."""
    if num_tokens is None:
        return np.empty(0, INT64)
    scalar = np.ndim(num_tokens) == 0
    given = [as_count("num_tokens", num_tokens)] if scalar else num_tokens
    return as_lengths("num_tokens", given, 1 if scalar else batch)


def lengths_error(
    status: int,
    tables: BlockTables,
    name: str,
    rows: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> JitallocError:
    """Return why the argument `name` does not fit the lengths of the sequences in `rows`."""
    code, position = unpack_status(status)
    if code not in (NEGATIVE, POSITION_RANGE):
        return tables._row_error(status, "rows", rows)
    each = np.broadcast_to(counts, rows.size)
    if code == NEGATIVE:
        return argument_error(status, name, each)
    length = int(tables.arrays.columns[LENGTH, rows[position]])
    return InvalidArgument(name, int(each[position]), f"the sequence has {length} tokens", position)


def pairs_error(
    status: int,
    tables: BlockTables,
    first: tuple[str, NDArray[np.int32]],
    second: tuple[str, NDArray[np.int32]],
) -> JitallocError:
    """Return what a status word says whose positions run through both of two named arrays."""
    code, position = unpack_status(status)
    name, values = first
    if position >= values.size:
        position -= values.size
        name, values = second
    if code == REFCOUNT_OVERFLOW:
        return InvalidArgument(name, int(values[position]), OWNERS_TEXT, position)
    return tables._row_error(pack_status(code, position), name, values)


def commit_error(status: int, num_tokens: int, ids: Any) -> JitallocError:
    """Return why `num_tokens` tokens of a sequence, the first being `ids`, are not committed."""
    code, detail = unpack_status(status)
    if code == POSITION_RANGE:
        text = f"the sequence has {detail} tokens"
        if ids.size > detail:
            return InvalidArgument("tokens", ids.size, text, fact="size")
        return InvalidArgument("num_tokens", num_tokens, text)
    return argument_error(status, "tokens", ids)
