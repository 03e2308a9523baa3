"""Memory of the machine's GPU, and arrays in it: CuPy's, as far as the project needs them.

NumPy does not see through such an array: what a real one refuses is refused here.
"""

from __future__ import annotations

import ctypes
import itertools
import operator
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx import streams
from tests.ptx.settings import settings

ALIGNMENT = 512  # bytes, as CuPy's pool does it

_garbage = np.random.default_rng(settings.seed)
_numbers = itertools.count(1)
_live: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()


class Memory(streams.Memory):
    """One allocation; it lives as long as an array in it, or work that a stream was given.

    Attributes
    ----------
    number : int
        No other allocation has it, ever.
    ptr, size : int
        Its address; bytes.
    """

    def __init__(self, size: int) -> None:
        self.number, self.size = next(_numbers), size
        self._room = np.empty(size + ALIGNMENT, np.uint8)
        start = -self._room.ctypes.data % ALIGNMENT
        self.host = self._room[start : start + size]
        self.host[:] = _garbage.integers(0, 256, size, np.uint8)
        self.ptr = self.host.ctypes.data
        _live[self.number] = self
        streams.born(self.number)
        weakref.finalize(self, streams.died, self.number)


def owners(ranges: list[tuple[int, int]]) -> list[Memory]:
    """Return the allocation that each range lies in; ValueError: it lies in none."""
    made = []
    # In one step: another thread may let memory go in between.
    live = [each for reference in _live.valuerefs() if (each := reference()) is not None]
    for first, size in ranges:
        if not size:
            continue
        for each in live:
            if each.ptr <= first and first + size <= each.ptr + each.size:
                made.append(each)
                break
        else:
            raise ValueError(f"{size} bytes at {first:#x} are no memory of the GPU")
    return made


class Pointer:
    """`ndarray.data`."""

    def __init__(self, array: ndarray) -> None:
        self._array = array
        self.device_id = 0
        self.ptr = array.host.ctypes.data if array.size else 0

    def memset_async(self, value: int, size: int) -> None:
        flat = self._array.host.reshape(-1).view(np.uint8)
        streams.enqueue(lambda: flat[:size].fill(value), self._array.uses)

    def copy_from_host_async(self, memory: Any, size: int, stream: Any = None) -> None:
        """Copy from memory of the host, which is read when the stream comes to it."""
        source = memory if isinstance(memory, int) else memory.value
        to, array = self.ptr, self._array
        where = stream or streams.current()
        where.put(lambda: ctypes.memmove(to, source, size), array.uses)


