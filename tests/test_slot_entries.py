"""Entries of a prefix cache: how they give way, pins, and that nothing is left behind."""

from __future__ import annotations

import numpy as np
import pytest

from jitalloc import SlotAllocator, SlotEntry, SlotPrefixCache
from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import AllPinned, EntryPinned, SlotTaken, UnknownEntry
from jitalloc.slots.prefix_state import ENTRIES_USED, NODES, NODES_USED
from tests.slot_pairs import SlotPrefixPair, slot_prefix_facts


def filled(capacity: int = 3) -> SlotPrefixPair:
    """Entries 1 2 s in slots s = 0, 1 ..., in version 1."""
    pair = SlotPrefixPair(capacity, 8)
    for slot in range(capacity):
        pair.result("insert", [1, 2, slot], slot, 1)
    return pair


def test_the_one_used_longest_ago_gives_way() -> None:
    pair = filled()
    pair.result("find", [1, 2, 0])
    assert pair.result("insert", [5], 7, 1) == (3, 1, 1)
    assert pair.result("insert", [6], 8, 1) == (3, 2, 1)
    assert pair.result("insert", [7], 9, 1) == (3, 0, 1)
    assert len(pair.library) == 3


def test_equal_tokens_change_hands() -> None:
    pair = filled()
    assert pair.result("insert", [1, 2, 0], 9, 4) == (3, 0, 1)
    assert pair.result("find", [1, 2, 0]) == (3, 9, 4)
    assert pair.result("insert", [1, 2, 0], 9, 5) is None  # the same slot: nothing to free
    assert pair.result("insert", [1, 2, 0], 9, 5) is None
    assert pair.result("entry", 9) == (3, 9, 5)
    assert len(pair.library) == 3
    assert pair.result("evict") == (3, 1, 1)


def test_a_slot_backs_one_entry() -> None:
    pair = filled()
    assert pair.call("insert", [7], 1, 2)[0] is SlotTaken
    assert pair.call("insert", [1, 2, 0], 1, 2)[0] is SlotTaken
    pair.result("remove", SlotEntry(3, 1, 1))
    assert pair.result("insert", [7], 1, 2) is None


def test_a_prefix_and_its_continuation_are_two_entries() -> None:
    pair = SlotPrefixPair(3, 8)
    for slot, tokens in enumerate(([1, 2, 3, 4], [1, 2], [1, 2, 3])):
        assert pair.result("insert", tokens, slot, 1) is None
    assert [pair.result("evict")[0] for _ in range(3)] == [4, 2, 3]
    assert pair.result("evict") is None


def test_pinned_entries_stay() -> None:
    pair = filled()
    match = pair.result("find", [1, 2, 0], pin=True)
    entry = SlotEntry(*match)
    pair.result("pin", entry)
    assert pair.result("evict") == (3, 1, 1)
    assert pair.result("evict") == (3, 2, 1)
    for _ in range(2):
        assert pair.result("evict") is None
        assert pair.call("remove", entry)[0] is EntryPinned
        pair.result("release", entry)
    assert pair.call("release", entry)[0] != "returned"
    assert pair.result("evict") == (3, 0, 1)
    assert pair.call("release", entry)[0] is UnknownEntry


def test_when_all_is_pinned_insert_fails_and_changes_nothing() -> None:
    pair = filled()
    for entry in pair.entries():
        pair.result("pin", entry)
    before = slot_prefix_facts(pair.library), pair.library.arrays.slab.tobytes()
    assert pair.call("insert", [5], 9, 1)[0] is AllPinned
    assert pair.call("insert", [1, 2], 9, 1)[0] is AllPinned
    assert (slot_prefix_facts(pair.library), pair.library.arrays.slab.tobytes()) == before
    pair.result("insert", [1, 2, 0], 0, 1)  # as it is: no other has to give way
    assert pair.call("insert", [1, 2, 0], 9, 1)[0] is EntryPinned
    pair.result("release", SlotEntry(3, 2, 1))
    assert pair.result("insert", [1, 2], 9, 1) == (3, 2, 1)


