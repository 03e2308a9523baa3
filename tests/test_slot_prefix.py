"""A prefix cache as a whole: histories beside the model, threads, and what `check` finds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random

import pytest

from jitalloc import SlotAllocator, SlotEntry, SlotPrefixCache
from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import CorruptState, EntryPinned
from jitalloc.slots.prefix_state import (
    CAPACITY,
    CLOCK,
    ENTRIES,
    ENTRIES_USED,
    ENTRY_CLOCK,
    ENTRY_FOLLOWING,
    ENTRY_LENGTH,
    ENTRY_NODE,
    ENTRY_PINS,
    ENTRY_PREVIOUS,
    ENTRY_SLOT,
    ENTRY_VERSION,
    FREE_ENTRY,
    FREE_NODE,
    GONE,
    HITS,
    INSERTIONS,
    LATEST,
    MAX_TOKENS,
    NODE_CHILD,
    NODE_DEPTH,
    NODE_ENTRY,
    NODE_FOLLOWING,
    NODE_NEWEST,
    NODE_PARENT,
    NODE_PREVIOUS,
    NODE_TOKEN,
    NODES,
    NODES_USED,
    OLDEST,
    PINNED_ENTRIES,
    SLOT_EVICTIONS,
    TABLE_BITS,
    TOKENS_FOUND,
    SlotPrefixArrays,
)
from tests.slot_pairs import SlotPrefixPair
from tests.slot_steps import PREFIX_BACKGROUND, PREFIX_STEPS


@pytest.mark.parametrize(
    ("capacity", "max_tokens"), [(1, 3), (2, 6), (4, 4), (9, 7), (9, 200), (60, 9)]
)
def test_histories(capacity: int, max_tokens: int) -> None:
    random, pair = Random(f"{capacity} {max_tokens}"), SlotPrefixPair(capacity, max_tokens)
    steps = [*PREFIX_STEPS.values(), *PREFIX_BACKGROUND, *PREFIX_BACKGROUND, *PREFIX_BACKGROUND]
    for _ in range(60 if JIT_DISABLED else 1500):
        random.choice(steps)(pair, random)


def test_the_same_calls_give_the_same_arrays() -> None:
    slabs = []
    for _ in range(2):
        random, pair = Random(5), SlotPrefixPair(6, 6)
        for _ in range(100):
            random.choice(PREFIX_BACKGROUND)(pair, random)
        slabs.append(pair.library.arrays.slab.tolist())
    assert slabs[0] == slabs[1]


def test_threads_share_a_cache_and_its_slots() -> None:
    slots, cache = SlotAllocator(40), SlotPrefixCache(24, 12)
    failures: list[BaseException] = []

    def serve(seed: int) -> None:
        random = Random(seed)
        for _ in range(100 if JIT_DISABLED else 800):
            tokens = [random.randrange(2) for _ in range(random.randrange(1, 13))]
            match = cache.find(tokens, pin=True)
            if match is not None:
                assert slots.is_current(match.slot, match.version)  # pinned: it cannot go
                cache.release(match)
            slot = slots.alloc()
            assert slot >= 0
            try:
                gone = cache.insert([*tokens[:11], 2 + seed], slot, slots.version(slot))
            except EntryPinned:  # the same tokens, which another thread looks at
                slots.free(slot)
                continue
            if gone is not None:
                slots.free(gone.slot)

    def run(seed: int) -> None:
        try:
            serve(seed)
        except BaseException as error:
            failures.append(error)

    workers = 1 if JIT_DISABLED else 4  # the lock of plain Python is no lock
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    cache.check()
    slots.check()
    assert slots.num_slots - slots.free_count == len(cache)
    slots.free_batch(cache.clear())
    assert slots.free_count == 40


# Corruptions.
#
# Entry e backs slot 10 + e; 0: 1 2 3 4, 1: 1 2 5 6, 2: 1 2 5 7 8, 3: 9 9, 4: given back, 5: 1 2.
# Entry 2 is pinned. Under the root hang the nodes of 1 2 (entry 5) and 9 9; under 1 2 those of
# 3 4 and of 5, and under that one those of 6 and of 7 8.
def corruptible() -> SlotPrefixCache:
    cache = SlotPrefixCache(8, 8)
    rows = ([1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 5, 7, 8], [9, 9], [3, 3], [1, 2])
    for entry, tokens in enumerate(rows):
        cache.insert(tokens, 10 + entry, entry)
    cache.find([9])
    cache.pin(SlotEntry(5, 12, 2))
    cache.remove(SlotEntry(2, 14, 4))
    return cache


def node_of(arrays: SlotPrefixArrays, entry: int) -> int:
    return int(arrays.entries[entry, ENTRY_NODE])


def fork(arrays: SlotPrefixArrays) -> int:
    """The node of 1 2 5, which has no entry."""
    return int(arrays.nodes[node_of(arrays, 1), NODE_PARENT])


Spoil = Callable[[SlotPrefixArrays], None]


def header(slot: int, value: int) -> Spoil:
    def spoil(arrays: SlotPrefixArrays) -> None:
        arrays.header[slot] = value

    return spoil


def entry(which: int, column: int, value: int) -> Spoil:
    def spoil(arrays: SlotPrefixArrays) -> None:
        assert arrays.entries[which, column] != value
        arrays.entries[which, column] = value

    return spoil


def node(of_entry: int | None, column: int, value: int) -> Spoil:
    def spoil(arrays: SlotPrefixArrays) -> None:
        which = fork(arrays) if of_entry is None else node_of(arrays, of_entry)
        assert arrays.nodes[which, column] != value
        arrays.nodes[which, column] = value

    return spoil


def token(of_entry: int, place: int) -> Spoil:
    def spoil(arrays: SlotPrefixArrays) -> None:
        arrays.tokens[of_entry, place] += 1

    return spoil


def bucket(column: int, value: int) -> Spoil:
    def spoil(arrays: SlotPrefixArrays) -> None:
        arrays.table[int(arrays.table[:, 0].argmax()), column] = value  # a slot: the largest keys

    return spoil


def swap_siblings(arrays: SlotPrefixArrays) -> None:
    first = int(arrays.nodes[fork(arrays), NODE_CHILD])
    second = int(arrays.nodes[first, NODE_FOLLOWING])
    arrays.nodes[fork(arrays), NODE_CHILD] = second
    arrays.nodes[second, [NODE_FOLLOWING, NODE_PREVIOUS]] = first, -1
    arrays.nodes[first, [NODE_FOLLOWING, NODE_PREVIOUS]] = -1, second


def lose_a_key(arrays: SlotPrefixArrays) -> None:
    arrays.table[int(arrays.table[:, 0].argmax())] = 0


def swap_values(arrays: SlotPrefixArrays) -> None:
    one, two = arrays.table[:, 0].argsort()[-2:]
    arrays.table[[one, two], 1] = arrays.table[[two, one], 1]


def leave_an_only_child(arrays: SlotPrefixArrays) -> None:
    arrays.nodes[int(arrays.nodes[fork(arrays), NODE_CHILD]), NODE_FOLLOWING] = -1


CORRUPTIONS: dict[str, tuple[Spoil, str]] = {
    "another capacity": (header(CAPACITY, 7), "header"),
    "other rows": (header(MAX_TOKENS, 9), "header"),
    "another table": (header(TABLE_BITS, 4), "header"),
    "one entry more": (header(ENTRIES, 6), r"entry|header\[3\]"),
    "one entry less": (header(ENTRIES, 4), "entr"),
    "too many entries": (header(ENTRIES, 9), r"header\[3\]"),
    "a pin that nobody has": (header(PINNED_ENTRIES, 2), r"header\[4\]"),
    "pins below zero": (header(PINNED_ENTRIES, -1), r"header\[4\]"),
    "used beyond capacity": (header(ENTRIES_USED, 9), r"header\[8\]"),
    "nodes beyond capacity": (header(NODES_USED, 17), r"header\[10\]"),
    "one node more": (header(NODES, 8), "node|header"),
    "no nodes": (header(NODES, 0), r"header\[11\]"),
    "a clock turned back": (header(CLOCK, 5), "entry"),
    "a clock below zero": (header(CLOCK, -1), r"header\[12\]"),
    "more hits than lookups": (header(HITS, 2), r"header\[15\]"),
    "tokens found in no hit": (header(TOKENS_FOUND, 9), r"header\[17\]"),
    "fewer insertions than entries": (header(INSERTIONS, 4), r"header\[18\]"),
    "evictions of nothing": (header(SLOT_EVICTIONS, 2), r"header\[19\]"),
    "a header slot in use": (header(25, 1), r"header\[25\]"),
    "an entry stack that ends": (header(FREE_ENTRY, -1), "stack of free entries"),
    "an entry stack with a live one": (header(FREE_ENTRY, 1), "stack of free entries"),
    "an entry stack that goes on": (entry(4, ENTRY_FOLLOWING, 0), "stack of free entries"),
    "a node stack that ends": (header(FREE_NODE, -1), "stack of free nodes"),
    "a node stack with the root": (header(FREE_NODE, 0), "stack of free nodes"),
    "an empty entry": (entry(1, ENTRY_LENGTH, 0), "entry 1"),
    "an entry too long": (entry(1, ENTRY_LENGTH, 9), "entry 1"),
    "an entry longer than its node": (entry(1, ENTRY_LENGTH, 5), "entry 1"),
    "a slot below zero": (entry(1, ENTRY_SLOT, -1), "entry 1"),
    "a version below zero": (entry(1, ENTRY_VERSION, -1), "entry 1"),
    "pins of an entry below zero": (entry(1, ENTRY_PINS, -1), "entry 1"),
    "a use that never was": (entry(1, ENTRY_CLOCK, 0), "entry 1"),
    "a use in the future": (entry(1, ENTRY_CLOCK, 99), "entry 1"),
    "an entry on another node": (entry(1, ENTRY_NODE, 1), "entry 1"),
    "an entry nowhere": (entry(1, ENTRY_NODE, 15), "entry 1"),
    "an entry given back in use": (entry(1, ENTRY_NODE, GONE), "header"),
    "a pin in the queue": (entry(1, ENTRY_PINS, 1), "header"),
    "a pin lost": (entry(2, ENTRY_PINS, 0), "header"),
    "another slot": (entry(1, ENTRY_SLOT, 30), "table"),
    "a queue without a beginning": (header(OLDEST, -1), "queue"),
    "a queue that begins late": (header(OLDEST, 1), "queue"),
    "a queue that begins with a pin": (header(OLDEST, 2), "queue"),
    "a queue without an end": (header(LATEST, 1), "queue"),
    "a queue cut short": (entry(1, ENTRY_FOLLOWING, -1), "queue"),
    "a queue in circles": (entry(1, ENTRY_FOLLOWING, 0), "queue"),
    "a queue that leads out": (entry(1, ENTRY_FOLLOWING, 70), "queue"),
    "a queue broken backwards": (entry(1, ENTRY_PREVIOUS, -1), "queue"),
    "uses out of order": (entry(3, ENTRY_CLOCK, 1), "queue"),
    "a node without a parent": (node(None, NODE_PARENT, -1), "node"),
    "a node no deeper than its parent": (node(None, NODE_DEPTH, 2), "node"),
    "a deeper node": (node(None, NODE_DEPTH, 4), "node"),
    "a node with a stranger's entry": (node(None, NODE_ENTRY, 3), "node"),
    "a node that has lost its entry": (node(1, NODE_ENTRY, -1), "entry 1"),
    "a node with an entry outside": (node(None, NODE_ENTRY, 8), "node"),
    "a node without a newest": (node(None, NODE_NEWEST, -1), "node"),
    "a node with an older newest": (node(None, NODE_NEWEST, 1), "newest|entry used last"),
    "a newest of another branch": (node(None, NODE_NEWEST, 0), "entry used last|children"),
    "a newest too short": (node(None, NODE_NEWEST, 3), "node"),
    "a newest given back": (node(None, NODE_NEWEST, 4), "node"),
    "a child outside": (node(None, NODE_CHILD, 16), "node"),
    "a child that is the root": (node(None, NODE_CHILD, 0), "node"),
    "no children": (node(None, NODE_CHILD, -1), "node"),
    "a child of others": (node(3, NODE_CHILD, 1), "children"),
    "a sibling lost": (node(2, NODE_FOLLOWING, -1), "node"),
    "a sibling backwards": (node(1, NODE_PREVIOUS, -1), "children"),
    "siblings in circles": (node(1, NODE_FOLLOWING, 1), "children"),
    "siblings out of order": (swap_siblings, "children"),
    "a node that should be merged": (leave_an_only_child, "node"),
    "another first token": (node(1, NODE_TOKEN, 4), "tokens of entry 1"),
    "a changed token on an edge": (token(0, 1), "tokens"),
    "a changed token at the end": (token(1, 3), "tokens of entry 1"),
    "a changed token of a branch": (token(2, 3), "tokens of entry 2"),
    "a key too many": (lambda arrays: arrays.table.fill(5), "table"),
    "a key lost": (lose_a_key, "table"),
    "a key of nothing": (bucket(0, 2**40), "table"),
    "a value elsewhere": (bucket(1, 3), "table"),
    "two slots mixed up": (swap_values, "table"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_check_finds(name: str) -> None:
    cache = corruptible()
    cache.check()
    spoil, named = CORRUPTIONS[name]
    spoil(cache.arrays)
    with pytest.raises(CorruptState, match=named):
        cache.check()
