"""Under a prefix cache: the table of keys, entries by slot, sizes, figures, clearing."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from numba import njit

from jitalloc import SlotEntry, SlotPrefixCache
from jitalloc.slots.loops import slot_table
from jitalloc.slots.prefix_state import slot_prefix_slab_words, table_bits
from tests.slot_pairs import SlotPrefixPair

# Helpers can be called from kernels only; compiled for themselves they can from here.
table_erase, table_get, table_home, table_key, table_put = (
    njit(getattr(each, "py_func", each))
    for each in (
        slot_table.table_erase,
        slot_table.table_get,
        slot_table.table_home,
        slot_table.table_key,
        slot_table.table_put,
    )
)


def test_the_table_is_a_dict() -> None:
    random, table = Random(0), np.zeros((64, 2), np.int64)
    model: dict[int, int] = {}
    keys = [table_key(random.randrange(2**31 - 2), random.randrange(-9, 9)) for _ in range(90)]
    for _ in range(3000):
        key = int(random.choice(keys))
        if key in model and random.random() < 0.5:
            del model[key]
            table_erase(table, key)
        elif len(model) < 60:
            model[key] = random.randrange(100)
            table_put(table, key, model[key])
        assert table_get(table, key) == model.get(key, -1)
        assert np.count_nonzero(table[:, 0]) == len(model)
    assert all(table_get(table, int(key)) == model.get(int(key), -1) for key in keys)


def test_keys_tell_nodes_and_tokens_apart() -> None:
    tokens = (0, 1, -1, 2**31 - 1, -(2**31))
    keys = {int(table_key(node, token)) for node in (0, 1, 2**30) for token in tokens}
    assert len(keys) == 15
    assert all(0 < key < 2**63 for key in keys)


@pytest.mark.parametrize("step", [1, 64, 4096, 50_000])
def test_tokens_in_steps_spread_over_the_table(step: int) -> None:
    table = np.zeros((4096, 2), np.int64)
    keys = [table_key(0, token * step) for token in range(1024)]
    assert len({int(table_home(table, key)) for key in keys}) > 700  # at random: 906


@pytest.mark.parametrize("capacity", [1, 2, 3, 1000, 2**20])
def test_the_table_is_never_full(capacity: int) -> None:
    keys = 2 * capacity - 1 + capacity
    assert keys < 0.76 * 2 ** table_bits(capacity)


def test_rows_take_no_memory_before_they_are_written() -> None:
    cache = SlotPrefixCache(64, 2**20)  # 256 MiB of rows
    assert cache.arrays.slab.size == slot_prefix_slab_words(64, 2**20)
    assert cache.arrays.tokens.shape == (64, 2**20)
    cache.insert([1, 2, 3], 0, 1)
    assert cache.find([1, 2, 4]) == (2, 0, 1)


def test_an_odd_number_of_odd_rows() -> None:
    pair = SlotPrefixPair(3, 5)
    for slot in range(3):
        pair.result("insert", [slot] * 5, slot, 1)
    assert pair.result("find", [2] * 5) == (5, 2, 1)


def test_the_entry_of_a_slot() -> None:
    cache = SlotPrefixCache(4)
    cache.insert([5, 6], 9, 3)
    assert cache.entry(9) == SlotEntry(2, 9, 3)
    assert cache.entry(np.int64(9)) == SlotEntry(2, 9, 3)
    assert cache.entry(8) is None
    cache.evict()
    assert cache.entry(9) is None


def test_looking_at_an_entry_is_no_use_of_it() -> None:
    cache = SlotPrefixCache(2)
    cache.insert([1], 1, 1)
    cache.insert([2], 2, 1)
    cache.entry(1)
    assert cache.evict() == (1, 1, 1)


def test_figures() -> None:
    cache = SlotPrefixCache(2, 16)
    cache.insert([1, 2, 3], 0, 1)
    cache.insert([4], 1, 1)
    cache.insert([1, 5], 2, 1)
    cache.find([1, 2, 3], pin=True)
    cache.find([4, 4])
    stats = cache.stats()
    assert (stats.capacity, stats.max_tokens, stats.entries, stats.pinned) == (2, 16, 2, 1)
    assert (stats.lookups, stats.hits) == (2, 2)
    assert (stats.tokens_looked_up, stats.tokens_found) == (5, 2)
    assert (stats.insertions, stats.evictions) == (3, 1)
    assert repr(cache) == "SlotPrefixCache(capacity=2, max_tokens=16): 2 entries, 1 pinned"
    assert SlotPrefixCache(1)


def test_clear_tells_the_slots_by_age_and_counts_on() -> None:
    cache = SlotPrefixCache(4)
    for slot in (3, 1, 2):
        cache.insert([slot, slot], slot, 1)
    cache.find([3])
    slots = cache.clear()
    assert (slots.tolist(), slots.dtype) == ([1, 2, 3], np.int32)
    assert (len(cache), cache.find([3]), cache.stats().insertions) == (0, None, 3)
    cache.check()
    assert cache.clear().size == 0
    cache.insert([3, 3], 3, 2)
    assert cache.find([3, 3]) == (2, 3, 2)
