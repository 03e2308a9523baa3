"""Moving what one cache slot holds to another."""

from __future__ import annotations

from typing import Any

import numpy as np

from jitalloc.arguments import as_count
from jitalloc.errors import InvalidArgument, WrongDevice
from jitalloc.slots.slots import as_slot

CPU = (1, 0)  # as DLPack numbers devices: their kind, and which of them
GPU_KINDS = (2, 13)  # kDLCUDA, kDLCUDAManaged


def place_of(name: str, cache: Any) -> tuple[int, int]:
    """Return the device that an array lives on; anything but an array is refused."""
    if isinstance(cache, np.ndarray):
        return CPU
    if hasattr(cache, "__dlpack_device__"):
        kind, number = cache.__dlpack_device__()
        if kind in GPU_KINDS:
            return int(kind), int(number)
    elif hasattr(cache, "__cuda_array_interface__"):
        return GPU_KINDS[0], -1  # it does not say which
    expected = "must be an array of NumPy, or one on the GPU"
    raise InvalidArgument(name, type(cache).__name__, expected)


def check_cache(name: str, cache: Any) -> None:
    """Refuse an array that has too few dimensions, or is known to be read-only."""
    if cache.ndim < 3:
        shape = tuple(cache.shape)
        raise InvalidArgument(name, shape, "must have the axes [layers, slots, tokens, ...]")
    if isinstance(cache, np.ndarray) and not cache.flags.writeable:
        raise InvalidArgument(name, cache.shape, "must be writable", fact="shape")


def copy_slot(keys: Any, values: Any, src_slot: int, dst_slot: int, length: int) -> None:
    """Copy the first `length` tokens of one slot to another, K and V of all layers.

    Parameters
    ----------
    keys, values : array[layers, slots, tokens, ...]
        The cache, of any dtype: NumPy's arrays, or arrays on one GPU that can be sliced and
        assigned to, like CuPy's. Behind the tokens come heads and head dimension in any order;
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
        An array is none, has too few axes, differs from the other in one of the first three, or
        is read-only; or `length` is past the tokens of a slot.
    WrongDevice
        The arrays live on different devices.

    Notes
    -----
    On the GPU each of the two is one assignment between slices on the current stream of the
    array's own library, and nothing waits for it. No array leaves its device.

    Examples
    --------
    >>> keys = np.arange(12.0).reshape(1, 3, 4)
    >>> values = -keys
    >>> jitalloc.copy_slot(keys, values, src_slot=0, dst_slot=2, length=3)
    >>> keys[0, 2]
    array([ 0.,  1.,  2., 11.])
    """
    if place_of("keys", keys) != place_of("values", values):
        raise WrongDevice("values", type(values).__name__, "must live on the device of keys")
    check_cache("keys", keys)
    check_cache("values", values)
    layers, slots, tokens = keys.shape[:3]
    if tuple(values.shape[:3]) != (layers, slots, tokens):
        expected = f"must begin with ({layers}, {slots}, {tokens}) like keys"
        raise InvalidArgument("values", tuple(values.shape), expected, fact="shape")
    src_slot = as_slot("src_slot", src_slot, slots)
    dst_slot = as_slot("dst_slot", dst_slot, slots)
    length = as_count("length", length, 0, tokens)
    if src_slot != dst_slot:
        keys[:, dst_slot, :length] = keys[:, src_slot, :length]
        values[:, dst_slot, :length] = values[:, src_slot, :length]
