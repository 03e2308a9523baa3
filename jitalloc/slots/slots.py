"""SlotAllocator: cache slots, one row of the cache a request, handed out by number."""

from __future__ import annotations

import operator
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.arguments import as_count, as_integers, as_out
from jitalloc.choices import Device
from jitalloc.errors import (
    SLOT_FREE,
    CorruptState,
    InvalidArgument,
    InvalidSlot,
    OutOfSlots,
    SlotFree,
    SlotTaken,
    corrupt_error,
    unpack_status,
)
from jitalloc.forking import keep_quiet, stand_still
from jitalloc.on_device import OnDevice, called
from jitalloc.slots.loops.slots import (
    slots_alloc_batch_cpu,
    slots_alloc_cpu,
    slots_check_cpu,
    slots_clear_cpu,
    slots_free_batch_cpu,
    slots_free_cpu,
    slots_look_cpu,
    slots_occupy_cpu,
)
from jitalloc.slots.state import (
    FREE_SLOTS,
    NUM_SLOTS,
    PEAK_SLOTS,
    SLOT_CORRUPT_REASONS,
    SlotArrays,
    slot_arrays,
    slot_slab_words,
)
from jitalloc.state import INT32, INT32_MAX, LOCK


def as_slot(name: str, value: Any, num_slots: int) -> int:
    """Return `value` as a slot in `0 .. num_slots - 1`."""
    try:
        slot = operator.index(value)
    except TypeError:
        raise InvalidArgument(name, value, "must be an integer") from None
    if isinstance(value, bool | np.bool_):
        raise InvalidArgument(name, value, "must be an integer, not a bool")
    if not 0 <= slot < num_slots:
        raise InvalidSlot(name, slot, f"slots are 0 .. {num_slots - 1}")
    return slot


def slots_error(status: int, slots: Any, num_slots: int) -> InvalidSlot:
    """Return the exception for a status word about an element of `slots`."""
    code, position = unpack_status(status)
    slot = int(slots[position])
    if code == SLOT_FREE:
        return SlotFree("slots", slot, "the slot is free, or named twice", position)
    return InvalidSlot("slots", slot, f"slots are 0 .. {num_slots - 1}", position)


class SlotAllocator(OnDevice):
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

    __slots__ = ("__weakref__", "_slab", "arrays", "num_slots")

    @called("SlotAllocator")
    def __new__(cls, max_slots: int, *, device: Device = "cpu") -> Self:
        """Return an allocator of the class that manages `device`."""
        return cls._on(device)

    @called("SlotAllocator")
    def __init__(self, max_slots: int, *, device: Device = "cpu") -> None:
        self._check_device(device)
        self.num_slots = as_count("max_slots", max_slots, 1)
        slab = np.zeros(slot_slab_words(self.num_slots), np.int64)
        slab[NUM_SLOTS] = self.num_slots
        slots_clear_cpu.run(slab)
        self._install(slab)
        if self.device == "cpu":
            keep_quiet(self, slab="_slab")

    def __reduce__(self) -> tuple[Any, ...]:
        with stand_still(self, "_slab") as slab:
            saved = slab.copy()
        return type(self)._revive, (self.num_slots, saved)

    @classmethod
    def _revive(cls, num_slots: int, slab: NDArray[np.int64]) -> Self:
        """Return a copy of an allocator: what `pickle` and `copy` call."""
        slots = cls(num_slots)
        slots._install(slab.copy())
        slots._slab[LOCK] = 0  # it was taken to be copied
        return slots

    def _install(self, slab: NDArray[np.int64]) -> None:
        self._slab = slab
        self.arrays: SlotArrays = slot_arrays(slab, self.num_slots)

    def _run(self, kernel: Kernel, *args: Any) -> int:
        """Run `kernel` on the slab, waiting while another thread holds its lock."""
        status: int = kernel.run(self._slab, *args)
        if status == BUSY_STATUS:
            status = wait_for_lock(self._once, kernel, *args)
        return status

    def _once(self, kernel: Kernel, *args: Any) -> int:
        status: int = kernel.run(self._slab, *args)
        return status

    def __repr__(self) -> str:
        free = self.free_count
        return (
            f"{type(self).__name__}(max_slots={self.num_slots}): "
            f"{self.num_slots - free} used, {free} free"
        )

    @property
    def free_count(self) -> int:
        """Slots that are free."""
        return int(self._slab[FREE_SLOTS])

    @property
    def peak_used(self) -> int:
        """The most slots that were taken at once."""
        return int(self._slab[PEAK_SLOTS])

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

    def _look(self, slot: int) -> int:
        if type(slot) is not int or not 0 <= slot < self.num_slots:
            slot = as_slot("slot", slot, self.num_slots)
        return self._run(slots_look_cpu, slot)

    def is_free(self, slot: int) -> bool:
        """Return whether the slot is free.

        Parameters
        ----------
        slot : int

        Returns
        -------
        bool

        Raises
        ------
        InvalidSlot
            There is no such slot.
        """
        return not self._look(slot) & 1

    def version(self, slot: int) -> int:
        """Return how often the slot was taken so far.

        Parameters
        ----------
        slot : int

        Returns
        -------
        int
            0 for a slot that was never taken.

        Raises
        ------
        InvalidSlot
            There is no such slot.
        """
        return self._look(slot) >> 1

    def is_current(self, slot: int, version: int) -> bool:
        """Return whether the slot is taken, and has been since it had this version.

        Parameters
        ----------
        slot : int
        version : int
            What `version(slot)` said when the slot was taken.

        Returns
        -------
        bool

        Raises
        ------
        InvalidSlot
            There is no such slot.
        InvalidArgument
            `version` is no version.
        """
        version = as_count("version", version, 0, INT32_MAX << 31)
        return self._look(slot) == version << 1 | 1

    def check(self) -> None:
        """Verify every invariant slot by slot, in O(num_slots).

        Raises
        ------
        CorruptState
            An invariant of `jitalloc.slots.state` is broken; the message names it.
        """
        if self._slab[NUM_SLOTS] != self.num_slots:
            raise CorruptState(
                f"slot header[{NUM_SLOTS}] is {self._slab[NUM_SLOTS]}, there are {self.num_slots}"
            )
        status = self._run(slots_check_cpu)
        if status < 0:
            raise corrupt_error(status, SLOT_CORRUPT_REASONS)
