"""What all calls on cache slots share: waiting for the lock, and which slots there are."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from jitalloc.errors import (
    SLOT_FREE,
    InvalidArgument,
    InvalidSlot,
    SlotFree,
    unpack_status,
)


def slots_error(status: int, slots: Any, num_slots: int) -> InvalidSlot:
    """Return the exception for a status word about an element of `slots`."""
    code, position = unpack_status(status)
    slot = int(slots[position])
    if code == SLOT_FREE:
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
