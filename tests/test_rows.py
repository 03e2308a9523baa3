"""Which sequence lives in which row: making, finding and ending sequences."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from jitalloc.errors import (
    DuplicateSequence,
    OutOfPages,
    OutOfRows,
    SequenceTooLong,
    UnknownSequence,
)
from tests.cache_pairs import CachePair


def test_a_new_sequence_lives_in_the_lowest_free_row(pair: CachePair) -> None:
    assert pair.must("allocate", "a", 5) == 0
    pair.must("allocate", ("b", 2), 4)
    pair.must("allocate", 7, 0)
    pair.must("free", ("b", 2))
    pair.must("allocate", "d", 1)
    cache = pair.cache
    assert [cache.row(seq_id) for seq_id in ("a", "d", 7)] == [0, 1, 2]
    assert cache.rows(["d", "a"]).tolist() == [1, 0]
    assert cache.rows(["d", "a"]).dtype == np.int32
    assert cache.ids == ["a", 7, "d"]
    assert len(cache) == 3
    assert "d" in cache
    assert ("b", 2) not in cache


def test_rows_of_ids_however_they_come(pair: CachePair) -> None:
    for seq_id in ("a", 1, ("b", 2)):
        pair.must("allocate", seq_id, 1)
    cache = pair.cache
    for ids in ([("b", 2), "a", 1], (("b", 2), "a", 1), iter([("b", 2), "a", 1])):
        assert cache.rows(ids).tolist() == [2, 0, 1]
    assert cache.rows(cache).tolist() == [0, 1, 2]
    assert cache.rows(["a", "a"]).tolist() == [0, 0]
    assert cache.rows({1: "x"}).tolist() == [1]
    for none in ([], (), iter([]), range(0)):
        assert (cache.rows(none).dtype, cache.rows(none).shape) == (np.int32, (0,))
    rows = cache.rows(["a", 1])
    rows[0] = 5  # the caller's own
    assert cache.rows(["a"]).tolist() == [0]


@pytest.mark.parametrize("ids", [["a", "x", "y"], ["a", "x"], ("a", "x"), iter(["a", "x"])])
def test_an_unknown_id_is_named_with_its_place(pair: CachePair, ids: Iterable[str]) -> None:
    pair.must("allocate", "a", 1)
    with pytest.raises(UnknownSequence, match=r"^no sequence 'x', which is seq_ids\[1\]$"):
        pair.cache.rows(ids)
    with pytest.raises(UnknownSequence, match=r"seq_ids\[0\]"):
        pair.cache.rows(["x"])


def test_iteration_gives_the_ids(pair: CachePair) -> None:
    assert list(pair.cache) == []
    for seq_id in ("a", 1, ("b", 2)):
        pair.must("allocate", seq_id, 1)
    assert list(pair.cache) == ["a", 1, ("b", 2)] == pair.cache.ids
    for seq_id in pair.cache:  # of those that lived as it began
        pair.must("free", seq_id)
    assert len(pair.cache) == 0


def test_what_is_known_of_a_sequence(pair: CachePair) -> None:
    pair.must("allocate", "a", 5, priority=3)
    pair.must("fork", "a", "b")
    pair.must("append", "b", 1)
    info = pair.cache.sequence("b")
    assert (info.seq_id, info.row, info.num_tokens) == ("b", 1, 6)
    assert info.pages.dtype == np.int32
    assert info.pages.tolist() == [0, 2]
    assert (info.shared_pages, info.priority, info.pinned) == (1, 3, False)
    assert (info.last_used, info.uses) == (3, 2)
    info.pages[:] = 9
    assert pair.cache.sequence("b").pages.tolist() == [0, 2]


def test_the_repr_says_what_it_is_and_how_full(pair: CachePair) -> None:
    pair.must("allocate", "a", 5)
    assert repr(pair.cache).startswith(
        "PagedKVCache(max_sequences=6, max_pages_per_sequence=8, eviction='lru'): 1 sequences on "
        "PagePool("
    )


def test_the_order_of_ids_survives_reuse_of_rows(pair: CachePair) -> None:
    for seq_id in "abc":
        pair.must("allocate", seq_id, 1)
    pair.must("free", "a")
    pair.must("allocate", "d", 1)
    assert pair.cache.ids == ["b", "c", "d"]


def test_a_sequence_that_cannot_be_made_leaves_nothing() -> None:
    pair = CachePair(4, 4, max_sequences=2, max_pages=3)
    assert pair.do("allocate", "a", 13)[:2] == (SequenceTooLong, "num_tokens")
    pair.must("allocate", "a", 9)
    assert pair.do("allocate", "b", 5)[:3] == (OutOfPages, 2, 1)
    assert pair.do("allocate", "a", 1)[0] is DuplicateSequence
    pair.must("allocate", "b", 4)
    assert pair.do("allocate", "c", 0)[0] is OutOfRows
    assert pair.do("fork", "a", "c")[0] is OutOfRows
    assert "c" not in pair.cache


def test_unknown_sequences(pair: CachePair) -> None:
    pair.must("allocate", "a", 1)
    for call in (
        ("append", "x"),
        ("fork", "x", "b"),
        ("truncate", "x", 0),
        ("free", "x"),
        ("pin", "x"),
        ("unpin", "x"),
        ("set_priority", "x", 1),
        ("evict", "x"),
        ("apply_window", "x", 1),
        ("row", "x"),
    ):
        assert pair.do(*call) == (UnknownSequence,)
    with pytest.raises(UnknownSequence, match="'x'"):
        pair.cache.rows(["a", "x"])
    with pytest.raises(KeyError):
        pair.cache.sequence("x")
    assert pair.do("fork", "a", "a") == (DuplicateSequence,)


def test_free_says_how_many_pages_went_free(order: str) -> None:
    pair = CachePair(16, 4, order)
    for seq_id, tokens in (("a", 9), ("b", 0), ("c", 5)):
        pair.must("allocate", seq_id, tokens)
    pair.call("share", [1])
    assert pair.must("free_batch", [0, 1]) == 2
    assert pair.cache.ids == ["c"]
    assert pair.must("free", "c") == 2
    assert pair.must("free_batch", []) == 0


def test_clear_ends_everything_but_what_the_caller_holds(pair: CachePair) -> None:
    for seq_id, tokens in (("a", 9), ("b", 0), ("c", 5)):
        pair.must("allocate", seq_id, tokens)
    pair.must("pin", "a")
    pair.call("share", [1])
    pair.must("clear")
    assert (len(pair.cache), pair.pool.num_used) == (0, 1)
    assert pair.cache.stats().frees == 3
    pair.call("free", [1])
    pair.call("clear")


@pytest.mark.parametrize("max_sequences", [1, 63, 64, 65, 128, 130])
def test_all_rows_can_be_taken_and_come_back_lowest_first(max_sequences: int) -> None:
    pair = CachePair(4, max_sequences=max_sequences)
    for i in range(max_sequences):
        assert pair.cache.allocate(i, 0) == pair.cache_model.allocate(i, 0)
        assert pair.cache.row(i) == i
    assert pair.do("allocate", "more", 0)[0] is OutOfRows
    freed = {max_sequences - 1, max_sequences // 2, 0}
    for i in freed:
        pair.must("free", i)
    rows = []
    for i in range(len(freed)):
        pair.must("allocate", ("new", i), 0)
        rows.append(pair.cache.row(("new", i)))
    assert rows == sorted(freed)


def test_stats_of_sequences(pair: CachePair) -> None:
    for seq_id, tokens in (("a", 5), ("b", 2), ("c", 0)):
        pair.must("allocate", seq_id, tokens)
    pair.must("fork", "b", "d")
    pair.must("append", "d", 1)
    pair.must("free", "a")
    pair.must("evict", "b")
    pair.must("apply_window", "d", 0)
    stats = pair.cache.stats()
    assert (stats.active, stats.peak_active, stats.tokens) == (2, 4, 0)
    assert (stats.allocations, stats.frees, stats.forks, stats.copies) == (4, 2, 1, 1)
    assert (stats.evictions, stats.tokens_dropped) == (1, 5)
