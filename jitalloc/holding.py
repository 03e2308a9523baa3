"""Sequences as holders of pages: what the pool asks of them when pages move or are counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jitalloc.arguments import as_integers, as_tokens
from jitalloc.ids import SequenceIds
from jitalloc.moves import Moves
from jitalloc.on_device import OnDevice
from jitalloc.pool import PagePool
from jitalloc.state import INT32, LOCKED, NAMESPACE
from jitalloc.tables import BlockTables


class SequencePages(OnDevice):
    """The part of `PagedKVCache` that answers to the pool, as a `PageHolder`."""

    pool: PagePool
    tables: BlockTables
    lock: threading.RLock
    rank: int
    _ids: SequenceIds

    def __new__(cls, pool: PagePool, *_sizes: int, **_options: Any) -> Self:
        """Return a cache of the class that manages the pool's device."""
        return cls._on(getattr(pool, "device", None))

    def __len__(self) -> int:
        return len(self._ids.rows)

    def _make_ids(self) -> SequenceIds:
        return SequenceIds(self.tables)

    def _as_rows(self, name: str, rows: Any) -> NDArray[np.int32]:
        return as_integers(name, rows, INT32)

    def _as_tokens(self, tokens: Any) -> NDArray[np.int32]:
        return as_tokens(tokens)

    def _rename_pages(self, moves: Moves) -> None:
        names = np.arange(self.pool.num_pages, dtype=np.int32)
        names[moves.src] = moves.dst
        self.tables._rename(names)

    def _resize_pages(self, num_pages: int) -> Callable[[], None]:
        return lambda: None  # block tables do not depend on the size of the pool

    def _holds_locks(self) -> bool:
        return bool(self.tables.arrays.columns[LOCKED].any())

    def _roots_in_use(self) -> NDArray[np.int64]:
        roots: NDArray[np.int64] = -2 - self.tables.arrays.columns[NAMESPACE]
        return roots

    def _held_pages(self) -> NDArray[np.int32]:
        pages = self.tables.arrays.pages
        held: NDArray[np.int32] = pages[pages >= 0]
        return held
