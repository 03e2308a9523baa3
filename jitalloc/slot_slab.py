"""The arrays of a slot allocator, and what can be asked of its slots."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.arguments import as_count
from jitalloc.errors import CorruptState, WrongDevice, corrupt_error
from jitalloc.kernels.slots import slots_check_cpu, slots_clear_cpu, slots_look_cpu
from jitalloc.on_device import OnDevice
from jitalloc.slot_calls import as_slot
from jitalloc.slot_state import (
    FREE_SLOTS,
    NUM_SLOTS,
    PEAK_SLOTS,
    SLOT_CORRUPT_REASONS,
    SlotArrays,
    slot_arrays,
    slot_slab_words,
)
from jitalloc.state import INT32_MAX


class SlotSlab(OnDevice):
    """The part of `SlotAllocator` that owns the arrays and looks at them."""

    __slots__ = ("_slab", "arrays", "num_slots")

    def __new__(cls, max_slots: int, *, device: str = "cpu") -> Self:
        """Return an allocator of the class that manages `device`."""
        return cls._on(device)

    def __init__(self, max_slots: int, *, device: str = "cpu") -> None:
        if not isinstance(device, str) or device != self.device:
            expected = f"this allocator can live on {self.device!r} only"
            raise WrongDevice("device", device, expected)
        self.num_slots = as_count("max_slots", max_slots, 1)
        slab = np.zeros(slot_slab_words(self.num_slots), np.int64)
        slab[NUM_SLOTS] = self.num_slots
        slots_clear_cpu.run(slab)
        self._install(slab)

    def _install(self, slab: NDArray[np.int64]) -> None:
        self._slab = slab
        self.arrays: SlotArrays = slot_arrays(slab, self.num_slots)

    def _run(self, kernel: Kernel, *args: Any) -> int:
        """Run `kernel` on the slab, waiting while another thread holds its lock."""
        status: int = kernel.run(self._slab, *args)
        if status == BUSY_STATUS:
            status = wait_for_lock(lambda: kernel.run(self._slab, *args))
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
            An invariant of `jitalloc.slot_state` is broken; the message names it.
        """
        if self._slab[NUM_SLOTS] != self.num_slots:
            raise CorruptState(
                f"slot header[{NUM_SLOTS}] is {self._slab[NUM_SLOTS]}, there are {self.num_slots}"
            )
        status = self._run(slots_check_cpu)
        if status < 0:
            raise corrupt_error(status, SLOT_CORRUPT_REASONS)
