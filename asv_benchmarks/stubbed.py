"""A GPU whose driver does nothing: what is left of a call is what the host spends on it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

import jitalloc
from jitalloc.gpu import cupy_device as _cuda_cupy


class Flags:
    __slots__ = ("c_contiguous",)


class Pointer:
    __slots__ = ("device_id", "ptr")

    def memset_async(self, value: int, size: int) -> None:
        pass


class Array:
    """What is asked of an array of CuPy, about as quick to ask as there.

    A view is made once, and then found: to make one in Python takes ten times as long as in CuPy.
    """

    __slots__ = (
        "data",
        "dtype",
        "flags",
        "host",
        "itemsize",
        "nbytes",
        "ndim",
        "shape",
        "size",
        "strides",
        "views",
    )

    def __init__(self, host: Any) -> None:
        self.host, self.data, self.flags = host, Pointer(), Flags()
        self.views: dict[Any, Array] = {}
        self.data.ptr, self.data.device_id = host.ctypes.data, 0
        self.flags.c_contiguous = host.flags.c_contiguous
        for name in ("dtype", "itemsize", "nbytes", "ndim", "shape", "size", "strides"):
            setattr(self, name, getattr(host, name))

    def _view(self, key: Any, make: Callable[[], Any]) -> Array:
        found = self.views.get(key)
        if found is None:
            found = self.views[key] = Array(make())
        return found

    def __getitem__(self, where: Any) -> Array:
        if type(where) is int:
            return self._view(where, lambda: self.host[where])
        return Array(self.host[where])

    def view(self, dtype: Any) -> Array:
        return self._view(dtype, lambda: self.host.view(dtype))

    def reshape(self, *shape: Any) -> Array:
        return self._view(shape, lambda: self.host.reshape(*shape))


class StubbedDevice(_cuda_cupy.CupyDevice):
    """A GPU that loads and runs nothing."""

    def __init__(self) -> None:
        stream = SimpleNamespace(ptr=0, synchronize=lambda: None)
        runtime = SimpleNamespace(getDevice=lambda: 0, memGetInfo=lambda: (0, 0))
        driver = SimpleNamespace(launchKernel=lambda *_arguments: None)
        cuda = SimpleNamespace(
            runtime=runtime, driver=driver, get_current_stream=lambda _number: stream
        )
        cupy = SimpleNamespace(ndarray=Array, asarray=Array, cuda=cuda)
        cupy.empty = lambda size, dtype: Array(np.empty(size, dtype))
        cupy.asnumpy = lambda values: values.host.copy()
        super().__init__(cupy, 0)

    def _function(self, kernel: Any) -> Any:
        return SimpleNamespace(ptr=1)


def stubbed_pool(num_pages: int, page_size: int) -> Any:
    """Return a pool on a GPU that does nothing."""
    with patch("jitalloc.gpu.slab.device", StubbedDevice):
        return jitalloc.PagePool(num_pages, page_size, device="cuda")
