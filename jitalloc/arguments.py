"""What callers hand in, made into what kernels take, or refused by name, value and position."""

from __future__ import annotations

import itertools
import marshal
import operator
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import InvalidArgument, WrongDevice
from jitalloc.state import INT32, INT32_MAX, INT64

C = TypeVar("C")

ON_GPU: Final = (2, 10)  # kDLCUDA and kDLROCM of DLPack


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


def check_bool(name: str, value: Any) -> None:
    """Raise where `value` is no bool."""
    if value is not True and value is not False:
        raise InvalidArgument(name, value, "must be a bool")


def check_hashable(name: str, value: Any, position: int | None = None) -> None:
    """Raise where `value` cannot be the key of a dict."""
    try:
        hash(value)
    except TypeError:
        raise InvalidArgument(name, value, "must be hashable", position) from None


def as_choice(name: str, value: Any, choices: tuple[C, ...]) -> C:
    """Return `value` if it is one of `choices`, which are texts."""
    if isinstance(value, str):
        for choice in choices:
            if value == choice:
                return choice
    raise InvalidArgument(name, value, f"must be one of {', '.join(map(str, choices))}")


def as_integers(name: str, values: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `values` as a one-dimensional NumPy array of `dtype` (itself, where it is one)."""
    if type(values) is not np.ndarray:
        if type(values) is list or type(values) is tuple:
            plain = _plain_integers(values, dtype)
            if plain is not None:
                return plain
        values = _as_array(name, values)
        if values.size == 0 and values.ndim == 1 and values.dtype.kind not in "iub":
            return np.empty(0, dtype)  # of an empty list NumPy makes floats
    elif values.dtype is dtype and values.ndim == 1:
        return values
    if values.ndim != 1:
        raise InvalidArgument(name, values.shape, "must have one dimension", fact="shape")
    if values.dtype.kind not in "iu":
        expected = "must be an array of integers" + _hint(name)
        raise InvalidArgument(name, str(values.dtype), expected, fact="dtype")
    converted: NDArray[Any] = values.astype(dtype)  # an equal dtype may be another object
    if not np.can_cast(values.dtype, dtype):
        outside = converted != values
        if outside.any():
            position = int(np.argmax(outside))
            raise InvalidArgument(name, int(values[position]), f"must fit {dtype}", position)
    return converted


def _plain_integers(
    values: list[Any] | tuple[Any, ...], dtype: np.dtype[Any]
) -> NDArray[Any] | None:
    """Return a list of Python's own ints, all within int32, as an array; None for any other list.

    `marshal` writes such a list as five bytes, and each of its elements as an `i` and four bytes;
    a bool, a float, a long int or an object gets another letter. So one look at the letters tells
    what types there are, and the numbers stand between them: 12 ns an element, where to look at
    its type and to convert it takes NumPy and a list of types 35.
    """
    size = len(values)
    try:
        written = marshal.dumps(values, 2)
    except ValueError:
        return None
    if len(written) != 5 + 5 * size or written[5::5].count(b"i") != size:
        return None
    numbers: NDArray[Any] = np.ndarray(size, "<i4", written, 6, (5,)) if size else np.empty(0)
    return numbers.astype(dtype)


def _as_array(name: str, values: Any) -> NDArray[Any]:
    """Return what is no array of NumPy as one; bools among ints are refused, and single values."""
    if hasattr(values, "__cuda_array_interface__"):
        raise WrongDevice(name, type(values).__name__, "the pool lives on the CPU")
    if isinstance(values, list | tuple):  # among ints, NumPy would take a bool for a number
        if any(issubclass(kind, bool | np.bool_) for kind in set(map(type, values))):
            bools = (isinstance(value, bool | np.bool_) for value in values)
            position = next(itertools.compress(itertools.count(), bools))
            expected = "must be an integer, not a bool"
            raise InvalidArgument(name, values[position], expected, position)
    elif isinstance(values, str | bytes) or values is None or isinstance(values, int | float):
        expected = "must be an array or a list of integers" + _hint(name)
        raise InvalidArgument(name, values, expected)
    try:
        return _shared_array(values) if _is_foreign(values) else np.asarray(values)
    except (ValueError, TypeError, OverflowError, BufferError) as error:
        expected = "must be a flat sequence of integers" + _hint(name)
        raise InvalidArgument(name, values, expected) from error


def _hint(name: str) -> str:
    """Return what may have been meant where no rows were given."""
    rows = name.endswith("rows") or name == "parents"
    return " (rows(ids) gives the rows of ids of sequences)" if rows else ""


def as_tokens(tokens: Any) -> NDArray[np.int32]:
    """Return token ids, of one prompt or of a batch of one, as a contiguous `int32[n]`."""
    if isinstance(tokens, list | tuple):
        inner: Any = tokens[0] if len(tokens) == 1 else 0
        if isinstance(inner, list | tuple) or np.ndim(inner) == 1:
            tokens = inner
    elif getattr(tokens, "ndim", 1) == 2 and tokens.shape[0] == 1:
        tokens = tokens[0]
    ids: NDArray[np.int32] = as_integers("tokens", tokens, INT32)
    return ids if ids.flags.c_contiguous else np.ascontiguousarray(ids)


def as_pages(pages: Any) -> NDArray[np.int32]:
    """Return page ids as `int32[n]`."""
    return as_integers("pages", pages, INT32)


def as_lengths(name: str, values: Any, size: int | None = None) -> NDArray[np.int64]:
    """Return token counts or slots as `int64[n]`; `size` is the length that they must have."""
    lengths = as_integers(name, values, INT64)
    if size is not None and lengths.size != size:
        expected = f"must have {size} elements like the others"
        raise InvalidArgument(name, lengths.size, expected, fact="size")
    return lengths


def as_bounds(indptr: Any, size: int) -> NDArray[np.int64]:
    """Return where the prompts of a batch of `size` tokens begin, and where the last one ends."""
    bounds = np.ascontiguousarray(as_lengths("indptr", indptr))
    if bounds.size == 0:
        expected = "must be one more than there are prompts"
        raise InvalidArgument("indptr", 0, expected, fact="size")
    if bounds[0] != 0:
        raise InvalidArgument("indptr", int(bounds[0]), "must begin with 0", 0)
    falls = np.flatnonzero(bounds[1:] < bounds[:-1])
    if falls.size:
        position = int(falls[0]) + 1
        raise InvalidArgument("indptr", int(bounds[position]), "must not descend", position)
    if bounds[-1] != size:
        position = bounds.size - 1
        raise InvalidArgument("indptr", int(bounds[-1]), f"must end with {size}", position)
    return bounds


def as_out(out: Any, dtype: np.dtype[Any], size: int | None, name: str = "out") -> NDArray[Any]:
    """Return `out`, or a view of its memory, if it can hold a result.

    It must be a writable C-contiguous array of one dimension, of `dtype` and `size` elements: an
    array of NumPy, or what has a buffer or DLPack.
    """
    array = out if type(out) is np.ndarray else _buffer(name, out)
    if array is None or array.dtype != dtype or array.ndim != 1:
        shown = out if array is None else f"{array.dtype}{list(array.shape)}"
        raise InvalidArgument(name, shown, f"must be a one-dimensional array of {dtype}")
    size = array.size if size is None else size
    if array.size != size or not array.flags.c_contiguous or not array.flags.writeable:
        expected = f"must be writable, contiguous and hold exactly {size} elements"
        raise InvalidArgument(name, array.size, expected, fact="size")
    return array


def _buffer(name: str, out: Any) -> NDArray[Any] | None:
    """Return a view of the memory of `out`, or None where it has none on the CPU to share."""
    if hasattr(out, "__cuda_array_interface__"):
        raise WrongDevice(name, type(out).__name__, "the pool lives on the CPU")
    if isinstance(out, np.ndarray):
        return out.view(np.ndarray)
    try:
        return np.asarray(memoryview(out))
    except TypeError:
        pass
    if not _is_foreign(out):
        return None
    if out.__dlpack_device__()[0] in ON_GPU:
        raise WrongDevice(name, type(out).__name__, "the pool lives on the CPU")
    try:
        return _shared_array(out)
    except (ValueError, TypeError, RuntimeError, BufferError):
        return None


def _is_foreign(values: Any) -> bool:
    """Return whether an object of another library hands its memory out by DLPack."""
    return hasattr(values, "__dlpack__") and hasattr(values, "__dlpack_device__")


def _shared_array(values: Any) -> NDArray[Any]:
    """Return the memory of an object of another library as an array."""
    shared: NDArray[Any] = np.from_dlpack(values)
    if not shared.flags.writeable and hasattr(values, "__array__"):
        # Before DLPack 1.0 nobody could say whether the memory may be written to.
        array = np.asarray(values)
        if array.ctypes.data == shared.ctypes.data:
            return array
    return shared
