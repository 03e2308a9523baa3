"""One random call for each kernel of the slots and their prefix cache, for `test_twins.py`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from jitalloc import SlotEntry
from tests.slot_pairs import SlotPair, SlotPrefixPair
from tests.twin_steps import as_argument


def some_slot(pair: SlotPair, random: Random) -> int:
    free = sorted(pair.model.free_slots)
    taken = sorted(set(range(pair.model.num_slots)) - pair.model.free_slots)
    lists = [each for each in (free, taken, taken, [-2, pair.model.num_slots]) if each]
    return random.choice(random.choice(lists))


def alloc(pair: SlotPair, random: Random) -> None:
    pair.call("alloc")


def alloc_batch(pair: SlotPair, random: Random) -> None:
    free = pair.model.free_count
    count = random.choice((0, 1, 3, random.randrange(free + 2), free))
    got = pair.call("alloc_batch", count)
    assert got[0] != "returned" or pair.library.alloc_batch(0).dtype == np.int32


def free_one(pair: SlotPair, random: Random) -> None:
    pair.call("free", some_slot(pair, random))


def free_batch(pair: SlotPair, random: Random) -> None:
    taken = sorted(set(range(pair.model.num_slots)) - pair.model.free_slots)
    if random.random() < 0.5:
        random.shuffle(taken)
    first = random.randrange(len(taken) + 1)
    slots = taken[first : first + random.choice((1, 3, 70, 5000))]
    if random.random() < 0.3:
        slots.insert(random.randrange(len(slots) + 1), some_slot(pair, random))
    given = as_argument(slots, random, np.int32)
    pair.compare(lambda: pair.library.free_batch(given), lambda: pair.model.free_batch(slots))


def occupy(pair: SlotPair, random: Random) -> None:
    pair.call("occupy", some_slot(pair, random))


def look(pair: SlotPair, random: Random) -> None:
    slot = some_slot(pair, random)
    pair.call("is_free", slot)
    if pair.call("version", slot)[0] == "returned":
        version = pair.model.version(slot)
        for each in (version, version + 1, max(version - 1, 0)):
            pair.call("is_current", slot, each)


def clear_slots(pair: SlotPair, random: Random) -> None:
    pair.call("clear")


def check_slots(pair: SlotPair, random: Random) -> None:
    pair.agree()


SLOT_STEPS: dict[str, Callable[[SlotPair, Random], Any]] = {
    "slots_alloc_batch_cpu": alloc_batch,
    "slots_alloc_cpu": alloc,
    "slots_check_cpu": check_slots,
    "slots_clear_cpu": clear_slots,
    "slots_free_batch_cpu": free_batch,
    "slots_free_cpu": free_one,
    "slots_look_cpu": look,
    "slots_occupy_cpu": occupy,
}
SLOT_BACKGROUND = (alloc, alloc, alloc_batch, alloc_batch, free_one, free_batch, occupy)


def some_tokens(pair: SlotPrefixPair, random: Random) -> list[int]:
    """A query: an entry, cut, extended or changed somewhere, or something new."""
    known = pair.model.entries
    tokens = list(random.choice(known).tokens) if known and random.random() < 0.7 else []
    cut = random.choice((0, 0, 1, random.randrange(pair.model.max_tokens)))
    tokens = tokens[: len(tokens) - cut]
    if tokens and random.random() < 0.3:
        tokens[random.randrange(len(tokens))] += random.choice((-1, 1))
    more = random.choice((0, 0, 1, 3, random.randrange(pair.model.max_tokens + 2)))
    return tokens + [random.choice((0, 1, 1, 2, -5)) for _ in range(more)]


def some_entry(pair: SlotPrefixPair, random: Random) -> SlotEntry:
    """Mostly one that is there."""
    entries = pair.entries()
    if not entries or random.random() < 0.15:
        return SlotEntry(1, random.randrange(2 * pair.model.capacity + 2), random.randrange(3))
    return random.choice(entries)


def find(pair: SlotPrefixPair, random: Random) -> None:
    tokens = some_tokens(pair, random)
    pin = random.random() < 0.3 and sum(each.pins for each in pair.model.entries) < 4
    given = as_argument(tokens, random, np.int32)
    pair.compare(
        lambda: pair.library.find(given, pin=pin), lambda: pair.model.find(tokens, pin=pin)
    )


def insert(pair: SlotPrefixPair, random: Random) -> None:
    slot, version = random.randrange(2 * pair.model.capacity + 2), random.randrange(3)
    tokens = some_tokens(pair, random)
    given = as_argument(tokens, random, np.int32)
    pair.compare(
        lambda: pair.library.insert(given, slot, version),
        lambda: pair.model.insert(tokens, slot, version),
    )


def evict(pair: SlotPrefixPair, random: Random) -> None:
    pair.call("evict")


def remove(pair: SlotPrefixPair, random: Random) -> None:
    pair.call("remove", some_entry(pair, random))


def pin(pair: SlotPrefixPair, random: Random) -> None:
    pair.call("pin", some_entry(pair, random))


def release(pair: SlotPrefixPair, random: Random) -> None:
    pinned = [each.show() for each in pair.model.entries if each.pins]
    entry = SlotEntry(*random.choice(pinned)) if pinned else some_entry(pair, random)
    pair.call("release", random.choice((entry, entry, some_entry(pair, random))))


def release_all(pair: SlotPrefixPair, random: Random) -> None:
    for entry in pair.entries():
        for _ in range(next(e.pins for e in pair.model.entries if e.slot == entry.slot)):
            pair.call("release", entry)


def clear_prefixes(pair: SlotPrefixPair, random: Random) -> None:
    pair.call("clear")
    if random.random() < 0.5:
        release_all(pair, random)
        pair.call("clear")


def look_up(pair: SlotPrefixPair, random: Random) -> None:
    pair.call("entry", random.randrange(-1, 2 * pair.model.capacity + 2))


def check_prefixes(pair: SlotPrefixPair, random: Random) -> None:
    pair.agree()


PREFIX_STEPS: dict[str, Callable[[SlotPrefixPair, Random], Any]] = {
    "slot_entries_evict_cpu": evict,
    "slot_entries_insert_cpu": insert,
    "slot_entries_pin_cpu": pin,
    "slot_entries_release_cpu": release,
    "slot_entries_remove_cpu": remove,
    "slot_prefix_check_cpu": check_prefixes,
    "slot_table_clear_cpu": clear_prefixes,
    "slot_table_look_cpu": look_up,
    "slot_tree_find_cpu": find,
}
PREFIX_BACKGROUND = (insert, insert, insert, insert, find, find, pin, release, release, remove)
