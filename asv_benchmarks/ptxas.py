"""What ptxas says of a kernel: registers, shared memory, spills. No GPU is needed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

CAPABILITIES = ((7, 5), (8, 0), (9, 0), (10, 0), (12, 0))


class Usage(NamedTuple):
    """What one kernel needs of a GPU."""

    registers: int  # a thread
    shared: int  # bytes a block
    stack: int  # bytes a thread
    spills: int  # bytes a thread, loads and stores


@cache
def find_ptxas() -> str | None:
    """The assembler of the wheel nvidia-cuda-nvcc, or the one in the path; needs numba-cuda too."""
    if importlib.util.find_spec("numba_cuda") is None:
        return None
    namespace = importlib.util.find_spec("nvidia")
    for folder in namespace.submodule_search_locations or () if namespace else ():
        for found in sorted(Path(folder).rglob("bin/ptxas")):
            return str(found)
    return shutil.which("ptxas")


def assemble(ptx: str, capability: tuple[int, int], folder: Path) -> Usage:
    """Assemble a text of PTX; fails with what ptxas says against it."""
    ptxas = find_ptxas()
    if ptxas is None:
        raise FileNotFoundError("ptxas")
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    arch = "sm_{}{}".format(*capability)
    command = [ptxas, "-arch", arch, "-v", str(source), "-o", str(folder / "kernel.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(said)

    def figure(pattern: str) -> int:
        return sum(int(each) for each in re.findall(pattern, said))

    return Usage(
        registers=figure(r"Used (\d+) registers"),
        shared=figure(r"(\d+) bytes smem"),
        stack=figure(r"(\d+) bytes stack frame"),
        spills=figure(r"(\d+) bytes spill (?:stores|loads)"),
    )
