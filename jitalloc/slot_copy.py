"""Moving what one cache slot holds to another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.arguments import as_count
from jitalloc.errors import InvalidArgument, WrongDevice
from jitalloc.slot_calls import as_slot


def as_cache(name: str, cache: Any) -> NDArray[Any]:
    """Return `cache` if it is a writable array of at least three dimensions."""
    if hasattr(cache, "__cuda_array_interface__"):
        raise WrongDevice(name, type(cache).__name__, "slots are copied on the CPU")
    if not isinstance(cache, np.ndarray):
        raise InvalidArgument(name, type(cache).__name__, "must be a NumPy array")
    if cache.ndim < 3:
        raise InvalidArgument(name, cache.shape, "must have the axes [layers, slots, tokens, ...]")
    if not cache.flags.writeable:
        raise InvalidArgument(name, cache.shape, "must be writable")
    return cache


def copy_slot(
    keys: NDArray[Any], values: NDArray[Any], src_slot: int, dst_slot: int, length: int
) -> None:
    """Copy the first `length` tokens of one slot to another, K and V of all layers.

    Parameters
    ----------
    keys, values : array[layers, slots, tokens, ...]
        The cache, of any dtype. Behind the tokens come heads and head dimension in any order;
        there the two may differ.
    src_slot, dst_slot : int
        Where the tokens are and where they go; the same slot twice is nothing to do.
    length : int
        How many tokens, from the first on. What the slot holds behind them stays.

    Raises
    ------
    InvalidSlot
        There is no such slot.
    InvalidArgument
        An array has too few axes, differs from the other in one of the first three, or is
        read-only; or `length` is past the tokens of a slot.
    WrongDevice
        An array is not on the CPU.

    Examples
    --------
    >>> keys = np.arange(12.0).reshape(1, 3, 4)
    >>> values = -keys
    >>> jitalloc.copy_slot(keys, values, src_slot=0, dst_slot=2, length=3)
    >>> keys[0, 2]
    array([ 0.,  1.,  2., 11.])
    """
    keys, values = as_cache("keys", keys), as_cache("values", values)
    if values.shape[:3] != keys.shape[:3]:
        layers, slots, tokens = keys.shape[:3]
        raise InvalidArgument(
            "values", values.shape, f"must begin with ({layers}, {slots}, {tokens}) like keys"
        )
    src_slot = as_slot("src_slot", src_slot, keys.shape[1])
    dst_slot = as_slot("dst_slot", dst_slot, keys.shape[1])
    length = as_count("length", length, 0, keys.shape[2])
    if src_slot != dst_slot:
        keys[:, dst_slot, :length] = keys[:, src_slot, :length]
        values[:, dst_slot, :length] = values[:, src_slot, :length]
