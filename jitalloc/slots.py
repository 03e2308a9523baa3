"""SlotAllocator: cache slots, one row of the cache a request, handed out by number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc.arguments import as_count, as_integers
from jitalloc.errors import (
    SLOT_IS_FREE,
    InvalidSlot,
    OutOfSlots,
    SlotFree,
    SlotTaken,
    unpack_status,
)
from jitalloc.kernels.slots import (
    slots_alloc_batch_cpu,
    slots_alloc_cpu,
    slots_clear_cpu,
    slots_free_batch_cpu,
    slots_free_cpu,
    slots_occupy_cpu,
)
from jitalloc.slab import BUSY_STATUS
from jitalloc.slot_calls import as_slot, run_patiently
from jitalloc.slot_slab import SlotSlab
from jitalloc.state import INT32


class SlotAllocator(SlotSlab):
    """Hands out the slots of a cache that keeps one row a request, the lowest free one first.

    Parameters
    ----------
    max_slots : int
        How many slots there are; their numbers are `0 .. max_slots - 1`.

    Attributes
    ----------
    num_slots : int
        The same number.
    arrays : SlotArrays
        Named views into the state, to look at.

    Raises
    ------
    InvalidArgument
        `max_slots` is no integer, or less than 1.

    Notes
    -----
    Each slot has a version, which grows by one whenever the slot is taken. Who writes down slot
    and version can ask later, by `is_current`, whether the slot is still the one that was meant.

    Calls from several threads are serialised by a lock word in the arrays. A slot is found by
    two levels of bitmap, so that a call takes as long with a million slots as with 64.

    Examples
    --------
    >>> slots = jitalloc.SlotAllocator(4)
    >>> slots.alloc(), slots.alloc()
    (0, 1)
    >>> slots.free(0)
    >>> slots.alloc(), slots.version(0)
    (0, 2)
    >>> slots
    SlotAllocator(max_slots=4): 2 used, 2 free
    """

    __slots__ = ()

    def alloc(self) -> int:
        """Take the lowest free slot.

        Returns
        -------
        int
            Its number, or -1 where none is free.
        """
        slot: int = slots_alloc_cpu.run(self._slab)
        if slot == BUSY_STATUS:
            slot = run_patiently(slots_alloc_cpu, self._slab)
        return slot if slot >= 0 else -1

    def alloc_batch(self, n: int) -> NDArray[np.int32]:
        """Take the `n` lowest free slots, or none.

        Parameters
        ----------
        n : int
            How many; 0 gives an empty array.

        Returns
        -------
        int32[n]
            Ascending.

        Raises
        ------
        OutOfSlots
            Fewer than `n` slots are free.
        InvalidArgument
            `n` is no count.
        """
        n = as_count("n", n)
        if n > self.num_slots:
            raise OutOfSlots(n, self.free_count)
        slots = np.empty(n, np.int32)
        status = run_patiently(slots_alloc_batch_cpu, self._slab, slots)
        if status < 0:
            raise OutOfSlots(n, int(unpack_status(status)[1]))
        return slots

    def free(self, slot: int) -> None:
        """Give one slot back.

        Parameters
        ----------
        slot : int

        Raises
        ------
        SlotFree
            The slot is free already.
        InvalidSlot
            There is no such slot.
        """
        if type(slot) is not int or not 0 <= slot < self.num_slots:
            slot = as_slot("slot", slot, self.num_slots)
        status: int = slots_free_cpu.run(self._slab, slot)
        if status < 0:
            if status == BUSY_STATUS:
                status = run_patiently(slots_free_cpu, self._slab, slot)
            if status < 0:
                raise SlotFree("slot", slot, "the slot is free already")

    def free_batch(self, slots: ArrayLike) -> None:
        """Give several slots back, all or nothing.

        Parameters
        ----------
        slots : array_like of int32

        Raises
        ------
        SlotFree
            A slot is free already, or is named twice.
        InvalidSlot
            There is no such slot.
        InvalidArgument
            `slots` is no flat sequence of integers.
        """
        named = as_integers("slots", slots, INT32)
        status = run_patiently(slots_free_batch_cpu, self._slab, named)
        if status < 0:
            code, position = unpack_status(status)
            slot = int(named[position])
            if code == SLOT_IS_FREE:
                raise SlotFree("slots", slot, "the slot is free, or named twice", position)
            raise InvalidSlot("slots", slot, f"slots are 0 .. {self.num_slots - 1}", position)

    def occupy(self, slot: int) -> None:
        """Take this one slot.

        Parameters
        ----------
        slot : int

        Raises
        ------
        SlotTaken
            The slot is not free.
        InvalidSlot
            There is no such slot.
        """
        slot = as_slot("slot", slot, self.num_slots)
        if run_patiently(slots_occupy_cpu, self._slab, slot) < 0:
            raise SlotTaken("slot", slot, "the slot is taken")

    def clear(self) -> None:
        """Give all slots back. Versions and `peak_used` stay as they are."""
        run_patiently(slots_clear_cpu, self._slab)
