"""All of it at once: two caches of sequences on one prefix cache, what its user holds, and slots.

Each sequence has a slot of its own, which it leaves to a prefix cache of slots when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random
from typing import Any

import pytest

from jitalloc import PagedKVCache
from jitalloc.errors import InvalidArgument, NotLocked
from tests import sharing_pairs as turns
from tests import slot_pairs
from tests.oracle_sharing import SharingCache
from tests.prefix_pairs import Both, facts
from tests.sharing_pairs import SharingPair, prompt

Step = Callable[["WholePair", Random], Any]


class WholePair(SharingPair):
    """A pool, a prefix cache, two caches on both, and slots beside them, each with its model."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.matches: list[Both] = []  # what the user has not given back, pins among them
        rows, width = 4, self.cache_model.max_pages
        other = PagedKVCache(self.pool, rows, width, prefix_cache=self.prefix)
        model = SharingCache(self.model, self.prefix_model, rows, width)
        self.sides.append((other, model))
        self.slots = slot_pairs.SlotPair(8)
        self.slot_prefixes = slot_pairs.SlotPrefixPair(3, 24)
        self.slot_of: dict[tuple[int, Hashable], tuple[int, list[int]]] = {}

    def agree(self) -> None:
        super().agree()
        for cache, model in self.sides:
            if cache is not self.cache:
                self.agree_on_sequences(cache, model)
        paths = [at.path for _, model in self.sides for at in model.rows.values()]
        paths += [match.path for _, match in self.matches]
        locks = [node for path in paths for node in path]
        for node in self.prefix_model.nodes.values():
            assert node.locks == locks.count(node)

    def serve_slots(self) -> None:
        """A slot for each new sequence; those of the ended are cached, or free where they are not.

        What is known of a sequence is noted at each call, for it is gone with the sequence.
        """
        live = {
            (side, seq_id): list(model.rows[row].tokens)
            for side, (_, model) in enumerate(self.sides)
            for seq_id, row in model.ids.items()
        }
        for key in [key for key in self.slot_of if key not in live]:
            slot, tokens = self.slot_of.pop(key)
            given = tokens[: self.slot_prefixes.model.max_tokens]
            version = self.slots.model.version(slot)
            got = self.slot_prefixes.call("insert", given, slot, version) if given else ("none",)
            if got[0] != "returned":
                self.slots.result("free", slot)
            elif got[1] is not None:
                self.slots.result("free", got[1][1])
        for key, tokens in live.items():
            if key not in self.slot_of:
                if tokens:
                    self.slot_prefixes.call("find", tokens[:24])
                slot = self.slots.result("alloc")
                if slot < 0:
                    evicted = self.slot_prefixes.result("evict")
                    if evicted is None:
                        continue  # eight sequences run: the ninth has none
                    self.slots.result("free", evicted[1])
                    slot = self.slots.result("alloc")
                self.slot_of[key] = slot, tokens
            self.slot_of[key] = self.slot_of[key][0], tokens
        entries = [entry.slot for entry in self.slot_prefixes.entries()]
        mine = [slot for slot, _ in self.slot_of.values()]
        taken = set(range(8)) - self.slots.model.free_slots
        assert sorted(entries + mine) == sorted(taken), "a slot is lost, or somebody's twice"

    def look_up(self, name: str, tokens: list[int], namespace: Hashable) -> None:
        """`match` or `pin`, kept."""
        found: list[Any] = []

        def call(cache: Any) -> Callable[[], tuple[Any, ...]]:
            def run() -> tuple[Any, ...]:
                found.append(getattr(cache, name)(tokens, namespace))
                if len(found) == 2:
                    self.matches.append((found[1], found[0]))
                return facts(found[-1])

            return run

        self.compare(call(self.prefix), call(self.prefix_model))

    def give_back(self, place: int) -> None:
        library, model = self.matches.pop(place)
        name = "unpin" if model.pinned else "release"
        self.compare(
            lambda: getattr(self.prefix, name)(library), lambda: self.prefix_model.release(model)
        )

    def void_matches(self) -> None:
        """What a restored prefix cache does to the matches and pins of its user."""
        for library, model in self.matches:
            with pytest.raises(NotLocked):
                (self.prefix.unpin if model.pinned else self.prefix.release)(library)
            for node in model.path:
                node.locks -= 1
                node.pins -= model.pinned
        self.matches.clear()
        self.prefix_model._demote()

    def refused(self, call: Callable[[], Any]) -> None:
        """The call is no good here, and changes nothing."""
        with pytest.raises(InvalidArgument, match="snapshot"):
            call()
        self.agree()

    def drain(self) -> None:
        """End everything; nothing may be left."""
        while self.matches:
            self.give_back(0)
        for side in range(2):
            self.use(side)
            self.do("clear")
        self.call("free", self.held())
        assert self.prefix.num_locked == self.prefix.num_pinned == self.cache.num_held == 0
        self.compare(self.prefix.clear, self.prefix_model.clear)
        self.pool.check(held=[])
        assert self.pool.num_used == 0
        self.serve_slots()


