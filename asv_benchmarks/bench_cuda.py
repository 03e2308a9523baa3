"""What the CUDA kernels need of a GPU, by the compiler alone: no GPU takes part."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jitalloc  # noqa: F401  (registers the kernels)
from asv_benchmarks.ptxas import Usage, assemble, find_ptxas
from jitalloc import _cuda


class Kernels:
    """Registers a thread and shared memory a block on an H200; more of them, fewer blocks."""

    params = (sorted(_cuda.cuda_kernels()),)
    param_names = ("kernel",)

    def setup(self, kernel: str) -> None:
        if find_ptxas() is None:
            raise NotImplementedError("needs jitalloc[cudatest]")
        text = _cuda.cuda_kernels()[kernel].ptx((9, 0))
        with tempfile.TemporaryDirectory() as folder:
            self.used: Usage = assemble(text, (9, 0), Path(folder))

    def track_registers(self, kernel: str) -> int:
        return self.used.registers

    def track_shared_bytes(self, kernel: str) -> int:
        return self.used.shared

    track_registers.unit = "registers"  # type: ignore[attr-defined]
    track_shared_bytes.unit = "bytes"  # type: ignore[attr-defined]
