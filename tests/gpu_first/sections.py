"""What is asked of a GPU at first contact, the most valuable first."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jitalloc
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu import kernel as _cuda
from tests.gpu_first import images, times

ROOT = Path(__file__).parents[2]
PAGES = 1_000_003


class Section(NamedTuple):
    """One process: its time limit in seconds, and what it does with `(results, images)`."""

    seconds: float
    work: Callable[[Path, Path | None], None]


def load(_results: Path, built: Path | None) -> None:
    """Say what is there, and load every kernel."""
    cupy: Any = importlib.import_module("cupy")
    device = cupy.cuda.Device()
    capability = tuple(int(each) for each in (device.compute_capability[:-1], "0"))
    capability = capability[0], int(device.compute_capability[-1])
    print("commit", images.commit(), "jitalloc", jitalloc.__version__, "cupy", cupy.__version__)
    print("numba-cuda and CUDA", _cuda_images.compiler_versions(), "capability", capability)
    print("driver supports CUDA", cupy.cuda.runtime.driverGetVersion())
    if built is not None:
        print("taken:", images.take(built, capability))
    begin = time.perf_counter()
    count = jitalloc.warmup(device="cuda")
    print(f"loaded {count} kernels in {time.perf_counter() - begin:.2f} s")
    if count != len(_cuda.cuda_kernels()):
        raise SystemExit("not all kernels are loaded")


def pool(_results: Path, _built: Path | None) -> None:
    """Random calls, right and wrong ones, on a pool of the GPU and one of the CPU."""
    from tests.cuda_stress import Stress

    for order in ("sorted", "fifo", "lifo"):
        begin, stress = time.perf_counter(), Stress(5, 300, order=order)
        while time.perf_counter() - begin < 8:
            stress.run(2_000)
        print(f"{order}: {stress.done} calls, {stress.failed} refused, all as on the CPU")


def failing(_results: Path, _built: Path | None) -> None:
    """Calls of a million pages with one that is wrong: nothing changes, and the fault is named."""
    for order in ("sorted", "fifo", "lifo"):
        fail_all(order)
        print(order, "failing calls of", PAGES, "pages: named, and nothing changed")


def fail_all(order: str) -> None:
    gpu = _cuda_device.device()
    there: Any = jitalloc.PagePool(PAGES, order=order, device="cuda")
    here = jitalloc.PagePool(PAGES, order=order)
    there.alloc(PAGES)
    here.alloc(PAGES)
    before = gpu.download(there._slab)
    pages = np.random.default_rng(1).permutation(PAGES).astype(np.int32)
    for name, at, wrong in (
        *(
            (name, at, bad)
            for name in ("free", "share")
            for at, bad in ((0, PAGES), (PAGES // 2, -5))
        ),
        ("free", PAGES - 1, int(pages[7])),
    ):
        bad = pages.copy()
        bad[at] = wrong
        said = error_of(partial(getattr(here, name), bad))
        getattr(there, name)(gpu.upload(bad))
        heard = error_of(there.check)
        if (type(said), str(said)) != (type(heard), str(heard)):
            raise SystemExit(f"{order}, {name}: {heard!r} is not {said!r}")
    # In the other orders words of the ring behind its end may differ: nothing reads them.
    if order == "sorted" and (gpu.download(there._slab) != before).any():
        raise SystemExit(f"{order}: a failed call has changed the pool")
    released = gpu.download(there.free(gpu.upload(pages)))
    if released[0] != here.free(pages):
        raise SystemExit(f"{order}: {released} pages of {PAGES} went free")
    there.check()


def error_of(call: Callable[[], object]) -> Exception:
    """Return what a call raises."""
    try:
        call()
    except jitalloc.errors.JitallocError as error:
        return error
    raise SystemExit("a wrong call was accepted")


def tested(*arguments: str) -> Callable[[Path, Path | None], None]:
    """Return a section that runs tests."""

    def work(_results: Path, _built: Path | None) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)

    return work


GPU = "tests/test_cuda_gpu.py"
SECTIONS = {
    "load": Section(90, load),
    "pool": Section(60, pool),
    "failing": Section(45, failing),
    "graphs": Section(40, tested(GPU, "-k", "graph")),
    "streams": Section(40, tested(GPU, "-k", "stream or threads")),
    "rows": Section(60, tested("tests/test_cuda_sequences.py", "tests/test_cuda_tables.py")),
    "prefix": Section(60, tested("tests/test_cuda_prefix_calls.py", "tests/test_cuda_sharing.py")),
    "slots": Section(30, tested("tests/test_cuda_slots.py")),
    "times": Section(90, times.measure),
    "sanitizer": Section(120, tested(GPU, "-k", "sanitizer")),
}