def hold(pair: WholePair, random: Random) -> None:
    name = random.choice(("match", "match", "pin"))
    if len(pair.matches) < 4:
        pair.look_up(name, prompt(pair, random), random.choice((None, None, "other")))


def give_back(pair: WholePair, random: Random) -> None:
    if pair.matches:
        pair.give_back(random.randrange(len(pair.matches)))


def resize(pair: WholePair, random: Random) -> None:
    change = random.choice((-2, -1, 1, 2))
    pair.call("resize", max(4, min(pair.pool.num_pages + change, 40)))


def restore(pair: WholePair, random: Random) -> None:
    """What happens in between is forgotten; refused while another cache has sequences."""
    other = next(cache for cache, _ in pair.sides if cache is not pair.cache)
    if len(other):
        pair.refused(lambda: pair.cache.restore(pair.cache.snapshot()))
        return
    snapshot = pair.cache.snapshot()
    if random.random() < 0.5:
        pair.cache.clear()
    pair.prefix.evict(random.randrange(9))
    pair.pool.try_alloc(1)
    pair.cache.restore(snapshot)
    pair.void_matches()
    pair.agree()


def restore_prefix(pair: WholePair, random: Random) -> None:
    """Alone it is restored only where no sequence locks anything."""
    if any(at.path for _, model in pair.sides for at in model.rows.values()):
        pair.refused(lambda: pair.prefix.restore(pair.prefix.snapshot()))
        return
    pair.prefix.restore(pair.prefix.snapshot())
    pair.void_matches()
    pair.agree()


def clear(pair: WholePair, random: Random) -> None:
    if random.random() < 0.3:
        pair.do("clear")
    pair.compare(pair.prefix.clear, pair.prefix_model.clear)


def pin_sequence(pair: WholePair, random: Random) -> None:
    pair.do(random.choice(("pin", "unpin", "unpin")), turns.an_id(pair, random))


def user_pages(pair: WholePair, random: Random) -> None:
    """The user of the pool takes pages, and gives them back at some other time."""
    held = pair.held()
    if held and random.random() < 0.7:
        pair.call("free", random.sample(held, random.randrange(len(held)) + 1))
    else:
        pair.call("alloc", random.randrange(4))


WHOLE_STEPS: dict[Step, float] = {
    **{step: weight for step, weight in turns.STEPS.items() if step is not turns.look_up},
    hold: 3,
    give_back: 3,
    resize: 0.5,
    restore: 0.5,
    restore_prefix: 0.3,
    clear: 0.3,
    pin_sequence: 0.5,
    user_pages: 1,
}


def whole_turn(pair: WholePair, random: Random, step: Step | None = None) -> None:
    """One call on one of the caches, and what it means for the slots."""
    if step is None:
        (step,) = random.choices(list(WHOLE_STEPS), weights=list(WHOLE_STEPS.values()))
    pair.use(random.choice((0, 0, 1)))
    step(pair, random)
    pair.serve_slots()
