"""SlotAllocator: cache slots, one row of the cache a request, handed out by number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS
from jitalloc.arguments import as_count, as_integers, as_out
from jitalloc.errors import OutOfSlots, SlotFree, SlotTaken, unpack_status
from jitalloc.kernels.slots import (
    slots_alloc_batch_cpu,
    slots_alloc_cpu,
    slots_clear_cpu,
    slots_free_batch_cpu,
    slots_free_cpu,
    slots_occupy_cpu,
)
from jitalloc.slot_calls import as_slot, slots_error
from jitalloc.slot_slab import SlotSlab
from jitalloc.state import INT32


class SlotAllocator(SlotSlab):
    """Hands out the slots of a cache that keeps one row a request, the lowest free one first.

    Parameters
    ----------
    max_slots : int
        How many slots there are; their numbers are `0 .. max_slots - 1`.
    device : {"cpu", "cuda"}
        Where the arrays live. `cuda` needs the packages of `jitalloc[cuda12]` or
        `jitalloc[cuda13]`; batches are then arrays of CuPy, one kernel launch each on the current
        stream, and their errors come late. Calls that return or take a single slot wait for the
        GPU (`help(jitalloc.cuda.CudaSlotAllocator)`).

    Attributes
    ----------
    num_slots : int
        `max_slots`.
    device
        As above.
    arrays : SlotArrays
        Named views into the state, to look at.

    Raises
    ------
    InvalidArgument
        `max_slots` is no integer, or less than 1.
    WrongDevice
        `device` is unknown, or cannot be used here.

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
            slot = self._run(slots_alloc_cpu)
        return slot if slot >= 0 else -1

    def alloc_batch(self, n: int, *, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Take the `n` lowest free slots, or none.

        Parameters
        ----------
        n : int
            How many; 0 gives an empty array.
        out : int32[n], optional
            Buffer for the result.

        Returns
        -------
        int32[n]
            Ascending.

        Raises
        ------
        OutOfSlots
            Fewer than `n` slots are free.
        InvalidArgument
            `n` is no count, or `out` does not fit.
        """
        n = as_count("n", n)
        if n > self.num_slots:
            raise OutOfSlots(n, self.free_count)
        slots = np.empty(n, np.int32) if out is None else as_out(out, INT32, n)
        status = self._run(slots_alloc_batch_cpu, slots)
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
                status = self._run(slots_free_cpu, slot)
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
        status = self._run(slots_free_batch_cpu, named)
        if status < 0:
            raise slots_error(status, named, self.num_slots)

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
        if self._run(slots_occupy_cpu, slot) < 0:
            raise SlotTaken("slot", slot, "the slot is taken")

    def clear(self) -> None:
        """Give all slots back. Versions and `peak_used` stay as they are."""
        self._run(slots_clear_cpu)