def test_releasing_is_a_use() -> None:
    pair = filled()
    pair.result("pin", SlotEntry(3, 0, 1))
    pair.result("find", [1, 2, 1])
    pair.result("release", SlotEntry(3, 0, 1))
    assert [pair.result("evict")[1] for _ in range(3)] == [2, 1, 0]


def test_a_pinned_entry_may_be_older_than_one_that_gives_way() -> None:
    pair = SlotPrefixPair(6, 8)
    for slot, tokens in enumerate(([1, 1], [1, 2], [2, 1], [2, 2], [3, 1], [3, 2])):
        pair.result("insert", tokens, slot, 1)
    for slot in (0, 2, 3, 4):
        pair.result("pin", SlotEntry(2, slot, 1))
    assert pair.result("evict") == (2, 1, 1)  # its branch is now the oldest
    assert pair.result("find", [1, 9]) == (1, 0, 1)
    assert pair.result("evict") == (2, 5, 1)
    assert pair.result("find", [3]) == (1, 4, 1)


def test_a_branch_that_loses_its_newest_falls_behind() -> None:
    pair = SlotPrefixPair(5, 8)
    for slot, tokens in enumerate(([0, 1, 1], [0, 1, 2], [0, 2, 1], [0, 3, 1], [0, 4])):
        pair.result("insert", tokens, slot, 1)
    pair.result("find", [0, 1, 2])
    pair.result("remove", SlotEntry(3, 1, 1))  # 0 1 1, the oldest of all, is left there
    assert pair.result("find", [0, 9]) == (1, 4, 1)
    pair.result("pin", SlotEntry(3, 0, 1))
    assert [pair.result("evict")[1] for _ in range(3)] == [2, 3, 4]
    assert pair.result("find", [0, 9]) == (1, 0, 1)


def test_a_stale_version_is_no_entry() -> None:
    slots, cache = SlotAllocator(2), SlotPrefixCache(2)
    slot = slots.alloc()
    cache.insert([1, 2], slot, slots.version(slot))
    stale = cache.find([1, 2])
    assert stale is not None
    slots.free(cache.remove(stale).slot)
    slot = slots.alloc()
    cache.insert([3, 4], slot, slots.version(slot))
    assert not slots.is_current(stale.slot, stale.version)
    for call in (cache.pin, cache.release, cache.remove):
        with pytest.raises(UnknownEntry):
            call(stale)


def test_a_cache_of_one_entry() -> None:
    pair = SlotPrefixPair(1, 4)
    assert pair.result("insert", [1, 2], 0, 1) is None
    assert pair.result("insert", [1, 2, 3], 1, 1) == (2, 0, 1)
    assert pair.result("insert", [1, 2], 0, 2) == (3, 1, 1)
    assert pair.result("find", [1, 2, 3]) == (2, 0, 2)


def test_nothing_is_left_behind_by_many_entries() -> None:
    capacity = 50
    cache = SlotPrefixCache(capacity, 40)
    generator = np.random.default_rng(0)
    rounds = 2_000 if JIT_DISABLED else 200_000
    tokens = generator.integers(0, 3, (500, 40)).astype(np.int32)
    lengths = generator.integers(1, 41, rounds).tolist()
    slot = 0
    for i in range(rounds):
        gone = cache.insert(tokens[i % 500, : lengths[i]], slot, i)
        slot = gone.slot if gone else slot + 1
        if cache.entry(slot):
            slot += 1
    header = cache.arrays.header
    assert len(cache) == capacity
    assert header[ENTRIES_USED] <= capacity
    assert header[NODES] <= header[NODES_USED] <= 2 * capacity
    cache.check()
    while cache.evict():
        pass
    assert (len(cache), header[NODES], np.count_nonzero(cache.arrays.table)) == (0, 1, 0)
    cache.check()