class ndarray:
    """An array of the GPU.

    Attributes
    ----------
    host : numpy.ndarray
        The same memory, for the stand-in itself.
    memory : object
        What keeps it alive.
    """

    __array_priority__ = 1000

    def __init__(self, host: Any, memory: Any) -> None:
        self.host, self.memory = host, memory

    @property
    def uses(self) -> list[Memory]:
        """The allocation that it lies in."""
        return [self.memory] if isinstance(self.memory, Memory) else []

    @property
    def data(self) -> Pointer:
        return Pointer(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": None if self.flags.c_contiguous else self.host.strides,
            "version": 3,
            "stream": None,
        }

    def __array__(self, *_dtype: Any, **_options: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use `.get()`")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_options: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        if name in ("size", "itemsize", "nbytes", "dtype", "ndim", "shape", "flags", "strides"):
            return getattr(self.host, name)
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Any:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, where: Any) -> ndarray:
        if isinstance(where, ndarray):
            streams.settle()
            return new(self.host[where.host])
        places = where if isinstance(where, tuple) else (where,)
        if not any(each is ... for each in places):
            places = (*places, ...)  # one element as well is a view
        return ndarray(self.host[places], self.memory)

    def __setitem__(self, where: Any, values: Any) -> None:
        if isinstance(values, np.ndarray) and values.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        other = values.host if isinstance(values, ndarray) else values
        uses = self.uses + (values.uses if isinstance(values, ndarray) else [])
        streams.enqueue(lambda: operator.setitem(self.host, where, other), uses)

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self.host.view(dtype), self.memory)

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self.host.reshape(*shape), self.memory)

    def astype(self, dtype: Any) -> ndarray:
        return self._computed(lambda host: host.astype(dtype))

    def copy(self) -> ndarray:
        return self._computed(lambda host: host.copy())

    def all(self) -> ndarray:
        return self._computed(np.all)

    def any(self) -> ndarray:
        return self._computed(np.any)

    def sum(self) -> ndarray:
        return self._computed(np.sum)

    def max(self) -> ndarray:
        return self._computed(np.max)

    def min(self) -> ndarray:
        return self._computed(np.min)

    def _computed(self, of: Callable[[Any], Any]) -> ndarray:
        streams.settle()
        return new(of(self.host))

    def fill(self, value: Any) -> None:
        self[...] = value

    def get(self) -> Any:
        streams.waits("a copy to the host")
        streams.settle()
        return self.host.copy()

    def set(self, values: Any) -> None:
        streams.waits("a copy from pageable memory of the host")
        streams.settle()
        self.host[...] = values

    def tolist(self) -> Any:
        return self.get().tolist()

    def item(self) -> Any:
        return self.get().item()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __index__(self) -> int:
        return operator.index(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __invert__(self) -> ndarray:
        return self._computed(operator.invert)

    def __neg__(self) -> ndarray:
        return self._computed(operator.neg)

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    __hash__ = None  # type: ignore[assignment]


def _binary(of: Callable[[Any, Any], Any], swapped: bool) -> Callable[..., Any]:
    def work(self: ndarray, other: Any) -> Any:
        if isinstance(other, np.ndarray) and other.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        value = other.host if isinstance(other, ndarray) else other
        return self._computed(lambda host: of(value, host) if swapped else of(host, value))

    return work


def _in_place(of: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def work(self: ndarray, other: Any) -> Any:
        value = other.host if isinstance(other, ndarray) else other
        uses = self.uses + (other.uses if isinstance(other, ndarray) else [])
        streams.enqueue(lambda: of(self.host, value), uses)
        return self

    return work


for _name in ("add", "sub", "mul", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift"):
    _operator = getattr(operator, f"__{_name}__")
    setattr(ndarray, f"__{_name}__", _binary(_operator, False))
    setattr(ndarray, f"__r{_name}__", _binary(_operator, True))
    setattr(ndarray, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(ndarray, f"__{_name}__", _binary(getattr(operator, f"__{_name}__"), False))


def new(values: Any) -> ndarray:
    """Return a new array of the GPU with values of the host."""
    host = np.asarray(values)
    made = empty(host.shape, host.dtype)
    made.host[...] = host
    return made


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Return a new array, its contents garbage."""
    shape = tuple(shape) if np.iterable(shape) else (int(shape),)
    dtype = np.dtype(dtype)
    memory = Memory(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return ndarray(memory.host.view(dtype).reshape(shape), memory)


def adopt(values: Any) -> ndarray:
    """Return an array that another library shows by `__cuda_array_interface__`."""
    shown = values.__cuda_array_interface__
    dtype = np.dtype(shown["typestr"])
    shape, strides = shown["shape"], shown.get("strides")
    if not np.prod(shape, dtype=np.int64):
        return empty(shape, dtype)
    strides = strides or np.empty(shape, np.bool_).strides
    if shown.get("strides") is None:
        strides = tuple(dtype.itemsize * each for each in strides)
    extent = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + dtype.itemsize
    room = (ctypes.c_char * extent).from_address(shown["data"][0])
    return ndarray(np.ndarray(shape, dtype, room, strides=strides), _owner(values))


def _owner(values: Any) -> Any:
    """Return the memory behind an object, where it is known; the object itself keeps it alive."""
    while not isinstance(values, ndarray):
        values = getattr(values, "values", None)
        if values is None:
            return None
    return values.memory
