"""Cache slots: one at a time, in batches, moved."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

import jitalloc
from asv_benchmarks.slot_baselines import ListSlots

number = 1
repeat = 25
DESIGNS: dict[str, Any] = {"jitalloc": jitalloc.SlotAllocator, "list": ListSlots}


@cache
def slots_of(max_slots: int, design: str = "jitalloc") -> Any:
    """Return the one allocator of this size that the samples of a process share."""
    return DESIGNS[design](max_slots)


class AllocFree:
    """`free(alloc())` with all checks on. Held to 0.6 us; the number of slots must not matter."""

    params = ((64, 4096, 1_000_000), tuple(DESIGNS))
    param_names = ("max_slots", "design")

    def setup(self, max_slots: int, design: str) -> None:
        self.slots = slots_of(max_slots, design)
        self.slots.free(self.slots.alloc())

    def time_alloc_free_x1000(self, max_slots: int, design: str) -> None:
        slots = self.slots
        for _ in range(1000):
            slots.free(slots.alloc())


class AllocFreeFull:
    """The first and the last slot come and go, all others are taken.

    The worst case: between the two lies the whole summary.
    """

    params = ((64, 4096, 1_000_000),)
    param_names = ("max_slots",)

    def setup(self, max_slots: int) -> None:
        self.slots = jitalloc.SlotAllocator(max_slots)
        self.slots.alloc_batch(max_slots)

    def time_two_pairs_x1000(self, max_slots: int) -> None:
        slots, last = self.slots, self.slots.num_slots - 1
        for _ in range(1000):
            slots.free(0)
            slots.free(last)
            slots.alloc()
            slots.alloc()


class Batch:
    """`alloc_batch` and `free_batch`."""

    params = ((16, 256, 4096),)
    param_names = ("slots",)

    def setup(self, count: int) -> None:
        self.slots = slots_of(1_000_000)
        self.slots.free_batch(self.slots.alloc_batch(count))

    def time_alloc_free_batch_x100(self, count: int) -> None:
        slots = self.slots
        for _ in range(100):
            slots.free_batch(slots.alloc_batch(count))


class Current:
    """`is_current`: what a holder asks before it trusts its slot."""

    def setup(self) -> None:
        self.slots = jitalloc.SlotAllocator(4096)
        self.slots.alloc()

    def time_is_current_x1000(self) -> None:
        slots = self.slots
        for _ in range(1000):
            slots.is_current(0, 1)


class Copy:
    """`copy_slot` of 1,024 tokens, 16 layers of 8 heads of 64, float16; beside it `memcpy`."""

    def setup(self) -> None:
        self.keys = np.ones((16, 4, 1024, 8, 64), np.float16)
        self.values = np.ones_like(self.keys)
        self.flat = [array[:, 0].copy() for array in (self.keys, self.values)]

    def time_copy_slot(self) -> None:
        jitalloc.copy_slot(self.keys, self.values, 0, 3, 1024)

    def time_numpy_copy(self) -> None:
        for array in self.flat:
            array.copy()
