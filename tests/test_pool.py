"""PagePool: making one, taking pages, the three orders, merging."""

from __future__ import annotations

import numpy as np
import pytest

from jitalloc import PagePool
from jitalloc.errors import OutOfPages
from tests.pairs import PoolPair


def ids(*pages: int) -> np.ndarray:
    return np.array(pages, np.int32)


def test_a_fresh_pool_hands_out_ascending_ids(order: str) -> None:
    pool = PagePool(5, order=order)
    pages = pool.alloc(4)
    assert pages.dtype == np.int32
    assert pages.tolist() == [0, 1, 2, 3]
    assert (pool.num_used, pool.num_free, pool.num_released) == (4, 1, 0)
    assert pool.refcount(pages).tolist() == [1, 1, 1, 1]


def test_the_order_decides_what_a_freed_page_waits_for() -> None:
    expected = {"sorted": [5, 6, 0, 2], "fifo": [5, 6, 2, 4], "lifo": [0, 4, 2, 5]}
    for order, pages in expected.items():
        pool = PagePool(7, order=order)
        pool.alloc(5)
        pool.free([2, 4, 0])
        first = pool.alloc(2).tolist()
        assert first + pool.alloc(2).tolist() == pages, order


def test_a_sorted_pool_merges_by_itself_only_when_it_must(pool: PagePool) -> None:
    pool.alloc(6)
    pool.free([4, 1])
    assert pool.alloc(2).tolist() == [6, 7]
    assert (pool.num_released, pool.stats().merges) == (2, 0)
    assert pool.alloc(1).tolist() == [1]
    assert (pool.num_released, pool.num_free, pool.stats().merges) == (0, 1, 1)


def test_merge_puts_released_pages_back_in_place(pool: PagePool) -> None:
    pool.alloc(6)
    pool.free([4, 1])
    assert (pool.num_free, pool.num_released, pool.available) == (2, 2, 4)
    assert pool.merge() == 2
    assert (pool.num_free, pool.num_released) == (4, 0)
    assert pool.alloc(4).tolist() == [1, 4, 6, 7]
    assert pool.merge() == 0


@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_nothing_waits_for_merge_in_the_other_orders(order: str) -> None:
    pool = PagePool(4, order=order)
    pool.free(pool.alloc(3))
    assert pool.num_released == 0
    assert pool.merge() == 0
    assert pool.num_free == 4


@pytest.mark.parametrize("num_pages", [64, 129, 1000])
@pytest.mark.parametrize("in_runs", [True, False])
def test_merge_of_many_pages_sorts_them(num_pages: int, in_runs: bool) -> None:
    pool = PagePool(num_pages)
    pages = pool.alloc(num_pages - 5)
    keep, back = pages[::7], np.setdiff1d(pages, pages[::7])
    pool.free(back if in_runs else np.random.default_rng(3).permutation(back))
    assert pool.merge() == back.size
    assert pool.alloc(pool.num_free).tolist() == sorted({*range(num_pages)} - set(keep.tolist()))


def test_exhaustion_takes_nothing_and_says_what_there_is(order: str) -> None:
    pool = PagePool(4, order=order)
    pool.free(pool.alloc(3)[:1])
    with pytest.raises(OutOfPages, match="3 pages requested, 2 available") as caught:
        pool.alloc(3)
    assert (caught.value.requested, caught.value.available) == (3, 2)
    assert caught.value.longest_run is None
    assert isinstance(caught.value, MemoryError)
    assert pool.try_alloc(3) is None
    assert pool.num_used == 2
    assert len(pool.alloc(2)) == 2


def test_try_alloc_is_alloc_where_pages_are_there(pool: PagePool) -> None:
    pages = pool.try_alloc(3)
    assert pages is not None
    assert pages.tolist() == [0, 1, 2]


def test_a_pool_can_be_taken_empty_and_given_back_again(order: str) -> None:
    pool = PagePool(65, order=order)
    for _ in range(3):
        pages = pool.alloc(65)
        assert sorted(pages.tolist()) == list(range(65))
        assert pool.utilization == 1.0
        assert pool.free(pages) == 65
    assert pool.available == 65


def test_alloc_of_nothing_is_an_empty_array(order: str) -> None:
    pool = PagePool(1, order=order)
    pool.alloc(1)
    for pages in (pool.alloc(0), pool.try_alloc(0)):
        assert pages is not None
        assert pages.dtype == np.int32
        assert pages.size == 0


def test_alloc_writes_into_out(pool: PagePool) -> None:
    buffer = np.full(8, -1, np.int32)
    given = buffer[2:5]
    assert pool.alloc(3, out=given) is given
    assert buffer.tolist() == [-1, -1, 0, 1, 2, -1, -1, -1]


def test_a_refused_alloc_leaves_out_alone() -> None:
    pool, out = PagePool(2), ids(7, 7, 7)
    with pytest.raises(OutOfPages):
        pool.alloc(3, out=out)
    assert out.tolist() == [7, 7, 7]


# Contiguous runs.


