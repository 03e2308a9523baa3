"""Who holds a page: share, free, free_group, refcount."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from jitalloc import PagePool
from jitalloc.errors import DoubleFree, InvalidArgument, InvalidPage, NestedFreeGroup
from jitalloc.state import INT32_MAX
from tests.pairs import PoolPair, pool_state


def test_a_shared_page_is_released_by_its_last_owner(order: str) -> None:
    pool = PagePool(4, order=order)
    pages = pool.alloc(2)
    assert pool.share(pages) is None
    pool.share(pages[:1])
    assert pool.refcount(pages).tolist() == [3, 2]
    assert [pool.free(pages), pool.free(pages), pool.free(pages[:1])] == [0, 1, 1]
    assert pool.refcount(pages).tolist() == [0, 0]
    assert pool.available == 4


def test_a_page_can_be_named_as_often_as_it_has_owners(order: str) -> None:
    pair = PoolPair(5, order=order)
    pair.call("alloc", 4)
    pair.call("share", [2, 2, 0])
    assert pair.result("refcount", [0, 1, 2]) == [2, 1, 3]
    assert pair.result("free", [2, 0, 2, 1, 2]) == 2
    pair.call("alloc", 3)


def test_freed_pages_queue_at_the_place_of_their_last_owner() -> None:
    pool = PagePool(3, order="fifo")
    pool.alloc(3)
    pool.share([0])
    pool.free([0, 1, 0])
    assert pool.alloc(2).tolist() == [1, 0]


def test_a_double_free_names_page_and_position_and_frees_nothing(order: str) -> None:
    pool = PagePool(200, order=order)
    pages = pool.alloc(150)
    before = pool_state(pool)
    all_pages = [*range(150)]
    for bad, position in (
        ([*range(100), 7], 100),
        ([5, 6, 5], 2),
        ([160, 1], 0),
        ([*all_pages, *all_pages], 150),
    ):
        with pytest.raises(DoubleFree) as caught:
            pool.free(bad)
        assert (caught.value.position, caught.value.value) == (position, bad[position])
        assert pool_state(pool) == before
    assert pool.free(pages) == 150


def test_no_id_goes_out_twice_after_a_refused_free(order: str) -> None:
    pool = PagePool(6, order=order)
    pool.alloc(4)
    with pytest.raises(DoubleFree):
        pool.free([1, 2, 1])
    assert sorted(pool.alloc(2).tolist()) == [4, 5]
    assert pool.try_alloc(1) is None


@pytest.mark.parametrize("start", [0, 1, 63, 64, 100])
@pytest.mark.parametrize("length", [63, 64, 65, 130, 192])
def test_runs_are_freed_like_single_pages(start: int, length: int) -> None:
    pool = PagePool(300)
    pool.alloc(300)
    assert pool.free(np.arange(start, start + length, dtype=np.int32)) == length
    expected = np.zeros(300, np.int32)
    expected[:start] = expected[start + length :] = 1
    assert pool.arrays.refcount.tolist() == expected.tolist()
    assert pool_state(pool)["released"] == list(range(start, start + length))
    pool.check()


@pytest.mark.parametrize("shared", [10, 73, 74])
def test_a_run_with_a_shared_page_in_it(shared: int) -> None:
    pool = PagePool(100)
    pages = pool.alloc(100)
    pool.share([shared])
    assert pool.free(pages[10:75]) == 64
    assert pool.refcount([shared]).tolist() == [1]
    pool.check(held=[*range(10), shared, *range(75, 100)])


def test_a_run_that_ends_in_a_free_page() -> None:
    pool = PagePool(130)
    pages = pool.alloc(130)
    pool.free(pages[127:])
    with pytest.raises(DoubleFree) as caught:
        pool.free(pages)
    assert caught.value.position == 127
    assert pool.num_released == 3
    pool.check(held=range(127))


def test_sharing_a_free_page_is_refused(order: str) -> None:
    pool = PagePool(4, order=order)
    pages = pool.alloc(2)
    pool.free(pages[1:])
    for bad in ([0, 1], [0, 3]):
        with pytest.raises(InvalidPage) as caught:
            pool.share(bad)
        assert type(caught.value) is InvalidPage
        assert caught.value.position == 1
        assert pool.refcount([0]).tolist() == [1]


def test_a_reference_count_never_passes_int32(pool: PagePool) -> None:
    pool.alloc(2)
    pool.arrays.refcount[1] = INT32_MAX
    with pytest.raises(InvalidPage, match="int32") as caught:
        pool.share([0, 1])
    assert caught.value.position == 1
    assert pool.refcount([0, 1]).tolist() == [1, INT32_MAX]


def test_the_null_page_belongs_to_the_pool(order: str) -> None:
    pool = PagePool(4, order=order, null_page=True)
    pool.alloc(2)
    for call in (pool.free, pool.share):
        with pytest.raises(InvalidPage, match="null page"):
            call([1, 0])
    pool.check(held=[1, 2])


def test_refcount_of_any_page(pool: PagePool) -> None:
    pool.alloc(1)
    counts = pool.refcount([1, 0, 0])
    assert counts.dtype == np.int32
    assert counts.tolist() == [0, 1, 1]
    assert pool.refcount([]).tolist() == []


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.uint64, ">i4"])
def test_ids_of_any_integer_type(pool: PagePool, dtype: str) -> None:
    pages = pool.alloc(3).astype(dtype)
    pool.share(pages)
    assert pool.refcount(pages).tolist() == [2, 2, 2]
    assert pool.free(pages) + pool.free(pages) == 3


def test_ids_in_lists_tuples_ranges_and_strided_views(pool: PagePool) -> None:
    pages = pool.alloc(8)
    freed = [pool.free([0]), pool.free((1,)), pool.free(range(2, 4)), pool.free(pages[4::2])]
    assert freed == [1, 1, 2, 2]
    assert pool.free(pages[:4:-2]) == 2
    assert pool.num_used == 0


def test_read_only_ids(pool: PagePool) -> None:
    pages = pool.alloc(3)
    pages.flags.writeable = False
    pool.share(pages)
    assert pool.free(pages) == 0


def test_freeing_nothing(order: str) -> None:
    pool = PagePool(2, order=order)
    assert pool.free([]) == 0
    assert pool.free(np.empty(0, np.int32)) == 0
    assert pool.share([]) is None


# Groups.


def test_a_group_frees_at_its_end(order: str) -> None:
    pair = PoolPair(8, order=order)
    pair.call("alloc", 6)
    pair.call("share", [2])
    assert pair.free_group([[4, 1], [], [2], [5]]) == ("returned", 3)
    pair.call("alloc", 4)


def test_a_group_copies_the_ids_and_changes_nothing_before_its_end(pool: PagePool) -> None:
    pages = pool.alloc(4)
    given = pages[:2].copy()
    with pool.free_group() as group:
        assert pool.free(given) == 0
        given[:] = 3
        assert (pool.num_used, pool.step) == (4, 1)
    assert group.released == 2
    pool.check(held=[2, 3])


def test_a_bad_id_in_a_group_says_which_call_it_came_from(order: str) -> None:
    pair = PoolPair(8, order=order)
    pair.call("alloc", 6)
    assert pair.free_group([[0, 1], [], [2, 3, 0]])[0] is DoubleFree
    assert pair.free_group([[0], [9]])[0] is InvalidPage

    def free_in_a_group() -> None:
        with pair.pool.free_group():
            pair.pool.free([0])
            pair.pool.free([2, 0])

    with pytest.raises(DoubleFree, match="call 1") as caught:
        free_in_a_group()
    assert (caught.value.position, caught.value.value) == (1, 0)
    pair.agree()


def test_ids_that_are_no_integers_are_refused_by_their_own_call(pool: PagePool) -> None:
    pages = pool.alloc(2)
    with pool.free_group() as group:
        pool.free(pages[:1])
        with pytest.raises(InvalidArgument):
            pool.free([0.5])
    assert group.released == 1


def test_what_was_gathered_before_an_exception_is_released(pool: PagePool) -> None:
    pages, group = pool.alloc(4), pool.free_group()

    def fail_in_a_group() -> None:
        with group:
            pool.free(pages[:3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_in_a_group()
    assert group.released == 3
    pool.check(held=[3])
    assert pool.free(pages[3:]) == 1  # the group is closed


def test_groups_do_not_nest(pool: PagePool) -> None:
    pages = pool.alloc(2)
    with pool.free_group() as group:
        pool.free(pages)
        with pytest.raises(NestedFreeGroup), pool.free_group():
            pytest.fail("the inner block ran")
    assert group.released == 2
    with pool.free_group() as group:
        pass
    assert group.released == 0


def test_groups_on_two_pools_are_strangers() -> None:
    one, two = PagePool(2), PagePool(2)
    pages = one.alloc(1), two.alloc(1)
    with one.free_group(), two.free_group():
        one.free(pages[0])
        two.free(pages[1])
    assert (one.num_used, two.num_used) == (0, 0)


def test_frees_of_other_threads_are_not_gathered(pool: PagePool) -> None:
    pages = pool.alloc(4)
    freed: list[int] = []
    with pool.free_group() as group:
        pool.free(pages[:1])
        other = threading.Thread(target=lambda: freed.append(pool.free(pages[1:])))
        other.start()
        other.join()
        assert pool.num_used == 1
    assert (freed, group.released) == ([3], 1)
