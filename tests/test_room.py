"""room_for: how many sequences of a batch can grow, with nothing taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitalloc import OutOfPages, PagedKVCache, PagePool, PrefixCache, SequenceTooLong
from tests.cache_pairs import CachePair


def a_cache(num_pages: int = 8, lengths: tuple[int, ...] = (4, 4, 3)) -> PagedKVCache:
    cache = PagedKVCache(PagePool(num_pages, 4), 8, 8)
    for i, length in enumerate(lengths):
        cache.allocate(i, length)
    return cache


def test_the_first_rows_that_fit() -> None:
    cache = a_cache(5)
    assert cache.room_for([0, 1, 2]) == 3
    assert cache.room_for([0, 1, 2], 5) == 1
    assert cache.room_for([2, 0, 1], [1, 4, 5]) == 2
    assert cache.room_for([0, 1, 2], [9, 0, 0]) == 0
    assert cache.room_for([0, 1], 0) == 2
    assert cache.room_for([]) == 0


def test_nothing_is_taken_or_counted() -> None:
    cache = a_cache()
    before = cache.pool.stats(), cache.stats(), cache.sequence(0)
    cache.room_for([0, 1, 2], 9)
    after = cache.pool.stats(), cache.stats(), cache.sequence(0)
    assert before[:2] == after[:2]
    assert (before[2].uses, before[2].last_used) == (after[2].uses, after[2].last_used)


def test_a_reserve_is_left() -> None:
    cache = a_cache(6)  # three are free
    assert cache.room_for([0, 1, 2], 4, reserve=0) == 3
    assert cache.room_for([0, 1, 2], 4, reserve=1) == 2
    assert cache.room_for([0, 1, 2], 4, reserve=3) == 0
    # Who takes none can grow even so.
    assert cache.room_for([2, 0, 1], 1, reserve=9) == 1


def test_a_row_that_is_full_ends_the_batch() -> None:
    cache = a_cache(40)
    assert cache.room_for([0, 1, 2], [1, 29, 1]) == 1
    assert cache.room_for([0, 1, 2], [1, 28, 1]) == 3
    assert cache.room_for([0, 1, 2], [1, 2**31 - 3, 1]) == 1


def test_pages_that_are_copied_count_as_the_append_takes_them() -> None:
    """Of two on one page the first copies it; the second keeps it, if nobody else has it."""
    cache = a_cache(3, (3,))
    cache.fork(0, 1)
    cache.pool.alloc(1)
    assert cache.room_for([0, 1]) == 2
    cache.fork(0, 2)
    assert cache.room_for([0, 1]) == 1
    assert cache.pool.refcount([0]).tolist() == [3]


def test_cached_pages_count_as_room() -> None:
    pool = PagePool(4, 4)
    cache = PagedKVCache(pool, 4, 8, prefix_cache=PrefixCache(pool))
    cache.allocate("old", tokens=range(8))
    cache.commit("old")
    cache.free("old")
    cache.allocate("a", 8)
    assert (cache.num_free, cache.num_reclaimable) == (0, 2)
    assert cache.room_for(cache.rows(["a"]), 8) == 1
    assert cache.room_for(cache.rows(["a"]), 9) == 0
    assert cache.room_for(cache.rows(["a"]), 4, reserve=1) == 1
    assert cache.room_for(cache.rows(["a"]), 4, reserve=2) == 0
    assert cache.num_reclaimable == 2


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    forks=st.lists(st.integers(0, 3), max_size=4),
    data=st.data(),
)
def test_just_so_many_can_be_appended(
    lengths: list[int], forks: list[int], data: st.DataObject
) -> None:
    cache = PagedKVCache(PagePool(14, 3), 8, 5)
    for i, length in enumerate(lengths):
        cache.allocate(i, length)
    for i, src in enumerate(forks):
        cache.fork(src % len(lengths), 10 + i)
    rows = np.array(data.draw(st.permutations(range(len(cache)))), np.int32)
    n = np.array([data.draw(st.integers(0, 7)) for _ in rows])
    count = cache.room_for(rows, n)
    start = cache.snapshot()
    cache.append_batch(rows[:count], n[:count])
    cache.restore(start)
    if count < rows.size:
        with pytest.raises((OutOfPages, SequenceTooLong)):
            cache.append_batch(rows[: count + 1], n[: count + 1])


def test_the_model_agrees(pair: CachePair) -> None:
    for seq_id in "abc":
        pair.must("allocate", seq_id, 6)
    pair.must("fork", "a", "d")
    for n in range(20):
        pair.must("room_for", [3, 0, 1, 2], n)
        pair.must("room_for", [0, 3, 1], [n, 1, 2], reserve=2)
