"""Devices that note what waits for the GPU, and which kernels start."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from jitalloc.gpu import cupy_device as _cuda_cupy
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda
from tests.ptx import streams


class Recorded(_cuda_device.SimulatedArray):
    """An array that tells when its contents are asked for."""

    seen: list[str] = []  # noqa: RUF012

    def _note(self, what: str) -> None:
        self.seen.append(what)

    def __int__(self) -> int:
        self._note("int")
        return int(np.asarray(self).item())

    __index__ = __int__

    def __bool__(self) -> bool:
        self._note("bool")
        return bool(np.asarray(self))

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if not isinstance(found, np.ndarray):
            self._note("getitem")
        return found

    def __iter__(self) -> Any:
        self._note("iter")
        return iter(np.asarray(self))

    def item(self, *args: Any) -> Any:
        self._note("item")
        return super().item(*args)

    def tolist(self) -> Any:
        self._note("tolist")
        return super().tolist()

    def get(self) -> Any:
        self._note("get")
        return np.asarray(self)


class SimulatedRecorder(_cuda_device.SimulatedDevice):
    """Notes what waits for the device, and how often kernels start."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.starts: list[str] = []
        Recorded.seen = self.waits

    def empty(self, size: int, dtype: Any, name: str = "out") -> Any:
        return super().empty(size, dtype, name).view(Recorded)

    def upload(self, values: Any) -> Any:
        self.waits.append("upload")  # from memory that is not pinned
        return super().upload(values).view(Recorded)

    def download(self, values: Any) -> Any:
        self.waits.append("download")
        return super().download(values)

    def wrap(self, values: Any) -> Any:
        return super().wrap(values.view(_cuda_device.SimulatedArray))

    def launch(self, kernel: Any, blocks: int, threads: int, *arrays: Any) -> None:
        self.starts.append(kernel.name)
        super().launch(kernel, blocks, threads, *arrays)


class MachineRecorder(_cuda_cupy.CupyDevice):
    """Notes the same on the machine of `tests/ptx`, whose streams tell of everything that waits."""

    def __init__(self) -> None:
        super().__init__(importlib.import_module("cupy"), 0)
        self.waits: list[str] = []
        self.starts: list[str] = []
        self._noted = False  # a wait that has a name here
        streams.listeners.add(self)

    def heard(self, what: str) -> None:
        """Note a wait that a stream tells of."""
        if not self._noted:
            self.waits.append(what)

    def _note(self, what: str, call: Any) -> Any:
        self.waits.append(what)
        self._noted = True
        try:
            return call()
        finally:
            self._noted = False

    def upload(self, values: Any) -> Any:
        call = super().upload
        return self._note("upload", lambda: call(values))

    def download(self, values: Any) -> Any:
        call = super().download
        return self._note("download", lambda: call(values))

    def load(self, kernel: Any) -> Any:
        call = super().load
        self._noted = True  # as `warmup` would have done it before
        try:
            return call(kernel)
        finally:
            self._noted = False

    def launch(self, kernel: Any, blocks: int, threads: int, *arrays: Any) -> None:
        self.starts.append(kernel.name)
        super().launch(kernel, blocks, threads, *arrays)


RecordingDevice: Any = SimulatedRecorder if _cuda.SIMULATED else MachineRecorder
