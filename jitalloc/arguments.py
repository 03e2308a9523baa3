"""What callers hand in, made into what kernels take, or refused by name, value and position."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import InvalidArgument, WrongDevice
from jitalloc.state import INT32, INT32_MAX, INT64


def as_count(name: str, value: Any, lowest: int = 0, highest: int = INT32_MAX) -> int:
    """Return `value` as an int in `lowest .. highest`; floats and bools are refused."""
    if isinstance(value, bool | np.bool_):
        raise InvalidArgument(name, value, "must be an integer, not a bool")
    try:
        count = operator.index(value)
    except TypeError:
        raise InvalidArgument(name, value, "must be an integer") from None
    if not lowest <= count <= highest:
        raise InvalidArgument(name, count, f"must be in {lowest} .. {highest}")
    return count


def as_fraction(name: str, value: Any) -> float:
    """Return `value` as a float in 0.0 .. 1.0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise InvalidArgument(name, value, "must be a number in 0.0 .. 1.0")
    if not 0 <= value <= 1:
        raise InvalidArgument(name, value, "must be in 0.0 .. 1.0")
    return float(value)


def as_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgument(name, value, f"must be one of {', '.join(choices)}")
    return value


def as_integers(name: str, values: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `values` as a one-dimensional NumPy array of `dtype` (itself, where it is one)."""
    if type(values) is np.ndarray and values.dtype is dtype and values.ndim == 1:
        return values
    if type(values) is not np.ndarray:
        if hasattr(values, "__cuda_array_interface__"):
            raise WrongDevice(name, type(values).__name__, "the pool lives on the CPU")
        if isinstance(values, list | tuple):  # among ints, NumPy would take a bool for a number
            for position, value in enumerate(values):
                if isinstance(value, bool | np.bool_):
                    raise InvalidArgument(name, value, "must be an integer, not a bool", position)
        try:
            values = np.asarray(values)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidArgument(name, values, "must be a flat sequence of integers") from error
        if values.size == 0 and values.ndim == 1:
            return np.empty(0, dtype)
    if values.ndim != 1:
        raise InvalidArgument(name, values.shape, "must have one dimension")
    if values.dtype.kind not in "iu":
        raise InvalidArgument(name, str(values.dtype), "must be an array of integers")
    bounds = np.iinfo(dtype)  # an equal dtype may be another object: a copy is cheap enough
    outside = (values < bounds.min) | (values > bounds.max)
    if outside.any():
        position = int(np.argmax(outside))
        raise InvalidArgument(name, int(values[position]), f"must fit {dtype}", position)
    converted: NDArray[Any] = values.astype(dtype)
    return converted


def as_tokens(tokens: Any) -> NDArray[np.int32]:
    """Return token ids as a contiguous `int32[n]`."""
    ids: NDArray[np.int32] = as_integers("tokens", tokens, INT32)
    return ids if ids.flags.c_contiguous else np.ascontiguousarray(ids)


def as_pages(pages: Any) -> NDArray[np.int32]:
    """Return page ids as `int32[n]`."""
    return as_integers("pages", pages, INT32)


def as_lengths(name: str, values: Any, size: int | None = None) -> NDArray[np.int64]:
    """Return token counts or slots as `int64[n]`; `size` is the length that they must have."""
    lengths = as_integers(name, values, INT64)
    if size is not None and lengths.size != size:
        raise InvalidArgument(name, lengths.size, f"must have {size} elements like the others")
    return lengths


def as_out(out: Any, dtype: np.dtype[Any], size: int | None, name: str = "out") -> NDArray[Any]:
    """Return `out` if it is a writable C-contiguous array of `dtype` and `size` elements."""
    if hasattr(out, "__cuda_array_interface__"):
        raise WrongDevice(name, type(out).__name__, "the pool lives on the CPU")
    if type(out) is not np.ndarray or out.dtype != dtype or out.ndim != 1:
        shown = f"{out.dtype}{list(out.shape)}" if isinstance(out, np.ndarray) else out
        raise InvalidArgument(name, shown, f"must be a one-dimensional array of {dtype}")
    size = out.size if size is None else size
    if out.size != size or not out.flags.c_contiguous or not out.flags.writeable:
        raise InvalidArgument(
            name, out.size, f"must be writable, contiguous and hold exactly {size} elements"
        )
    return out