def test_contiguous_takes_the_lowest_run_that_fits(pool: PagePool) -> None:
    pool.free(pool.alloc(6)[[1, 3, 4]])
    assert pool.alloc(2, contiguous=True).tolist() == [3, 4]
    assert pool.num_released == 0  # the rest was merged on the way
    assert pool.alloc(1, contiguous=True).tolist() == [1]
    assert pool.alloc(2, contiguous=True).tolist() == [6, 7]


def test_contiguous_runs_join_free_and_released_pages(pool: PagePool) -> None:
    pool.free(pool.alloc(6)[4:])
    assert pool.alloc(4, contiguous=True).tolist() == [4, 5, 6, 7]


def test_no_run_says_how_long_the_longest_is(pool: PagePool) -> None:
    pool.free(pool.alloc(8)[[0, 2, 3, 7]])
    with pytest.raises(OutOfPages, match="longest run is 2") as caught:
        pool.alloc(3, contiguous=True)
    assert (caught.value.available, caught.value.longest_run) == (4, 2)
    assert pool.num_released == 4


def test_contiguous_out(pool: PagePool) -> None:
    out = np.empty(3, np.int32)
    assert pool.alloc(3, contiguous=True, out=out) is out
    assert out.tolist() == [0, 1, 2]


# Batches.


def test_a_batch_is_cut_by_indptr(pool: PagePool) -> None:
    indptr, pages = batch = pool.alloc_batch([2, 0, 3])
    assert indptr.dtype == pages.dtype == np.int32
    assert indptr.tolist() == [0, 2, 2, 5]
    assert pages.tolist() == [0, 1, 2, 3, 4]
    assert batch.indptr is indptr
    assert batch.pages is pages


def test_a_batch_is_taken_whole_or_not_at_all(order: str) -> None:
    pool = PagePool(6, order=order)
    with pytest.raises(OutOfPages) as caught:
        pool.alloc_batch([2, 3, 2])
    assert (caught.value.requested, caught.value.available) == (7, 6)
    assert pool.num_used == 0


def test_admit_says_how_many_sequences_fit(pool: PagePool) -> None:
    pool.free(pool.alloc(4))
    for counts, fit in (([3, 5, 1], 2), ([9, 1], 0), ([], 0), ([8, 0, 0], 3), ([8, 0, 1, 0], 2)):
        assert pool.admit(counts) == fit
        if fit:
            assert pool.available == 8
    assert pool.num_released == 4


def test_an_admitted_batch_can_be_taken() -> None:
    pool = PagePool(10)
    counts = [4, 3, 2, 2, 5]
    assert len(pool.alloc_batch(counts[: pool.admit(counts)]).pages) == 9


def test_an_empty_batch_is_valid(pool: PagePool) -> None:
    indptr, pages = pool.alloc_batch([])
    assert indptr.tolist() == [0]
    assert pages.size == 0


# The pool itself.


@pytest.mark.parametrize("page_size", [1, 3, 16, 100])
def test_any_page_size(page_size: int) -> None:
    pool = PagePool(4, page_size)
    assert pool.page_size == page_size
    assert pool.alloc_extend([0], [page_size + 1], [-1]).tolist() == list(range(page_size + 1))


def test_a_null_page_never_goes_out(order: str) -> None:
    pool = PagePool(3, order=order, null_page=True)
    assert (pool.num_free, pool.num_used, pool.utilization) == (2, 0, 0.0)
    assert pool.alloc(2).tolist() == [1, 2]
    assert pool.try_alloc(1) is None
    assert pool.utilization == 1.0
    assert pool.refcount([0]).tolist() == [1]
    pool.check(held=[1, 2])


def test_a_pool_of_one_page(order: str) -> None:
    pair = PoolPair(1, 1, order)
    for _ in range(3):
        assert pair.result("alloc", 1) == [0]
        assert pair.call("alloc", 1)[0] is OutOfPages
        assert pair.result("free", [0]) == 1


def test_the_repr_says_what_it_is_and_how_full() -> None:
    pool = PagePool(4, 3, order="fifo", null_page=True)
    pool.alloc(2)
    assert repr(pool) == (
        "PagePool(num_pages=4, page_size=3, order='fifo', device='cpu', null_page=True): "
        "2 used, 1 free, 0 released"
    )


def test_the_same_calls_give_the_same_ids(order: str) -> None:
    def run() -> list[list[int]]:
        pool, out = PagePool(100, order=order), []
        for i in range(30):
            out.append(pool.alloc(i % 5 + 1).tolist())
            if i % 3 == 2:
                pool.free(out[-2])
        return out

    assert run() == run()


def test_the_clock_counts_calls_that_succeeded(pool: PagePool) -> None:
    assert pool.step == 0
    pages = pool.alloc(2)
    pool.share(pages)
    pool.free(pages)
    assert pool.step == 3
    assert pool.try_alloc(9) is None
    with pytest.raises(ValueError, match="pages"):
        pool.free([7])
    assert pool.admit([1]) == 1
    assert pool.step == 3


def test_numpy_integers_are_counts(pool: PagePool) -> None:
    assert pool.alloc(np.int64(2)).tolist() == [0, 1]
    assert pool.alloc_batch(np.array([1, 1], np.uint8)).pages.tolist() == [2, 3]
