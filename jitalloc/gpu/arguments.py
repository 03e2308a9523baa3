"""What callers hand in, made into what CUDA kernels take, or refused; nothing waits for the GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from jitalloc.errors import InvalidArgument
from jitalloc.gpu.device import Device
from jitalloc.state import INT32, INT64


def as_device(
    device: Device, name: str, values: Any, dtype: np.dtype[Any], size: int | None = None
) -> Any:
    """Return `values` as a contiguous array of the device; `size`: the length it must have.

    While a stream is captured it has to be contiguous as it is.
    """
    array = device.adopt(name, values)
    if array.dtype != dtype:
        raise InvalidArgument(name, str(array.dtype), f"must be {dtype} on the GPU", fact="dtype")
    return _flat(device, name, array, size)


def _flat(device: Device, name: str, array: Any, size: int | None) -> Any:
    """Return an array of the device as a contiguous one, of one dimension and the size."""
    if name == "tokens" and array.ndim == 2 and array.shape[0] == 1:
        array = array[0]  # a batch of one prompt
    if array.ndim != 1:
        raise InvalidArgument(name, array.shape, "must have one dimension", fact="shape")
    if size is not None and array.size != size:
        expected = f"must have {size} elements like the others"
        raise InvalidArgument(name, array.size, expected, fact="size")
    # CuPy tells a stride in half the time in which it tells whether all is contiguous.
    if array.strides[0] != array.itemsize and array.size > 1:
        return device.contiguous(array, name)
    return array


def as_integers(
    device: Device, name: str, values: Any, size: int | None = None
) -> tuple[Any, int, int]:
    """Return lengths or counts of int32 or int64 as kernels take them, how many, and which.

    The last is 1 for int64; see `integer` in gpu/calls.py.
    """
    array = device.adopt(name, values)
    wide = array.dtype == INT64
    if not wide and array.dtype != INT32:
        raise InvalidArgument(
            name, str(array.dtype), "must be int32 or int64 on the GPU", fact="dtype"
        )
    array = _flat(device, name, array, size)
    return (device.pairs(array), array.size, 1) if wide else (array, array.size, 0)


def as_device_out(
    device: Device, name: str, out: Any, dtype: np.dtype[Any], size: int | None = None
) -> Any:
    """Return the buffer `out`, or a new one where it is None; `size`: the length it must have.

    While a stream is captured it must not be None.
    """
    if out is None:
        return device.empty(0 if size is None else size, dtype, name)
    array = device.adopt(name, out)
    if array.ndim != 1 or array.dtype != dtype:
        shown = f"{array.dtype}{list(array.shape)}"
        raise InvalidArgument(name, shown, f"must be a one-dimensional array of {dtype}")
    strided = array.strides[0] != array.itemsize and array.size > 1
    if strided or (size is not None and array.size != size):
        expected = f"must be contiguous and hold exactly {size} elements"
        raise InvalidArgument(name, array.size, expected, fact="size")
    return array
