"""Slots for tokens: alloc_extend, alloc_decode, free_slots."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from jitalloc import PagePool
from jitalloc.errors import InvalidArgument, OutOfPages
from tests.pairs import PoolPair, pool_state

PAGE_SIZES = (1, 2, 3, 4, 7, 16)


def test_new_prompts_start_on_new_pages(pool: PagePool) -> None:
    slots = pool.alloc_extend([0, 0, 0], [5, 0, 4], [-1, -1, -1])
    assert slots.dtype == np.int64
    assert slots.tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert pool.refcount([0, 1, 2, 3]).tolist() == [1, 1, 1, 0]


def test_an_extension_fills_the_partly_filled_page_first(pool: PagePool) -> None:
    pool.alloc(4)
    # Six tokens so far, in pages 3 and 1; page 1 has room for two more.
    assert pool.alloc_extend([6], [13], [5]).tolist() == [6, 7, 16, 17, 18, 19, 20]
    # A full last page: on with a new one.
    assert pool.alloc_extend([8], [9], [7]).tolist() == [24]
    # Within the page: nothing is taken.
    assert pool.alloc_extend([1], [4], [8]).tolist() == [9, 10, 11]
    assert pool.num_used == 7


def by_the_formula(
    page_size: int, batch: list[tuple[int, int, int]], taken: list[int]
) -> list[int]:
    """Slots by the formula of the design: block by block, without looking at the model."""

    def ceil(tokens: int) -> int:
        return -(-tokens // page_size)

    slots, pages_before = [], 0
    for prefix, seq, last in batch:
        for position in range(prefix, seq):
            block = position // page_size
            if block < ceil(prefix):
                slots.append(last + 1 + position - prefix)
            else:
                page = taken[pages_before + block - ceil(prefix)]
                slots.append(page * page_size + position % page_size)
        pages_before += ceil(seq) - ceil(prefix)
    return slots


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_extend_follows_the_formula(page_size: int, order: str) -> None:
    random, pair = Random(page_size), PoolPair(120, page_size, order)
    for _ in range(10):
        held = pair.result("alloc", 3)
        pair.call("free", pair.result("alloc", 5)[::-1])
        batch = []
        for page in held:
            prefix = random.randrange(1, 3 * page_size + 1)
            last = page * page_size + (prefix - 1) % page_size
            batch.append((prefix, prefix + random.randrange(3 * page_size), last))
        batch.append((0, random.randrange(2 * page_size + 1), -1))
        need = sum(-(-seq // page_size) - -(-prefix // page_size) for prefix, seq, _ in batch)
        if need > len(pair.model.free_list):
            pair.call("merge")
        taken = pair.model.free_list[:need]
        slots = pair.result("alloc_extend", *(list(column) for column in zip(*batch, strict=True)))
        assert slots == by_the_formula(page_size, batch, taken)
        pair.call("free", [*held, *taken])


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_decoding_step_by_step_equals_extending(page_size: int, order: str) -> None:
    one, two = PagePool(40, page_size, order=order), PagePool(40, page_size, order=order)
    slots = one.alloc_extend([0], [20], [-1])
    last = -1
    for tokens in range(1, 21):
        (last,) = two.alloc_decode([tokens], [last])
        assert last == slots[tokens - 1]
    assert one.num_used == two.num_used


def test_decode_takes_pages_in_batch_order(pool: PagePool) -> None:
    pool.alloc(4)
    slots = pool.alloc_decode([5, 3, 1, 9, 8], [3, 5, -1, 11, 14])
    assert slots.dtype == np.int64
    assert slots.tolist() == [16, 6, 20, 24, 15]
    assert pool.num_used == 7


def test_decode_merges_when_the_freelist_is_short(pool: PagePool) -> None:
    pool.free(pool.alloc(8)[2:4])
    assert pool.alloc_decode([1, 1], [-1, -1]).tolist() == [8, 12]
    assert pool.num_released == 0


def test_decode_of_running_sequences_merges_when_the_freelist_is_short() -> None:
    pair = PoolPair(8, 4)
    pair.call("free", pair.result("alloc", 8)[2:4])
    assert pair.result("alloc_decode", [5, 9, 3], [3, 7, 1]) == [8, 12, 2]
    assert pair.call("alloc_decode", [5], [3])[0] is OutOfPages


def test_running_sequences_exhaust_a_pool(order: str) -> None:
    pair = PoolPair(8, 4, order)
    pair.call("free", pair.result("alloc", 8)[4:5])
    assert pair.call("alloc_decode", [5, 9, 2], [3, 7, 8])[:3] == (OutOfPages, 2, 1)
    assert pair.result("alloc_decode", [5, 2], [3, 8]) == [16, 9]


@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_the_ring_wraps_under_running_sequences(order: str) -> None:
    pair = PoolPair(8, 4, order)
    pair.call("alloc", 8)
    pair.call("free", [5, 3, 7, 6, 4])
    for _ in range(6):
        last = [page * 4 + 3 for page in range(3)]
        slots = pair.result("alloc_decode", [5, 9, 13], last)
        pair.call("free_slots", slots)


@pytest.mark.parametrize("num_used", [0, 5])
def test_the_ring_wraps_within_a_batch(num_used: int) -> None:
    for order in ("fifo", "lifo"):
        pair = PoolPair(9, 4, order)
        pair.call("alloc", 9)
        pair.call("free", [8, 2, 5, 1, 0, 7, 3, 4, 6][num_used:])
        pair.call("alloc", 3)
        pair.call("free", pair.held()[:2])
        left = pair.model.available
        pair.call("alloc_decode", [1] * (left - 1), [-1] * (left - 1))
        pair.call("alloc_extend", [0], [4], [-1])
        assert pair.model.available == 0


def test_decode_in_place(pool: PagePool) -> None:
    pool.alloc_extend([0, 0], [3, 4], [-1, -1])
    last = np.array([2, 7])
    assert pool.alloc_decode(np.array([4, 5]), last, out=last) is last
    assert last.tolist() == [3, 8]


@pytest.mark.parametrize("fault", [(2, 19), (4, 22), (9, 19), (3, 2)])
def test_a_refused_decode_leaves_out_alone(pool: PagePool, fault: tuple[int, int]) -> None:
    pool.alloc(2)
    seq_lens, last = np.array([4, fault[0]]), np.array([2, fault[1]])
    with pytest.raises(InvalidArgument) as caught:
        pool.alloc_decode(seq_lens, last, out=last)
    assert (caught.value.argument, caught.value.position) == ("last_slots", 1)
    assert last.tolist() == [2, fault[1]]
    out = np.array([-5, -5])
    with pytest.raises(InvalidArgument):
        pool.alloc_decode(seq_lens, last, out=out)
    pool.alloc(6)
    with pytest.raises(OutOfPages):
        pool.alloc_decode([4, 5], [2, 7], out=out)
    assert out.tolist() == [-5, -5]


def test_out_of_extend(pool: PagePool) -> None:
    out = np.full(3, -5)
    assert pool.alloc_extend([0], [3], [-1], out=out) is out
    assert out.tolist() == [0, 1, 2]


@pytest.mark.parametrize("null_page", [False, True])
def test_exhaustion_undoes_the_whole_batch(order: str, null_page: bool) -> None:
    pool = PagePool(4 + null_page, 4, order=order, null_page=null_page)
    pool.alloc(2)
    before = pool_state(pool)
    last = (1 + null_page) * 4
    with pytest.raises(OutOfPages) as caught:
        pool.alloc_extend([1, 0, 0], [4, 5, 4], [last, -1, -1])
    assert (caught.value.requested, caught.value.available) == (3, 2)
    with pytest.raises(OutOfPages) as caught:
        pool.alloc_decode([2, 1, 1, 1], [last, -1, -1, -1])
    assert (caught.value.requested, caught.value.available) == (3, 2)
    assert pool_state(pool) == before


def test_exhaustion_far_beyond_the_pool_asks_for_no_memory() -> None:
    pool = PagePool(2, 1)
    with pytest.raises(OutOfPages) as caught:
        pool.alloc_extend([0, 0], [2**30, 2**30 - 1], [-1, -1])
    assert (caught.value.requested, caught.value.available) == (2**31 - 1, 2)


BAD_EXTENSIONS = [
    # prefix_lens, seq_lens, last_slots, the argument at fault and its position
    ([0, -1], [1, 1], [-1, -1], "prefix_lens", 1),
    ([0, 3], [1, 2], [-1, 2], "seq_lens", 1),
    ([0, 3], [1, 4], [-1, 1], "last_slots", 1),
    ([0, 3], [1, 4], [-1, -1], "last_slots", 1),
    ([0, 0], [1, 4], [-1, 3], "last_slots", 1),
    ([0, 4], [1, 5], [-1, 5], "last_slots", 1),
    ([0, 3], [1, 4], [-1, 34], "last_slots", 1),
    ([0, 3], [1, 4], [-1, -2], "last_slots", 1),
    ([0, 3], [1, 4], [-1, 18], "last_slots", 1),
    ([0, 2**31 - 1], [1, 2**31], [-1, 2], "seq_lens", 1),
    ([0, 0], [1, 2**31 - 1], [-1, -1], "seq_lens", 1),
    ([2**63 - 16], [2**63 - 15], [3], "seq_lens", 0),
]


@pytest.mark.parametrize("fault", BAD_EXTENSIONS)
def test_bad_extensions(
    pool: PagePool, fault: tuple[list[int], list[int], list[int], str, int]
) -> None:
    prefix_lens, seq_lens, last_slots, argument, position = fault
    pool.alloc(4)
    before = pool_state(pool)
    with pytest.raises(InvalidArgument) as caught, np.errstate(over="ignore"):
        pool.alloc_extend(prefix_lens, seq_lens, last_slots)
    assert (caught.value.argument, caught.value.position) == (argument, position)
    assert pool_state(pool) == before


BAD_DECODES = [
    ([2, 0], [0, -1], "seq_lens", 1),
    ([2, -(2**63)], [0, 14], "seq_lens", 1),
    ([2, 3], [0, 2], "last_slots", 1),
    ([2, 2], [0, -1], "last_slots", 1),
    ([2, 1], [0, 3], "last_slots", 1),
    ([2, 5], [0, 16], "last_slots", 1),
    ([2, 5], [0, 35], "last_slots", 1),
    ([2, 5], [0, 2**40 + 3], "last_slots", 1),
    ([2, 4], [0, 18], "last_slots", 1),
    ([2, 5], [0, 18], "last_slots", 1),
    ([2, 4], [0, -(2**63) + 2], "last_slots", 1),
]


@pytest.mark.parametrize("fault", BAD_DECODES)
@pytest.mark.parametrize("page_size", [4, 5])
def test_bad_decodes(page_size: int, fault: tuple[list[int], list[int], str, int]) -> None:
    seq_lens, last_slots, argument, position = fault
    pool = PagePool(8, page_size)
    pool.alloc(3 if page_size == 5 else 4)
    before = pool_state(pool)
    with pytest.raises(InvalidArgument) as caught, np.errstate(over="ignore"):
        pool.alloc_decode(seq_lens, last_slots)
    assert (caught.value.argument, caught.value.position) == (argument, position)
    assert pool_state(pool) == before


def test_a_last_slot_in_the_null_page_is_refused() -> None:
    pool = PagePool(4, 4, null_page=True)
    pool.alloc(1)
    for call in (lambda: pool.alloc_decode([2], [0]), lambda: pool.alloc_extend([1], [2], [0])):
        with pytest.raises(InvalidArgument, match="last_slots"):
            call()
    assert pool.alloc_decode([2], [4]).tolist() == [5]


def test_empty_token_batches(pool: PagePool) -> None:
    assert pool.alloc_extend([], [], []).dtype == np.int64
    assert pool.alloc_decode([], []).size == 0
    assert pool.free_slots([]) == 0
    assert pool.alloc_extend([3], [3], [pool.alloc(1)[0] * 4 + 2]).size == 0


# Freeing by slot.


def test_each_page_of_the_slots_is_freed_once(pool: PagePool) -> None:
    slots = pool.alloc_extend([0, 0], [6, 3], [-1, -1])
    assert pool.free_slots(slots[[0, 8, 2, 7]]) == 2
    assert pool.refcount([0, 1, 2]).tolist() == [0, 1, 0]
    assert pool.free_slots([5]) == 1
    pool.check(held=[])


def test_a_shared_page_loses_one_owner_by_its_slots(pool: PagePool) -> None:
    slots = pool.alloc_extend([0], [8], [-1])
    pool.share([1])
    assert pool.free_slots(slots) == 1
    assert pool.refcount([0, 1]).tolist() == [0, 1]


def test_pages_queue_in_the_order_of_their_first_slot() -> None:
    for order, expected in (("fifo", [2, 0, 3]), ("lifo", [3, 0, 2])):
        pool = PagePool(5, 4, order=order)
        pool.alloc(5)
        assert pool.free_slots([9, 2, 8, 13]) == 3
        assert pool.alloc(3).tolist() == expected


@pytest.mark.parametrize("bad", [[0, 20], [0, 32], [0, -1], [0, 1, 2, 3, 2**62], [0, 1, 6, 20]])
def test_bad_slots(pool: PagePool, bad: list[int]) -> None:
    pool.alloc(4)
    before = pool_state(pool)
    with pytest.raises(InvalidArgument) as caught:
        pool.free_slots(bad)
    assert (caught.value.argument, caught.value.value) == ("slots", bad[-1])
    assert caught.value.position == len(bad) - 1
    assert pool_state(pool) == before


def test_slots_of_the_null_page_are_refused() -> None:
    pool = PagePool(4, 4, null_page=True)
    pool.alloc(1)
    with pytest.raises(InvalidArgument, match="slots"):
        pool.free_slots([4, 3])
    assert pool.free_slots([4]) == 1
