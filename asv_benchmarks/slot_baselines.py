"""What people write in an afternoon: slots in a list, prefixes in a dict of tuples. No checks."""

from __future__ import annotations

from collections import OrderedDict

Tokens = tuple[int, ...]


class ListSlots:
    """Free slots in a list, the last freed first; a double free goes by unnoticed."""

    def __init__(self, max_slots: int) -> None:
        self.free_slots = list(range(max_slots - 1, -1, -1))

    def alloc(self) -> int:
        return self.free_slots.pop() if self.free_slots else -1

    def free(self, slot: int) -> None:
        self.free_slots.append(slot)


class DictPrefixes:
    """Whole prompts as keys, the one used longest ago first.

    A dict knows equal prompts only: for any other length it looks at every entry.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots: OrderedDict[Tokens, int] = OrderedDict()

    def find(self, tokens: Tokens) -> tuple[int, int] | None:
        if tokens in self.slots:
            self.slots.move_to_end(tokens)
            return len(tokens), self.slots[tokens]
        best, length = None, 0
        for entry in self.slots:
            shared = 0
            for mine, other in zip(entry, tokens, strict=False):
                if mine != other:
                    break
                shared += 1
            if shared > length:
                best, length = entry, shared
        if best is None:
            return None
        self.slots.move_to_end(best)
        return length, self.slots[best]

    def insert(self, tokens: Tokens, slot: int, _version: int) -> int | None:
        gone = None
        if len(self.slots) == self.capacity and tokens not in self.slots:
            gone = self.slots.popitem(last=False)[1]
        self.slots[tokens] = slot
        return gone
