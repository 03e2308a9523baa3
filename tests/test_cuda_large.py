"""Calls on very many pages: several blocks, up to two launches. With small ones in many blocks.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_large.py

Without these two set, and without a GPU, the tests are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    NULL,
    DoubleFree,
    InvalidArgument,
    InvalidPage,
    NestedFreeGroup,
    OutOfPages,
    PagePool,
    WrongDevice,
    _cuda_device,
)
from jitalloc.kernels.cuda.merging import SPAN
from tests import twin_steps
from tests.cuda_pairs import CudaPair, HostView
from tests.gpu import ON_DEVICE
from tests.pairs import outcome, pool_state

pytestmark = ON_DEVICE
PAGES = 300


@pytest.fixture(autouse=True)
def many_small_blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Blocks of few threads, and at most five; returns the launches, with their blocks."""
    gpu: Any = _cuda_device.device()
    launches: list[tuple[str, int]] = []
    launch = gpu.launch

    def noted(kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
        launches.append((kernel.name, blocks))
        launch(kernel, blocks, threads, *arguments)

    monkeypatch.setattr(gpu, "launch", noted)
    monkeypatch.setattr(gpu, "threads", 4 if isinstance(gpu, _cuda_device.SimulatedDevice) else 32)
    monkeypatch.setattr("jitalloc.cuda.slab.ITEMS", 1)
    monkeypatch.setattr("jitalloc.cuda.slab.MOST_BLOCKS", 5)
    monkeypatch.setattr("jitalloc.cuda.pool.LARGE", 8)
    monkeypatch.setattr("jitalloc.cuda.owners.MANY", 8)
    return launches


def blocks_of(elements: int) -> int:
    """How many blocks a call takes for so many elements."""
    return min(5, -(-elements // _cuda_device.device().threads))


def up(values: Any, dtype: Any = np.int32) -> Any:
    return _cuda_device.device().upload(np.array(values, dtype))


def down(values: Any) -> list[int]:
    listed: list[int] = _cuda_device.device().download(values).tolist()
    return listed


def in_use(random: Random, order: str = "sorted", null_page: bool = False) -> CudaPair:
    """A pool of whose pages some are free, some released, some held once and some thrice."""
    pair = CudaPair(PAGES, 4, order=order, null_page=null_page)
    pages = pair.result("alloc", 280)
    random.shuffle(pages)
    pair.result("free", pages[:90])
    pair.result("share", pages[100:130])
    pair.result("share", pages[100:130])
    return pair


# Merges.


@pytest.mark.parametrize("null_page", [False, True])
def test_a_merge_by_all_blocks(null_page: bool, many_small_blocks: list[tuple[str, int]]) -> None:
    random = Random(1)
    pair = in_use(random, null_page=null_page)
    many_small_blocks.clear()
    assert pair.result("merge") == 90
    assert many_small_blocks == [("pool_merge_cuda", blocks_of(-(-PAGES // SPAN)))]
    assert pair.result("merge") == 0
    pair.result("free", pair.held()[-1:])
    pair.result("merge")
    pair.result("free", pair.held())
    pair.result("merge")


@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_a_merge_where_nothing_waits(order: str, many_small_blocks: list[tuple[str, int]]) -> None:
    pair = in_use(Random(2), order)
    many_small_blocks.clear()
    assert pair.result("merge") == 0
    pair.result("alloc", 30)
    assert many_small_blocks == [("pool_merge_cuda", 1), ("pool_alloc_cuda", blocks_of(30))]


# Allocations.


def test_an_allocation_merges_by_all_blocks_first(many_small_blocks: list[tuple[str, int]]) -> None:
    pair = in_use(Random(3))
    many_small_blocks.clear()
    pair.result("alloc", 20)  # what is free already: no merge
    assert many_small_blocks == [("pool_alloc_cuda", blocks_of(-(-PAGES // SPAN)))]
    assert pair.model.merges == 0
    pair.result("alloc", 31)
    assert pair.model.merges == 1
    assert pair.call("alloc", 60)[0] is OutOfPages
    pair.result("free", pair.held()[3:9])
    assert pair.call("alloc", 66)[0] is OutOfPages  # nothing is merged for a call that fails
    assert pair.model.merges == 1
    pair.result("alloc", 65)


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
def test_a_batch_of_very_many(order: str, many_small_blocks: list[tuple[str, int]]) -> None:
    random = Random(4)
    pair = in_use(random, order)
    many_small_blocks.clear()
    pair.result("alloc_batch", [1] * 18)
    blocks = blocks_of(max(21, -(-PAGES // SPAN) if order == "sorted" else 0))  # 18, room for 3
    assert many_small_blocks == [("pool_total_cuda", blocks), ("pool_alloc_batch_cuda", blocks)]
    pair.result("alloc_batch", [random.choice((0, 0, 1, 2)) for _ in range(60)])
    assert pair.model.merges == (order == "sorted")
    pair.result("free", pair.held()[:50])
    assert pair.call("alloc_batch", [3] * 100)[0] is OutOfPages
    pair.result("alloc_batch", [])
    pair.result("alloc_batch", [0] * 40)


@pytest.mark.parametrize("place", [0, 1, 7, 8, 20, 38, 39])
@pytest.mark.parametrize("wrong", [-1, 2**31 - 1, 2**62, -(2**63)])
def test_a_batch_with_a_count_that_is_wrong(wrong: int, place: int) -> None:
    counts = [1] * 40
    counts[place] = wrong
    for later in range(place + 1, 40, 9):
        counts[later] = -7
    cpu, gpu = PagePool(PAGES), HostView(PagePool(PAGES, device="cuda"))  # type: ignore[arg-type]
    expected = outcome(lambda: cpu.alloc_batch(counts))
    assert outcome(lambda: gpu.alloc_batch(counts)) == expected
    assert expected[0] is InvalidArgument
    assert pool_state(gpu) == pool_state(cpu)  # type: ignore[arg-type]


def test_a_batch_that_its_buffer_does_not_hold() -> None:
    pool: Any = PagePool(PAGES, device="cuda")
    pool.free(pool.alloc(PAGES)[:100])
    indptr, pages = pool.alloc_batch(up([2] * 40, np.int64), out=up([7] * 79))
    assert (down(indptr), down(pages)) == ([NULL] * 41, [NULL] * 79)
    with pytest.raises(InvalidArgument, match="out = 79: the call makes 80"):
        pool.check()
    assert (pool.num_released, pool.stats().merges) == (100, 0)


# Frees.


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
def test_a_free_of_very_many(order: str, many_small_blocks: list[tuple[str, int]]) -> None:
    random = Random(5)
    pair = in_use(random, order)
    held = pair.held()
    random.shuffle(held)
    many_small_blocks.clear()
    pair.result("free", held[:180])
    names = ["owners_take_off_cuda", "owners_free_ring_cuda"]
    names = ["owners_free_cuda"] if order == "sorted" else names
    assert many_small_blocks == [(name, 5) for name in names]
    pair.result("free", held[180:])
    pair.result("alloc", 250)


def spoiled(pages: list[int], kind: str, place: int, pair: CudaPair) -> list[int]:
    """A batch with one or more pages that cannot be freed, the first of them at `place`."""
    free = [page for page in range(PAGES) if pair.model.owners[page] == 0]
    thrice = next(page for page in range(PAGES) if pair.model.owners[page] == 3)
    wrong = {
        "past the end": [PAGES],
        "negative": [-1],
        "far out": [2**31 - 1, -(2**31)],
        "free": [pair.model.free_list[0]],
        "released, twice": [*pair.model.released][:1] * 2 or free[:1] * 2,
        "again": pages[:1] if place > 0 else free[:1],
        "too often": [thrice] * 4,
        "null": [0],
    }[kind]
    return pages[:place] + wrong + pages[place:]


KINDS = ["past the end", "negative", "far out", "free", "released, twice", "again", "too often"]


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
@pytest.mark.parametrize("kind", [*KINDS, "null"])
def test_a_free_that_fails_undoes_all_blocks(kind: str, order: str) -> None:
    random = Random(f"{kind} {order}")
    pair = in_use(random, order, null_page=kind == "null")
    once = [page for page in pair.held() if pair.model.owners[page] == 1]
    random.shuffle(once)
    for place in (0, 5, 37, 60):
        got = pair.call("free", spoiled(once[:60], kind, place, pair))
        assert got[0] in (DoubleFree, InvalidPage)
        second = spoiled(spoiled(once[:60], "negative", 60, pair), kind, place, pair)
        pair.call("free", second)
    pair.result("free", once)


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
def test_slots_of_very_many(order: str, many_small_blocks: list[tuple[str, int]]) -> None:
    random = Random(6)
    pair = in_use(random, order, null_page=True)
    pages = sorted({*pair.held()})[:40]
    slots = [4 * page + offset for page in pages for offset in range(4)]
    many_small_blocks.clear()
    pair.result("free_slots", slots[:80])
    names = ["owners_mark_slots_cuda", "owners_free_slots_ring_cuda"]
    names = ["owners_free_slots_cuda"] if order == "sorted" else names
    assert many_small_blocks == [(name, blocks_of(80)) for name in names]
    rest = slots[80:]
    random.shuffle(rest)
    for wrong in (-1, 3, 4 * PAGES, 4 * pair.model.free_list[0] + 1, slots[0] if slots[0] else 0):
        for place in (0, 33, 80):
            pair.call("free_slots", [*rest[:place], wrong, *rest[place:], -5])
    pair.result("free_slots", rest)
    pair.result(
        "free_slots", [slot for page in {*pair.held()} for slot in (4 * page, 4 * page + 3)]
    )


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
@pytest.mark.parametrize("seed", range(3))
def test_any_calls_one_behind_the_other(
    seed: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jitalloc.cuda.pool.LARGE", 2)
    monkeypatch.setattr("jitalloc.cuda.owners.MANY", 2)
    random = Random(seed)
    pair = CudaPair(150, 3, order=order, null_page=seed == 1)
    steps = [twin_steps.alloc, twin_steps.alloc_batch, twin_steps.free, twin_steps.free]
    steps += [twin_steps.merge, twin_steps.free_slots, twin_steps.decode, twin_steps.extend]
    steps += [twin_steps.share, twin_steps.refcount, twin_steps.admit]
    for _ in range(30):
        random.choice(steps)(pair, random)


# Groups of frees.


@pytest.fixture
def pool() -> Any:
    """Of 20 pages, the first twelve held."""
    made = PagePool(20, 4, device="cuda")
    made.alloc(12)
    return made


def test_a_group_is_freed_at_its_end(pool: Any, many_small_blocks: list[tuple[str, int]]) -> None:
    buffer, out = up([0, 1, 2]), up([9], np.int64)
    many_small_blocks.clear()
    with pool.free_group() as group:
        assert down(pool.free(buffer)) == [0]
        assert pool.free(up([]), out=out) is out
        buffer[:] = 7  # the ids were copied
        pool.free(up([3, 11]))
        assert many_small_blocks == []
    assert many_small_blocks == [("owners_free_cuda", blocks_of(5))]
    assert (down(group.released), down(out), pool.num_used) == ([5], [0], 7)
    with pool.free_group() as nothing:
        pass
    assert down(nothing.released) == [0]


def test_a_group_tells_which_of_its_calls_was_wrong(pool: Any) -> None:
    with pool.free_group() as group:
        pool.free(up([0, 1]))
        pool.free(up([]))
        pool.free(up([2, 3, 1]))
        pool.free(up([4]))
    with pool.free_group():
        pool.free(up([5]))
    assert down(group.released) == [NULL]
    with pytest.raises(DoubleFree) as caught:
        pool.check()
    assert caught.value.argument == "pages (free call 2 of the group)"
    assert (caught.value.position, caught.value.value) == (2, 1)
    assert caught.value.__notes__ == ["raised late: it is call 1 of the pool (free)"]
    pool.check(held=[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11])


def test_a_failure_outside_of_a_group_is_not_taken_for_one_of_it(pool: Any) -> None:
    with pool.free_group():
        pool.free(up([0, 1]))
    pool.free(up([2, 1]))
    with pytest.raises(DoubleFree) as caught:
        pool.check()
    assert (caught.value.argument, caught.value.position) == ("pages", 1)


def test_a_group_that_is_interrupted_frees_what_it_has(pool: Any) -> None:
    group = pool.free_group()

    def some_of_it() -> None:
        with group:
            pool.free(up([0, 1]))
            pool.free(np.array([2], np.int32))

    with pytest.raises(WrongDevice):
        some_of_it()
    assert down(group.released) == [2]
    pool.check(held=range(2, 12))


def test_a_group_is_not_nested(pool: Any) -> None:
    with pool.free_group():
        pool.free(up([0]))
        with pytest.raises(NestedFreeGroup), pool.free_group():
            pass
    assert pool.num_used == 11


def test_what_is_remembered_of_groups_does_not_grow(pool: Any) -> None:
    for _ in range(3):
        with pool.free_group():
            pool.free(up([]))
    assert len(pool._groups) == 3
    assert pool.num_used == 12
    assert pool._groups == {}


def test_groups_of_many_are_forgotten_oldest_first(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jitalloc.cuda.owners.MOST_GROUPS", 2)
    for ids in ([19], [0], [1]):
        with pool.free_group():
            pool.free(up([]))
            pool.free(up(ids))
    with pytest.raises(DoubleFree) as caught:
        pool.check()
    assert (caught.value.argument, caught.value.position) == ("pages", 0)


# What the simulator does not see otherwise: that the model is asked at all.


def test_a_model_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = CudaPair(20)
    free: Callable[..., Any] = HostView.free
    monkeypatch.setattr(HostView, "free", lambda self, pages: free(self, pages[:-1]))
    pages = pair.result("alloc", 5)
    with pytest.raises(AssertionError):
        pair.call("free", pages)
