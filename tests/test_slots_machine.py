"""Random calls, right and wrong ones, on an allocator and a prefix cache on its slots.

A request takes a slot, looks for a prefix, works, and leaves its slot to the cache or frees it,
beside the models; now and then somebody frees or takes a slot out of turn.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jitalloc import SlotEntry
from tests.slot_pairs import SlotPair, SlotPrefixPair

tokens = st.lists(st.integers(0, 2), max_size=7)
slot = st.integers(-1, 8)


class SlotMachine(RuleBasedStateMachine):
    """One allocator and one cache, which know nothing of each other."""

    slots: SlotPair
    cache: SlotPrefixPair

    @initialize(
        max_slots=st.sampled_from((1, 3, 8, 70)),
        capacity=st.integers(1, 5),
        max_tokens=st.integers(1, 6),
    )
    def make(self, max_slots: int, capacity: int, max_tokens: int) -> None:
        self.slots, self.cache = SlotPair(max_slots), SlotPrefixPair(capacity, max_tokens)

    # The allocator alone.

    @rule(slot=slot, name=st.sampled_from(("free", "occupy", "is_free", "version")))
    def one_slot(self, slot: int, name: str) -> None:
        self.slots.call(name, slot)

    @rule(n=st.integers(-1, 9))
    def alloc_batch(self, n: int) -> None:
        self.slots.call("alloc_batch", n)

    @rule(slots=st.lists(slot, max_size=4))
    def free_batch(self, slots: list[int]) -> None:
        self.slots.call("free_batch", slots)

    @rule(slot=slot, version=st.integers(0, 4))
    def is_current(self, slot: int, version: int) -> None:
        self.slots.call("is_current", slot, version)

    # The cache.

    @rule(tokens=tokens, pin=st.booleans())
    def find(self, tokens: list[int], pin: bool) -> None:
        self.cache.call("find", tokens, pin=pin)

    @rule(tokens=tokens, slot=st.integers(0, 8), version=st.integers(0, 2))
    def insert(self, tokens: list[int], slot: int, version: int) -> None:
        self.cache.call("insert", tokens, slot, version)

    @rule(name=st.sampled_from(("pin", "release", "remove")), data=st.data())
    def one_entry(self, name: str, data: st.DataObject) -> None:
        others = [SlotEntry(1, slot, 1) for slot in range(2)]
        entry = data.draw(st.sampled_from([*self.cache.entries(), *others]))
        self.cache.call(name, entry)

    @rule(slot=slot)
    def entry(self, slot: int) -> None:
        self.cache.call("entry", slot)

    @rule()
    def evict(self) -> None:
        self.cache.call("evict")

    @rule()
    def clear(self) -> None:
        self.cache.call("clear")

    # A request.

    @rule(tokens=tokens.filter(bool), more=tokens)
    def serve(self, tokens: list[int], more: list[int]) -> None:
        slot = self.slots.result("alloc")
        if slot < 0:
            got = self.cache.call("evict")[1]
            if got is not None:
                self.slots.call("free", got[1])
            return
        self.cache.call("find", tokens)
        version = self.slots.model.version(slot)
        got = self.cache.call("insert", [*tokens, *more], slot, version)
        if got[0] != "returned":
            self.slots.result("free", slot)
        elif got[1] is not None:
            self.slots.call("free", got[1][1])

    @invariant()
    def both_sides_agree(self) -> None:
        if hasattr(self, "slots"):
            self.slots.agree()
            self.cache.agree()


TestSlotMachine = SlotMachine.TestCase
