"""PagedKVCache: sequences grow, share, shrink and end."""

from __future__ import annotations

import numpy as np
import pytest

from jitalloc import PagedKVCache, PagePool
from jitalloc.errors import (
    InvalidArgument,
    OutOfPages,
    SequenceTooLong,
)
from tests.cache_pairs import CachePair


def test_append_fills_the_last_page_and_goes_on(pair: CachePair) -> None:
    pair.must("allocate", "a", 3)
    pair.call("alloc", 2)
    slots, copies = appended = pair.cache.append("a", 6)
    assert slots.dtype == np.int64
    assert slots.tolist() == [3, 12, 13, 14, 15, 16]
    assert (copies.src.size, copies.dst.size) == (0, 0)
    assert copies.src.dtype == copies.dst.dtype == np.int32
    assert (appended.slots is slots, appended.copies is copies) == (True, True)
    assert pair.cache.append("a").slots.tolist() == [17]


def test_slots_of_append_are_those_of_slot_mapping(pair: CachePair) -> None:
    pair.must("allocate", "a", 2)
    pair.must("allocate", "b", 7)
    rows = pair.cache.rows(["b", "a"])
    slots, _ = pair.must("append_batch", list(rows), [5, 3])
    places = [(1, i) for i in range(7, 12)] + [(0, i) for i in range(2, 5)]
    assert pair.cache.slot_mapping(*zip(*places, strict=True)).tolist() == slots


def test_append_batch_takes_one_number_for_all(pair: CachePair) -> None:
    for seq_id in "abc":
        pair.must("allocate", seq_id, 4)
    slots = pair.cache.append_batch([2, 0], 2).slots
    assert slots.tolist() == [12, 13, 16, 17]
    assert pair.cache.append_batch(np.array([1])).slots.tolist() == [20]
    assert pair.cache.append_batch([], 3).slots.size == 0
    assert pair.cache.append_batch([0, 1], 0).slots.size == 0


# Copy-on-write.


def test_writing_to_a_shared_page_copies_it_first(pair: CachePair) -> None:
    pair.must("allocate", "a", 6)
    pair.must("fork", "a", "b")
    assert pair.model.owners[:2] == [2, 2]
    slots, (src, dst) = pair.must("append", "b", 1)
    assert (slots, src, dst) == ([10], [1], [2])
    # The first one has its page for itself now.
    assert pair.must("append", "a", 1) == ([6], ([], []))
    assert pair.cache.stats().copies == 1


def test_the_last_owner_in_a_batch_writes_in_place(pair: CachePair) -> None:
    pair.must("allocate", "a", 2)
    pair.must("fork", "a", "b")
    pair.must("fork", "a", "c")
    slots, (src, dst) = pair.must("append_batch", [2, 0, 1], [1, 3, 1])
    assert (src, dst) == ([0, 0], [1, 2])
    assert slots == [6, 10, 11, 12, 2]
    assert pair.cache.block_tables([0, 1, 2]).tolist() == [[2, 3], [0, -1], [1, -1]]


def test_a_page_that_the_caller_holds_too_is_copied_by_all(pair: CachePair) -> None:
    pair.must("allocate", "a", 2)
    pair.must("fork", "a", "b")
    pair.call("share", [0])
    assert pair.must("append_batch", [0, 1], [1, 1])[1] == ([0, 0], [1, 2])
    assert pair.model.owners[0] == 1


def test_full_pages_are_never_copied(pair: CachePair) -> None:
    pair.must("allocate", "a", 8)
    pair.must("fork", "a", "b")
    assert pair.must("append", "b", 1)[1] == ([], [])
    assert pair.must("append", "b", 0)[1] == ([], [])


def test_copies_count_when_pages_run_short() -> None:
    pair = CachePair(4, 4)
    pair.must("allocate", "a", 6)
    pair.must("fork", "a", "b")
    pair.must("fork", "a", "c")
    # One copy and one new page each for two of them: 4, and the third writes in place: +1.
    kind, requested, available, _ = pair.do("append_batch", [0, 1, 2], [3, 3, 3])
    assert (kind, requested, available) == (OutOfPages, 5, 2)
    pair.must("append_batch", [0, 1, 2], [1, 1, 1])
    assert pair.do("append", "a", 2)[0] is OutOfPages


# All or nothing.


