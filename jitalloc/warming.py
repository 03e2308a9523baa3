"""Compiling all kernels before the first use, some of them in a second process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from jitalloc import _jit
from jitalloc.choices import Device
from jitalloc.errors import WrongDevice
from jitalloc.gpu.device import load_kernels

CHILD: Final = """
import sys, jitalloc
from jitalloc import _jit
for name in sys.argv[1:]:
    _jit.kernels()[name].compile()
"""

APART: Final = (
    *("pool_", "owners_", "tokens_", "upkeep_", "tables_", "prefix_upkeep_", "slot"),
    *("reclaim_", "eviction_", "attention_", "mirror_"),
)
"""Kernels whose names begin so share few helpers with the others: about half of the work."""


class Precompiled:
    """Compiles kernels into the disk cache, in a process of its own, while the caller goes on.

    To be used in a `with` statement; `wait` before the first of these kernels is called. Does
    nothing where all of them are cached, there is no disk cache, or only one core. A kernel that
    the process did not get to is compiled at its first call, like any other.

    Parameters
    ----------
    names : iterable of str
        Names of kernels.
    """

    __slots__ = ("_process",)

    def __init__(self, names: Iterable[str]) -> None:
        missing = _missing(names)
        self._process: subprocess.Popen[bytes] | None = None
        if missing and _jit.CACHE_ENABLED and sys.executable and (os.cpu_count() or 1) > 1:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CHILD, *missing],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    def wait(self) -> None:
        """Wait until the process is done, well or not."""
        if self._process is not None:
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def compile_in_two() -> None:
    """Compile all kernels of the CPU, some of them in a second process; see `Precompiled`."""
    names = [name for name in _jit.kernels() if not name.startswith(APART)]
    with Precompiled(name for name in _jit.kernels() if name.startswith(APART)) as elsewhere:
        for name in names:
            _jit.kernels()[name].compile()
        elsewhere.wait()


def _missing(names: Iterable[str]) -> list[str]:
    """Return which kernels are not in the disk cache; none of them where there can be no cache."""
    try:
        folder = Path(_jit.cache_folder())
    except OSError:
        return []
    return [name for name in names if not any(folder.glob(f"*/*.{name}-*.nbi"))]


def warmup(device: Device = "cpu") -> int:
    """Compile every kernel of a device now, or load it from the disk cache.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        `"cuda"`: the kernels for CuPy's current GPU, which are loaded there as well.

    Returns
    -------
    int
        How many kernels there are.

    Raises
    ------
    WrongDevice
        The device is none of these, or no GPU can be used.

    Notes
    -----
    Without it each kernel compiles at its first call, which takes up to two seconds the first
    time on a machine (on the GPU up to twelve), and a few milliseconds from the disk cache. On the
    GPU no first call should fall into the capture of a CUDA graph.
    """
    if device not in ("cpu", "cuda"):
        raise WrongDevice("device", device, "must be 'cpu' or 'cuda'")
    return _jit.compile_kernels() if device == "cpu" else load_kernels()
