"""A pool as a whole: stats, clear, resize, defragment, and what `check` finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from jitalloc import PagePool
from jitalloc.errors import CorruptState, InvalidPage, PageInUse
from jitalloc.pool import state
from jitalloc.pool.state import ALLOCATED, FREED, HEAD, RELEASED, PoolArrays
from jitalloc.state import HEADER_SLOTS, LOCK
from tests.pairs import PoolPair


def used_pair(order: str = "sorted", null_page: bool = False) -> PoolPair:
    """A pool with a history: 70 pages, some held, some shared, some released, some free."""
    pair = PoolPair(70, 4, order, null_page)
    pair.call("alloc", 60)
    pair.call("free", [50, 3, 7, 30, 31, 12, 59, 41, 2])
    pair.call("alloc", 12)
    pair.call("share", [20, 21, 20])
    pair.call("free", [5, 40, 21])
    return pair


# Figures.


def test_stats_of_a_fresh_pool() -> None:
    stats = PagePool(10, 8, null_page=True).stats()
    assert dataclasses.asdict(stats) == {
        "num_pages": 10,
        "page_size": 8,
        "free": 9,
        "released": 0,
        "used": 0,
        "reserved": 1,
        "peak_used": 0,
        "allocated": 0,
        "freed": 0,
        "merges": 0,
        "step": 0,
        "longest_run": 9,
        "fragmentation": 0.0,
        "utilization": 0.0,
    }


def test_stats_count_what_happened(pool: PagePool) -> None:
    pages = pool.alloc(6)
    pool.free(pages[1:3])
    pool.merge()
    pool.alloc(1)
    stats = pool.stats()
    assert (stats.allocated, stats.freed, stats.peak_used, stats.merges) == (7, 2, 6, 1)
    assert (stats.free, stats.released, stats.used, stats.step) == (3, 0, 5, 4)


def test_fragmentation_is_not_utilization(pool: PagePool) -> None:
    pages = pool.alloc(8)
    assert (pool.stats().fragmentation, pool.stats().utilization) == (0.0, 1.0)
    pool.free(pages[::2])
    assert (pool.stats().fragmentation, pool.stats().longest_run) == (0.75, 1)
    pool.free(pages[1:4:2])
    assert pool.stats().fragmentation == 1 - 5 / 6
    assert pool.utilization == 0.25


def test_stats_do_not_follow_the_pool(pool: PagePool) -> None:
    stats = pool.stats()
    pool.alloc(3)
    assert stats.used == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.used = 1  # type: ignore[misc]


# Clear.


def test_clear_gives_everything_back_and_keeps_counting(order: str) -> None:
    pool = PagePool(5, order=order, null_page=True)
    pool.share(pool.alloc(3))
    pool.free([2, 2])
    pool.clear()
    assert pool.alloc(4).tolist() == [1, 2, 3, 4]
    stats = pool.stats()
    assert (stats.allocated, stats.freed, stats.peak_used) == (7, 3, 4)
    pool.check(held=[1, 2, 3, 4])


# Resize.


@pytest.mark.parametrize("null_page", [False, True])
@pytest.mark.parametrize("size", [71, 128, 129, 300])
def test_growing_in_use(order: str, null_page: bool, size: int) -> None:
    pair = used_pair(order, null_page)
    pair.call("resize", size)
    assert pair.pool.num_pages == size
    assert pair.pool.arrays.refcount.size == size
    pair.agree_on_figures()
    pair.call("alloc", pair.model.available)
    pair.call("free", pair.held()[::-1])
    pair.call("resize", 70)


def test_grown_pages_go_out_last(order: str) -> None:
    pool = PagePool(4, order=order)
    pool.free(pool.alloc(4)[[2, 0]])
    pool.resize(6)
    pool.merge()
    assert pool.alloc(4).tolist() == {"fifo": [2, 0, 4, 5]}.get(order, [0, 2, 4, 5])


def test_shrinking_keeps_the_order_of_the_rest(order: str) -> None:
    pool = PagePool(70, order=order)
    pool.free(pool.alloc(70)[[65, 3, 68, 1]])
    pool.free(range(6, 65))
    pool.free([66, 67, 69])
    pool.resize(6)
    assert pool.available == 2
    assert pool.alloc(2).tolist() == {"fifo": [3, 1]}.get(order, [1, 3])
    pool.check(held=range(6))


def test_shrinking_below_a_held_page_is_refused(order: str) -> None:
    pair = PoolPair(70, 4, order)
    pair.call("free", pair.result("alloc", 68)[:60])
    assert pair.call("resize", 67)[:2] == (PageInUse, "num_pages")
    with pytest.raises(PageInUse, match="page 67"):
        pair.pool.resize(67)
    pair.call("resize", 68)
    pair.call("defragment")
    pair.call("resize", 8)
    pair.call("alloc", 1)


def test_a_pool_shrinks_to_its_null_page_and_one_more() -> None:
    pair = PoolPair(9, 4, null_page=True)
    pair.call("resize", 2)
    assert pair.result("alloc", 1) == [1]
    assert pair.pool.try_alloc(1) is None


# Defragment.


def test_defragment_packs_used_pages_to_the_front(order: str) -> None:
    pool = PagePool(8, order=order)
    pool.alloc(8)
    pool.share([6])
    pool.free([0, 3, 4, 2])
    src, dst = moves = pool.defragment()
    assert (src.tolist(), dst.tolist()) == ([5, 6, 7], [0, 2, 3])
    assert src.dtype == dst.dtype == np.int32
    assert (moves.src is src, moves.dst is dst) == (True, True)
    pool.check(held=[0, 1, 2, 2, 3])
    assert pool.num_released == 0
    assert pool.alloc(4).tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("null_page", [False, True])
def test_defragment_of_a_used_pool(order: str, null_page: bool) -> None:
    pair = used_pair(order, null_page)
    src, _dst = pair.result("defragment")
    assert src
    assert pair.result("defragment") == ([], [])
    assert pair.pool.stats().fragmentation == 0.0
    pair.call("alloc", pair.model.available)


def test_the_copies_of_a_defragmentation_can_run_in_order() -> None:
    # No page is read after it was written: contents follow by `data[dst] = data[src]`.
    pair = used_pair()
    data = np.arange(70)
    held = pair.held()
    src, dst = pair.result("defragment")
    before = {page: data[page] for page in held}
    data[dst] = data[src]
    renamed = dict(zip(src, dst, strict=True))
    assert all(data[renamed.get(page, page)] == before[page] for page in held)


# What check finds.


def broken(pair: PoolPair, held: bool = False) -> str:
    with pytest.raises(CorruptState) as caught:
        pair.pool.check(pair.held() if held else None)
    return str(caught.value)


def test_a_sound_pool_passes(order: str) -> None:
    pair = used_pair(order, null_page=True)
    assert pair.pool.check() is None
    pair.pool.check(held=pair.held())


@pytest.mark.parametrize("slot", [i for i in range(HEADER_SLOTS) if i != LOCK])
def test_check_finds_any_header_slot_out_of_range(slot: int, order: str) -> None:
    # LOCK alone has no wrong value to find: whatever is there says that a call is going on.
    pair = used_pair(order)
    pair.pool.arrays.header[slot] = -7
    named = ALLOCATED if slot == FREED else slot  # one equation ties the two
    assert f"header[{named}]" in broken(pair)


EXACT = ("NUM_PAGES", "PAGE_SIZE", "PAGE_SHIFT", "ORDER", "FREE", "RELEASED", "FIRST_PAGE")
EXACT += ("ALLOCATED", "FREED")


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("change", [-1, 1])
def test_check_finds_a_header_slot_off_by_one(name: str, change: int, order: str) -> None:
    pair = used_pair(order)
    pair.pool.arrays.header[getattr(state, name)] += change
    broken(pair)


@pytest.mark.parametrize(
    ("name", "value"), [("PEAK_USED", 0), ("MERGES", 10_000), ("HEAD", 1), ("HEAD", 70)]
)
def test_check_finds_an_impossible_scalar(name: str, value: int) -> None:
    pair = used_pair()
    pair.pool.arrays.header[getattr(state, name)] = value
    assert "header" in broken(pair)


def lowest(pair: PoolPair, owners: int) -> int:
    return pair.model.owners.index(owners, pair.model.first)


def ring_place(pair: PoolPair, i: int) -> int:
    header = pair.pool.arrays.header
    return int((header[HEAD] + i) % pair.pool.num_pages)


def flip(pair: PoolPair, array: str, page: int) -> None:
    getattr(pair.pool.arrays, array)[page // 64] ^= np.uint64(1 << page % 64)


def set_free_page(pair: PoolPair, i: int, page: int) -> None:
    pair.pool.arrays.free_pages[ring_place(pair, i)] = page


def set_refcount(pair: PoolPair, page: int, owners: int) -> None:
    pair.pool.arrays.refcount[page] = owners


# By array: what is broken, and a word of the message.
CORRUPTIONS: dict[str, list[tuple[Callable[[PoolPair], object], str]]] = {
    "released": [
        (lambda pair: flip(pair, "released", lowest(pair, 1)), "released"),
        (lambda pair: flip(pair, "released", pair.model.free_list[0]), "stands in free_pages"),
        (lambda pair: flip(pair, "released", 71), "released"),
        (lambda pair: flip(pair, "released", min(pair.model.released or [127])), "released"),
    ],
    "marks": [
        (lambda pair: flip(pair, "marks", 0), "marks"),
        (lambda pair: flip(pair, "marks", 69), "marks"),
    ],
    "free_pages": [
        (lambda pair: set_free_page(pair, 0, -1), "outside the pool"),
        (lambda pair: set_free_page(pair, 0, 0), "outside the pool"),  # the null page
        (lambda pair: set_free_page(pair, 1, 70), "outside the pool"),
        (lambda pair: set_free_page(pair, 1, pair.model.free_list[0]), "twice"),
        (lambda pair: set_free_page(pair, 0, lowest(pair, 1)), "has owners"),
        (lambda pair: set_free_page(pair, len(pair.model.free_list) - 1, -5), "outside the pool"),
    ],
    "refcount": [
        (lambda pair: set_refcount(pair, lowest(pair, 1), 0), "neither"),
        (lambda pair: set_refcount(pair, lowest(pair, 1), -1), "negative"),
        (lambda pair: set_refcount(pair, pair.model.free_list[0], 1), "has owners"),
        (lambda pair: set_refcount(pair, pair.model.free_list[-1], -1), "negative"),
        (lambda pair: set_refcount(pair, 0, 2), "null page"),
        (lambda pair: set_refcount(pair, 0, 0), "null page"),
    ],
}


def test_there_are_corruptions_of_every_array() -> None:
    arrays = {field.name for field in dataclasses.fields(PoolArrays)}
    assert arrays - {"slab", "header"} == set(CORRUPTIONS)


@pytest.mark.parametrize(
    ("array", "i"), [(array, i) for array, each in CORRUPTIONS.items() for i in range(len(each))]
)
def test_check_finds_a_corrupt_array(array: str, i: int, order: str) -> None:
    pair = used_pair(order, null_page=True)
    corrupt, word = CORRUPTIONS[array][i]
    corrupt(pair)
    assert word in broken(pair)


def count_one_more_released(pair: PoolPair) -> None:
    """Change the header in itself consistently: one page less is in use."""
    pair.pool.arrays.header[[RELEASED, FREED]] += 1


def test_check_finds_pages_counted_as_released_that_are_not() -> None:
    pair = used_pair()
    count_one_more_released(pair)
    assert "header[RELEASED]" in broken(pair)


def test_check_finds_a_released_page_behind_the_last() -> None:
    pair = used_pair()
    count_one_more_released(pair)
    flip(pair, "released", 71)
    assert "past the last page" in broken(pair)


def test_check_finds_a_released_page_with_owners() -> None:
    pair = used_pair()
    count_one_more_released(pair)
    flip(pair, "released", lowest(pair, 1))
    assert "marked in released and has owners" in broken(pair)


@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_nothing_is_released_in_the_other_orders(order: str) -> None:
    pair = used_pair(order)
    count_one_more_released(pair)
    flip(pair, "released", lowest(pair, 1))
    set_refcount(pair, lowest(pair, 1), 0)
    assert f"header[{RELEASED}]" in broken(pair)


def test_a_released_page_is_not_used() -> None:
    pair = used_pair()
    flip(pair, "released", min(pair.model.released))
    assert "released" in broken(pair)
    pair.pool.arrays.header[[RELEASED, FREED]] -= 1
    assert "neither" in broken(pair)


def test_a_sorted_freelist_must_ascend() -> None:
    pair = used_pair("sorted")
    first, second = pair.model.free_list[:2]
    set_free_page(pair, 0, second)
    set_free_page(pair, 1, first)
    assert "ascend" in broken(pair)


def test_check_compares_the_owners_that_the_caller_names(order: str) -> None:
    pair = used_pair(order, null_page=True)
    held = pair.held()
    for wrong in (held[1:], [*held, held[0]], []):
        with pytest.raises(CorruptState, match="refcount"):
            pair.pool.check(held=wrong)
    for nobodys in (pair.model.free_list[0], 0):
        with pytest.raises(CorruptState, match=f"page {nobodys}"):
            pair.pool.check(held=[*held, nobodys])
    with pytest.raises(InvalidPage):
        pair.pool.check(held=[*held, 70])


def test_check_changes_nothing(order: str) -> None:
    pair = used_pair(order)
    before = pair.pool.arrays.slab.copy()
    pair.pool.check()
    assert np.array_equal(pair.pool.arrays.slab, before)


def test_stats_without_runs_look_at_no_page(pool: PagePool) -> None:
    pool.free(pool.alloc(8)[::2])
    stats = pool.stats(runs=False)
    assert (stats.longest_run, stats.fragmentation, stats.used) == (None, None, 4)
    pool.arrays.refcount[:] = 1  # a look at the pages would find no run
    assert pool.stats(runs=False) == stats
    assert pool.stats().longest_run == 0