def test_exhaustion_in_a_batch_undoes_it(order: str) -> None:
    pair = CachePair(6, 4, order)
    for seq_id in "abc":
        pair.must("allocate", seq_id, 4)
    pair.must("fork", "c", "d")
    assert pair.do("append_batch", [0, 1, 2], [4, 8, 4])[:3] == (OutOfPages, 4, 3)
    assert pair.do("append_batch", [0, 1, 2, 3], [1, 1, 1, 1])[0] is OutOfPages
    pair.must("append_batch", [0, 1, 2], [4, 4, 4])


def test_more_than_the_whole_pool_is_refused_in_a_wide_table() -> None:
    pair = CachePair(num_pages=4, max_pages=1000)
    pair.must("allocate", "a", 1)
    assert pair.do("append", "a", 3000)[:3] == (OutOfPages, 750, 3)
    assert pair.do("append", "a", 16)[:3] == (OutOfPages, 4, 3)
    pair.must("append", "a", 15)


def test_a_row_that_would_be_too_long_undoes_the_batch(pair: CachePair) -> None:
    pair.must("allocate", "a", 2)
    pair.must("allocate", "b", 30)
    pair.must("fork", "a", "c")
    got = pair.do("append_batch", [0, 2, 1], [1, 1, 3])
    assert got == (SequenceTooLong, "n", 3, 2)
    with pytest.raises(SequenceTooLong, match="9 pages; a row holds 8"):
        pair.cache.append("b", 3)
    pair.must("append", "b", 2)


@pytest.mark.parametrize(("rows", "position"), [([0, 2], 1), ([6], 0), ([-1], 0), ([1, 0, 1], 2)])
def test_bad_rows_undo_the_batch(pair: CachePair, rows: list[int], position: int) -> None:
    pair.must("allocate", "a", 6)
    pair.must("fork", "a", "b")
    for call in (
        ("append_batch", rows, [1] * len(rows)),
        ("free_batch", rows),
        ("reorder", rows, [0] * len(rows)),
    ):
        assert pair.do(*call) == (InvalidArgument, "rows", rows[position], position)


# Sharing.


def test_forks_share_pages_and_lengths(order: str) -> None:
    pair = CachePair(16, 4, order)
    pair.must("allocate", "a", 6, priority=2)
    pair.must("pin", "a")
    pair.must("fork", "a", "b")
    info = pair.cache.sequence("b")
    assert (info.num_tokens, info.shared_pages, info.priority, info.pinned) == (6, 2, 2, False)
    assert pair.pool.num_used == 2
    assert pair.must("free", "a") == 0
    assert pair.must("free", "b") == 2


@pytest.mark.parametrize("kept", [0, 1, 4, 6, 8, 9, None])
def test_a_fork_at_a_position_shares_what_it_needs(pair: CachePair, kept: int | None) -> None:
    pair.must("allocate", "a", 9)
    pair.must("commit", "a", 7)
    pair.must("fork", "a", "b", kept)
    n = 9 if kept is None else kept
    assert pair.cache.sequence("b").num_tokens == n
    assert pair.cache.sequence("b").num_computed == min(n, 7)
    _slots, copies = pair.must("append", "b", 1)
    assert len(copies[0]) == (n % 4 > 0)  # the tokens of "a" stand behind
    _slots, copies = pair.must("append", "a", 1)
    assert copies == ([], [])  # it is the last owner of its last page by now


def test_fork_batch_fills_empty_sequences(pair: CachePair) -> None:
    for seq_id, tokens in (("a", 5), ("b", 2), ("c", 0), ("d", 0), ("e", 0)):
        pair.must("allocate", seq_id, tokens)
    pair.must("fork_batch", [0, 0, 1], [2, 4, 3])
    assert pair.cache.seq_lens([2, 3, 4]).tolist() == [5, 2, 5]
    assert pair.model.owners[:3] == [3, 3, 2]
    assert pair.cache.stats().forks == 3


def test_fork_batch_reads_all_sources_first(pair: CachePair) -> None:
    for seq_id, tokens in (("a", 5), ("b", 0), ("c", 0)):
        pair.must("allocate", seq_id, tokens)
    pair.must("fork_batch", [0, 1], [1, 2])
    assert pair.cache.seq_lens([1, 2]).tolist() == [5, 0]


def test_bad_rows_of_fork_batch(pair: CachePair) -> None:
    for seq_id, tokens in (("a", 5), ("b", 0), ("c", 0)):
        pair.must("allocate", seq_id, tokens)
    for src, dst, argument, position in (
        ([0, 0], [1, 0], "dst_rows", 1),
        ([0, 0], [1, 1], "dst_rows", 1),
        ([0, 0], [1, 3], "dst_rows", 1),
        ([0, 3], [1, 2], "src_rows", 1),
        ([-1, 0], [1, 2], "src_rows", 0),
    ):
        got = pair.do("fork_batch", src, dst)
        assert (got[0], got[1], got[3]) == (InvalidArgument, argument, position)


