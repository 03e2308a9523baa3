"""What all calls on cache slots share: waiting for the lock, and which slots there are."""

from __future__ import annotations

import operator
import time
from typing import Any

import numpy as np

from jitalloc._jit import Kernel
from jitalloc.errors import (
    SLOT_IS_FREE,
    InvalidArgument,
    InvalidSlot,
    SlotFree,
    unpack_status,
)
from jitalloc.slab import BUSY_STATUS


def run_patiently(kernel: Kernel, *args: Any) -> int:
    """Run `kernel`, waiting while another thread holds the lock of its slab."""
    status: int = kernel.run(*args)
    pause = 1e-6
    while status == BUSY_STATUS:
        time.sleep(pause)
        pause = min(2 * pause, 1e-3)
        status = kernel.run(*args)
    return status


def slots_error(status: int, slots: Any, num_slots: int) -> InvalidSlot:
    """Return the exception for a status word about an element of `slots`."""
    code, position = unpack_status(status)
    slot = int(slots[position])
    if code == SLOT_IS_FREE:
        return SlotFree("slots", slot, "the slot is free, or named twice", position)
    return InvalidSlot("slots", slot, f"slots are 0 .. {num_slots - 1}", position)


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
