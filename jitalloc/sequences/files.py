"""Files of a cache of sequences: its complete state written and read, pool and prefix included."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.pool.records import PoolSnapshot
from jitalloc.prefix.upkeep import PrefixSnapshot
from jitalloc.sequences.state import MAX_PAGES, NUM_ROWS, table_slab_words
from jitalloc.snapshot import id_of_text, read_state, text_of_id, write_state

OPTIONS = ("eviction", "eviction_threshold", "sink_tokens", "window_tokens")
"""What a cache of sequences is made with, beside pool and sizes."""


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The complete state of a `PagedKVCache` and its pool.

    Attributes
    ----------
    pool : PoolSnapshot
    tables : int64[...]
        Read-only copy of the block table's slab (see `jitalloc.sequences.state`).
    ids : tuple
        The sequence id of each row, None where it is free.
    prefix : PrefixSnapshot or None
        The prefix cache, where there is one. Restored, it has the locks of the sequences;
        matches and pins of the user are void.
    """

    pool: PoolSnapshot
    tables: NDArray[np.int64]
    ids: tuple[Hashable, ...]
    prefix: PrefixSnapshot | None


def write_cache(
    path: str | os.PathLike[str],
    snapshot: CacheSnapshot,
    options: dict[str, Any],
    prefix_options: dict[str, Any],
) -> None:
    """Write a snapshot, and what its cache and its prefix cache were made with."""
    facts = {"ids": [text_of_id(seq_id) for seq_id in snapshot.ids], **options}
    arrays = {"pool": snapshot.pool.slab, "tables": snapshot.tables}
    if snapshot.prefix is not None:
        arrays["prefix"] = snapshot.prefix.slab
        names = [[text_of_id(name), number] for name, number in snapshot.prefix.namespaces]
        facts["prefix"] = {**prefix_options, "namespaces": names}
    write_state(path, "PagedKVCache", facts, arrays)


def read_cache(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return facts and arrays of a file: what `write_cache` was given, nothing verified."""
    return read_state(path, "PagedKVCache", ("pool", "tables"), ("prefix",))


def saved_ids(facts: dict[str, Any]) -> list[Hashable]:
    """Return the id of each row."""
    return [id_of_text(text) for text in facts["ids"]]


def saved_sizes(slab: NDArray[Any], num_ids: int) -> tuple[int, int]:
    """Return rows and width of a block table out of a file, if it is as long as they say."""
    if slab.dtype != np.int64 or slab.ndim != 1:
        raise ValueError("the table's array has the wrong type")
    rows, width = int(slab[NUM_ROWS]), int(slab[MAX_PAGES])
    if slab.size != table_slab_words(rows, width) or num_ids != rows:
        raise ValueError("the table's array has the wrong length")
    return rows, width