def test_reorder_is_a_beam_search_step(order: str) -> None:
    pair = CachePair(16, 4, order)
    for seq_id, tokens in (("a", 6), ("b", 3), ("c", 9)):
        pair.must("allocate", seq_id, tokens)
    pair.must("reorder", [0, 1, 2], [1, 0, 0])
    assert pair.cache.seq_lens([0, 1, 2]).tolist() == [3, 6, 6]
    assert pair.cache.block_tables([0, 1, 2]).tolist() == [[2, -1], [0, 1], [0, 1]]
    assert pair.pool.num_used == 3
    pair.must("reorder", [0, 1, 2], [0, 1, 2])
    assert pair.pool.num_used == 3
    assert pair.do("reorder", [0, 1], [0, 4]) == (InvalidArgument, "parents", 4, 1)


def test_reorder_with_parents_outside_the_batch(pair: CachePair) -> None:
    for seq_id, tokens in (("a", 6), ("b", 3)):
        pair.must("allocate", seq_id, tokens)
    pair.must("reorder", [1], [0])
    assert pair.cache.block_tables([0, 1]).tolist() == [[0, 1], [0, 1]]


# Shrinking.


def test_truncate_drops_the_tail(pair: CachePair) -> None:
    pair.must("allocate", "a", 10)
    assert [pair.must("truncate", "a", tokens) for tokens in (9, 8, 5, 4, 0)] == [0, 1, 0, 1, 1]
    assert pair.cache.seq_lens([0]).tolist() == [0]
    assert "a" in pair.cache


def test_truncate_keeps_what_others_hold(pair: CachePair) -> None:
    pair.must("allocate", "a", 10)
    pair.must("fork", "a", "b")
    assert pair.must("truncate", "a", 3) == 0
    assert pair.must("append", "a", 1) == ([15], ([0], [3]))
    assert pair.cache.block_tables([1]).tolist() == [[0, 1, 2]]


def test_truncate_cannot_grow(pair: CachePair) -> None:
    pair.must("allocate", "a", 3)
    for tokens in (4, -1):
        assert pair.do("truncate", "a", tokens) == (InvalidArgument, "num_tokens", tokens, None)


# Pool and caches.


def test_tables_follow_a_defragmentation(order: str) -> None:
    pair = CachePair(16, 4, order)
    for seq_id, tokens in (("a", 8), ("b", 8), ("c", 6)):
        pair.must("allocate", seq_id, tokens)
    pair.must("fork", "c", "d")
    pair.must("free", "a")
    src, dst = pair.result("defragment")
    assert (src, dst) == ([4, 5], [0, 1])
    assert pair.cache.block_tables([1, 2, 3]).tolist() == [[2, 3], [0, 1], [0, 1]]


def test_two_caches_on_one_pool() -> None:
    pool = PagePool(8, 4)
    one, two = PagedKVCache(pool, 2, 4), PagedKVCache(pool, 3, 2)
    one.allocate("a", 5)
    two.allocate("a", 3)
    one.allocate("b", 4)
    one.free("a")
    for cache in (one, two):
        cache.check(held=[])
    assert pool.defragment().src.tolist() == [2, 3]
    assert (one.block_tables([1]).tolist(), two.block_tables([0]).tolist()) == ([[1]], [[0]])
    pool.check(held=[])
    with pytest.raises(InvalidArgument, match="sequences"):
        pool.clear()
    two.clear()
    one.clear()
    pool.clear()


def test_the_pool_forgets_a_cache_that_is_gone() -> None:
    pool = PagePool(4, 4)
    cache = PagedKVCache(pool, 2, 2)
    cache.allocate("a", 3)
    cache.clear()
    del cache
    pool.check(held=[])
    pool.clear()


def test_a_page_never_gets_more_owners_than_int32_holds(pair: CachePair) -> None:
    pair.must("allocate", "a", 3)
    pair.must("allocate", "b", 0)
    pair.must("allocate", "c", 2)
    pair.pool.arrays.refcount[0] = 2**31 - 1
    for call in (
        lambda: pair.cache.fork("a", "x"),
        lambda: pair.cache.fork_batch([0], [1]),
        lambda: pair.cache.reorder([2], [0]),
    ):
        with pytest.raises(InvalidArgument, match="int32"):
            call()
    assert pair.pool.refcount([0]).tolist() == [2**31 - 1]
    assert len(pair.cache) == 3
