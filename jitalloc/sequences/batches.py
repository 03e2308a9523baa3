"""Prompts that come together: what is planned for them, how they begin, why they could not."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jitalloc.arguments import check_hashable
from jitalloc.errors import (
    NEGATIVE_TOKEN,
    OUT_OF_ROWS,
    REFCOUNT_OVERFLOW,
    TABLE_WIDTH,
    InvalidArgument,
    JitallocError,
    OutOfPages,
    OutOfRows,
    argument_error,
    unpack_status,
)
from jitalloc.pool.holders import Moves
from jitalloc.prefix.namespaces import MAIN_ROOT
from jitalloc.prefix.prefix import PrefixCache
from jitalloc.sequences.arguments import OWNERS_TEXT, too_long
from jitalloc.sequences.tables import BlockTables


class Plan(NamedTuple):
    """What would become of prompts.

    Attributes
    ----------
    admitted : int
        So many of the first ones fit, all of them together.
    num_cached : int64[B]
        How many tokens of each prompt are cached now, whole pages; of those that do not fit, too.
    num_pages : int64[B]
        How many new pages each needs.
    """

    admitted: int
    num_cached: NDArray[np.int64]
    num_pages: NDArray[np.int64]


class Allocated(NamedTuple):
    """The sequences of a batch of prompts.

    Attributes
    ----------
    rows : int32[B]
        Where they live.
    num_cached : int64[B]
        How many tokens of each are cached, whole pages: these are computed.
    copies : Moves
        Pages to copy before anything is written. None: whole pages alone are shared.
    """

    rows: Any
    num_cached: NDArray[np.int64]
    copies: Moves


class Prompts(NamedTuple):
    """A batch of prompts as loops take it.

    Attributes
    ----------
    tokens : int32[n]
        One prompt behind the other.
    bounds : int64[B + 1]
        Where each begins, and where the last ends.
    roots : int64[B]
        Those of their namespaces in the prefix cache.
    """

    tokens: NDArray[np.int32]
    bounds: NDArray[np.int64]
    roots: NDArray[np.int64]

    def pages(self, page_size: int) -> NDArray[np.int64]:
        """Return how many pages each prompt fills, the last one perhaps in part."""
        return -(-np.diff(self.bounds) // page_size)


def listed(name: str, values: Any, batch: int) -> list[Hashable]:
    """Return what there is one a prompt of as a list."""
    expected = f"must be a list of {batch}, one a prompt"
    if isinstance(values, str | bytes):  # whose elements would be taken
        raise InvalidArgument(name, values, expected)
    try:
        names = list(values)
    except TypeError:
        raise InvalidArgument(name, values, expected) from None
    if len(names) != batch:
        raise InvalidArgument(name, len(names), f"must be {batch}, one a prompt", fact="size")
    return names


def as_roots(
    prefix: PrefixCache | None, namespaces: Iterable[Hashable] | None, batch: int, makes: bool
) -> NDArray[np.int64]:
    """Return the roots of the namespaces of prompts; new ones are made where the call `makes`."""
    if namespaces is None:
        return np.full(batch, MAIN_ROOT, np.int64)
    names = listed("namespaces", namespaces, batch)
    if prefix is not None:
        roots = prefix._roots(names, batch)
        if makes:
            roots[:] = [prefix._make_root(name) for name in names]
        return roots
    for position, name in enumerate(names):
        check_hashable("namespaces", name, position)
    return np.full(batch, MAIN_ROOT, np.int64)


def batch_error(
    status: int, prompts: Prompts, fits: int, facts: NDArray[np.int64], tables: BlockTables
) -> JitallocError:
    """Return why no batch of prompts could begin; `fits`: how many of it would, if pages lack.

    `facts` are those of `batches_open_cpu`.
    """
    code, detail = unpack_status(status)
    pages = prompts.pages(tables.page_size)
    if code == NEGATIVE_TOKEN:
        return argument_error(status, "tokens", prompts.tokens)
    if code == TABLE_WIDTH:
        length = int(prompts.bounds[detail + 1] - prompts.bounds[detail])
        return too_long("tokens", length, int(pages[detail]), detail, tables)
    if code == OUT_OF_ROWS:
        text = f"{detail} of {tables.max_sequences} rows are free: none for the prompt at {detail}"
        return OutOfRows(text)
    if code == REFCOUNT_OVERFLOW:
        return InvalidArgument("tokens", None, OWNERS_TEXT, detail)
    need = int((pages - facts.reshape(3, -1)[1]).sum())
    return OutOfPages(need, detail, position=fits)
