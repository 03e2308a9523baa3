"""Frees on very many pages: several blocks, one launch or two. Here blocks are small.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_large.py

Without these two set, and without a GPU, the tests are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import NULL, DoubleFree, InvalidPage, NestedFreeGroup, PagePool, WrongDevice
from tests import twin_steps
from tests.cuda_blocks import PAGES, blocks_of, down, in_use, up
from tests.cuda_pairs import CudaPair, HostView
from tests.gpu import ON_DEVICE

pytestmark = [*ON_DEVICE, pytest.mark.usefixtures("many_small_blocks")]

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
    monkeypatch.setattr("jitalloc.pool.pool_cuda.LARGE", 2)
    monkeypatch.setattr("jitalloc.pool.pool_cuda.MANY", 2)
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
    monkeypatch.setattr("jitalloc.pool.pool_cuda.MOST_GROUPS", 2)
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
