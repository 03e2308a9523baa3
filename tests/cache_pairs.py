"""A `PagedKVCache` beside its model, on a pool beside its model."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from jitalloc import PagedKVCache
from jitalloc.sequences.state import (
    ACTIVE,
    BORN,
    COMPUTED,
    EVICTIONS,
    LAST_USED,
    LENGTH,
    PAGE_COPIES,
    PEAK_ACTIVE,
    PINNED,
    PRIORITY,
    SEQ_ALLOCATIONS,
    SEQ_FORKS,
    SEQ_FREES,
    TOKENS_DROPPED,
    USES,
)
from tests.oracle_sequences import Cache
from tests.pairs import PoolPair, model_state, outcome, pool_state


def cache_state(cache: PagedKVCache) -> dict[str, Any]:
    """The state of a cache, in the words of the model."""
    arrays = cache.tables.arrays
    header = arrays.header.tolist()
    assert not arrays.marks.any()
    bits = np.unpackbits(arrays.taken.view(np.uint8), bitorder="little")
    rows = {}
    for row in np.flatnonzero(bits).tolist():
        column = arrays.columns[:, row].tolist()
        rows[row] = {
            "pages": [page for page in arrays.pages[row].tolist() if page >= 0],
            "length": column[LENGTH],
            "computed": column[COMPUTED],
            "last_used": column[LAST_USED],
            "uses": column[USES],
            "priority": column[PRIORITY],
            "pinned": bool(column[PINNED]),
            "born": column[BORN],
        }
    assert header[ACTIVE] == len(rows)
    return {
        "rows": rows,
        "ids": {seq_id: cache.row(seq_id) for seq_id in cache.ids},
        "allocations": header[SEQ_ALLOCATIONS],
        "frees": header[SEQ_FREES],
        "forks": header[SEQ_FORKS],
        "copies": header[PAGE_COPIES],
        "evictions": header[EVICTIONS],
        "dropped": header[TOKENS_DROPPED],
        "peak": header[PEAK_ACTIVE],
    }


def cache_model_state(model: Cache) -> dict[str, Any]:
    """The same of the model."""
    counters = ("allocations", "frees", "forks", "copies", "evictions", "dropped", "peak")
    return {
        "rows": {row: vars(at) for row, at in sorted(model.rows.items())},
        "ids": model.ids,
        **{name: getattr(model, name) for name in counters},
    }


class CachePair(PoolPair):
    """A pool and a cache on it, each with its model."""

    def __init__(
        self,
        num_pages: int = 16,
        page_size: int = 4,
        order: str = "sorted",
        null_page: bool = False,
        max_sequences: int = 6,
        max_pages: int = 8,
        eviction: str = "lru",
        threshold: float = 0.9,
        sink: int = 4,
        window: int = 8,
    ) -> None:
        super().__init__(num_pages, page_size, order, null_page)
        self.cache = PagedKVCache(
            self.pool,
            max_sequences,
            max_pages,
            eviction=eviction,
            eviction_threshold=threshold,
            sink_tokens=sink,
            window_tokens=window,
        )
        self.cache_model = Cache(
            self.model, max_sequences, max_pages, eviction, threshold, sink, window
        )

    def do(self, name: str, *args: Any, **options: Any) -> tuple[Any, ...]:
        """Call both caches, compare what comes back and what is left; return the outcome."""
        return self.compare(
            lambda: getattr(self.cache, name)(*args, **options),
            lambda: getattr(self.cache_model, name)(*args, **options),
        )

    def must(self, name: str, *args: Any, **options: Any) -> Any:
        """Call both caches; the call must succeed."""
        got = self.do(name, *args, **options)
        assert got[0] == "returned", got
        return got[1]

    def compare(self, library: Callable[[], Any], model: Callable[[], Any]) -> tuple[Any, ...]:
        expected, got = outcome(model), outcome(library)
        assert got == expected
        self.agree()
        return got

    def agree(self) -> None:
        """Both sides are in the same state, and the library's own check finds it sound."""
        assert pool_state(self.pool) == model_state(self.model)
        assert cache_state(self.cache) == cache_model_state(self.cache_model)
        assert list(self.cache.ids) == list(self.cache_model.ids)
        self.cache.check(held=self.held())

    def row(self, seq_id: Hashable) -> int:
        return self.cache_model.ids[seq_id]

    def agree_on_layouts(self) -> None:
        """Everything that attention kernels read, of all rows at once."""
        model, rows = self.cache_model, sorted(self.cache_model.rows)
        places = [(row, i) for row in rows for i in range(model.rows[row].length)]
        row_of, position = [row for row, _ in places], [i for _, i in places]
        self.do("block_tables", rows[::-1])
        self.do("page_table_csr", rows)
        self.do("seq_lens", [*rows, *rows])
        self.do("slot_mapping", row_of, position)
        self.do("attention_batch", rows, [model.rows[row].length // 2 for row in rows])
        stats = self.cache.stats()
        assert stats.tokens == sum(at.length for at in model.rows.values())
        assert (stats.active, stats.peak_active) == (len(rows), model.peak)
        assert (stats.allocations, stats.frees) == (model.allocations, model.frees)
        assert (stats.forks, stats.copies) == (model.forks, model.copies)
        assert (stats.evictions, stats.tokens_dropped) == (model.evictions, model.dropped)
        for seq_id, row in model.ids.items():
            info, at = self.cache.sequence(seq_id), model.rows[row]
            assert (info.seq_id, info.row, info.num_tokens) == (seq_id, row, at.length)
            assert info.num_computed == at.computed
            assert info.pages.tolist() == at.pages
            assert info.shared_pages == sum(self.model.owners[page] > 1 for page in at.pages)
            assert (info.last_used, info.uses) == (at.last_used, at.uses)
            assert (info.priority, info.pinned) == (at.priority, at.pinned)
