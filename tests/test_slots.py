"""SlotAllocator: lowest slot first, versions, all or nothing, and what `check` finds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from jitalloc import SlotAllocator
from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import CorruptState, OutOfSlots, SlotFree, SlotTaken
from jitalloc.slots.state import FREE_SLOTS, LOWEST, NUM_SLOTS, PEAK_SLOTS, SlotArrays
from tests.slot_pairs import SlotPair
from tests.slot_steps import SLOT_BACKGROUND, SLOT_STEPS

SIZES = (1, 2, 63, 64, 65, 4095, 4096, 4097, 9000)


@pytest.mark.parametrize("size", SIZES)
def test_every_slot_goes_out_once_the_lowest_first(size: int) -> None:
    slots = SlotAllocator(size)
    assert [slots.alloc() for _ in range(size)] == [*range(size)]
    assert [slots.alloc(), slots.alloc()] == [-1, -1]
    assert (slots.free_count, slots.num_slots, slots.peak_used) == (0, size, size)
    slots.check()


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_is_what_single_calls_would_give(size: int) -> None:
    one, many = SlotAllocator(size), SlotAllocator(size)
    for slots in (one, many):
        slots.free_batch(slots.alloc_batch(size)[::3])
    count = one.free_count
    batch = many.alloc_batch(count)
    assert batch.dtype == np.int32
    assert batch.tolist() == [one.alloc() for _ in range(count)]
    assert many.arrays.slab.tolist() == one.arrays.slab.tolist()


def test_a_freed_slot_goes_out_before_higher_ones() -> None:
    slots = SlotAllocator(10_000)
    slots.alloc_batch(10_000)
    for slot in (9999, 4096, 64, 63, 0, 8000):
        slots.free(slot)
    assert [slots.alloc() for _ in range(7)] == [0, 63, 64, 4096, 8000, 9999, -1]


def test_a_batch_too_large_takes_nothing() -> None:
    pair = SlotPair(70)
    pair.result("alloc_batch", 60)
    assert pair.call("alloc_batch", 11)[0] is OutOfSlots
    with pytest.raises(OutOfSlots) as caught:
        pair.library.alloc_batch(71)
    assert (caught.value.requested, caught.value.available) == (71, 10)
    assert pair.result("alloc_batch", 10) == [*range(60, 70)]
    assert pair.result("alloc_batch", 0) == []


@pytest.mark.parametrize("bad", [[5, 5], [5, 80], [5, -1], [6, 5, 69], [*range(60), 3]])
def test_a_batch_with_a_bad_slot_frees_nothing(bad: list[int]) -> None:
    pair = SlotPair(80)
    pair.result("alloc_batch", 69)
    before = pair.library.arrays.slab.tolist()
    assert pair.call("free_batch", bad)[0] != "returned"
    assert pair.library.arrays.slab.tolist() == before


def test_a_refused_batch_leaves_the_hint_where_it_was() -> None:
    slots = SlotAllocator(5000)
    slots.alloc_batch(4500)
    slots.free(slots.alloc())
    before = slots.arrays.slab.tolist()
    with pytest.raises(SlotFree):
        slots.free_batch([7, 8, 4999])
    assert slots.arrays.slab.tolist() == before
    assert before[LOWEST] == 1


def test_versions_grow_whenever_a_slot_is_taken() -> None:
    slots = SlotAllocator(3)
    assert slots.version(0) == 0
    assert not slots.is_current(0, 0)
    slot = slots.alloc()
    version = slots.version(slot)
    assert (version, slots.is_current(slot, version)) == (1, True)
    slots.free(slot)
    assert (slots.version(slot), slots.is_current(slot, version)) == (1, False)
    slots.occupy(slot)
    assert (slots.version(slot), slots.is_current(slot, version)) == (2, False)
    slots.clear()
    assert slots.alloc_batch(2).tolist() == [0, 1]
    assert (slots.version(0), slots.version(1)) == (3, 1)


def test_occupy_claims_one_slot() -> None:
    slots = SlotAllocator(5)
    slots.occupy(1)
    with pytest.raises(SlotTaken):
        slots.occupy(1)
    assert slots.alloc_batch(3).tolist() == [0, 2, 3]
    assert [slots.is_free(slot) for slot in range(5)] == [False] * 4 + [True]


def test_clear_frees_all_and_keeps_the_peak() -> None:
    slots = SlotAllocator(100)
    slots.alloc_batch(77)
    slots.clear()
    assert (slots.free_count, slots.peak_used, slots.alloc()) == (100, 77, 0)
    slots.check()


@pytest.mark.parametrize("kind", [int, np.int8, np.uint64])
def test_slots_of_any_integer_type(kind: type) -> None:
    slots = SlotAllocator(4)
    slots.occupy(kind(1))
    assert not slots.is_free(kind(1))
    assert slots.is_current(kind(1), kind(1))
    slots.free(kind(1))
    slots.occupy(2)
    slots.free_batch(range(2, 3))
    assert slots.free_count == 4


def test_what_it_looks_like() -> None:
    slots = SlotAllocator(5)
    slots.alloc()
    assert repr(slots) == "SlotAllocator(max_slots=5): 1 used, 4 free"


@pytest.mark.parametrize("size", [1, 5, 130, 4200])
def test_histories(size: int) -> None:
    random, pair = Random(size), SlotPair(size)
    steps = [*SLOT_STEPS.values(), *SLOT_BACKGROUND, *SLOT_BACKGROUND]
    for _ in range(30 if JIT_DISABLED else 200):
        random.choice(steps)(pair, random)


def test_threads_never_share_a_slot() -> None:
    slots = SlotAllocator(300)
    owners = np.zeros(300, np.int64)
    failures: list[str] = []

    def work(seed: int) -> None:
        random, mine = Random(seed), list[int]()
        for _ in range(2000):
            if random.random() < 0.55 and (slot := slots.alloc()) >= 0:
                owners[slot] += 1
                if owners[slot] != 1:
                    failures.append(f"slot {slot} went out twice")
                mine.append(slot)
            elif mine:
                slot = mine.pop(random.randrange(len(mine)))
                owners[slot] -= 1
                slots.free(slot)
        for slot in mine:
            owners[slot] -= 1
        slots.free_batch(mine)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert slots.free_count == 300
    slots.check()


def set_header(slot: int, value: int) -> Callable[[SlotArrays], None]:
    def spoil(arrays: SlotArrays) -> None:
        arrays.header[slot] = value

    return spoil


def flip(name: str, word: int, bit: int) -> Callable[[SlotArrays], None]:
    def spoil(arrays: SlotArrays) -> None:
        getattr(arrays, name)[word] ^= np.uint64(1 << bit)

    return spoil


def set_version(slot: int, version: int) -> Callable[[SlotArrays], None]:
    def spoil(arrays: SlotArrays) -> None:
        arrays.versions[slot] = version

    return spoil


# 70 words of 64 slots but for the last, which has 50; slots 0 .. 4159 but 7 are taken.
CORRUPTIONS = {
    "another size": (set_header(NUM_SLOTS, 4465), "header"),
    "a lost free slot": (set_header(FREE_SLOTS, 306), "free"),
    "a taken slot marked free": (flip("free", 3, 5), "summary"),
    "a free slot marked taken": (flip("free", 66, 5), "free"),
    "a slot past the end": (flip("free", 69, 63), "free"),
    "a word the summary has lost": (flip("summary", 1, 2), "summary"),
    "a full word in the summary": (flip("summary", 0, 1), "summary"),
    "a word past the end": (flip("summary", 1, 63), "summary"),
    "a hint too high": (set_header(LOWEST, 1), "header"),
    "a hint below": (set_header(LOWEST, -1), "header"),
    "a hint past the end": (set_header(LOWEST, 3), "header"),
    "a peak too low": (set_header(PEAK_SLOTS, 4000), "header"),
    "a peak too high": (set_header(PEAK_SLOTS, 5000), "header"),
    "a header slot in use": (set_header(9, 1), "header"),
    "a taken slot without a version": (set_version(5, 0), "slot 5"),
    "a negative version": (set_version(4400, -1), "slot 4400"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_check_finds(name: str) -> None:
    slots = SlotAllocator(4466)
    slots.alloc_batch(4160)
    slots.free(7)
    slots.check()
    spoil, named = CORRUPTIONS[name]
    spoil(slots.arrays)
    with pytest.raises(CorruptState, match=named):
        slots.check()


def test_errors_leave_the_lock_free() -> None:
    slots = SlotAllocator(2)
    slots.occupy(0)
    for call in (lambda: slots.occupy(0), lambda: slots.free(1), lambda: slots.free_batch([1])):
        with pytest.raises((SlotTaken, SlotFree)):
            call()
    with pytest.raises(OutOfSlots):
        slots.alloc_batch(2)
    assert slots.alloc() == 1
    assert slots.alloc() == -1
    slots.free(1)
