"""Threads and processes of the host on one pool of the GPU: launches, answers, failures.

With a stand-in for CuPy that lets other threads run within each launch and each download, and in
numba's simulator, or on a GPU, as they are:

`NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_threads.py`
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jitalloc import OutOfPages, PagePool, SlotAllocator
from jitalloc.errors import OUT_OF_PAGES, pack_status
from jitalloc.gpu import kernel as _cuda
from jitalloc.gpu.record import CALL_KINDS, FAULT_KIND, FAULT_STATUS, FAULT_WANTED
from tests.cupy_stand_in import Cupy, compile_to_text, install
from tests.gpu import ON_DEVICE

by_stand_in = pytest.mark.skipif(_cuda.SIMULATED, reason="the simulator takes the place of CuPy")

PAUSE = 2e-4
ROUNDS = 12


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls of several launches on few pages, and threads that take turns often."""
    monkeypatch.setattr("jitalloc.pool.pool_cuda.LARGE", 1)
    monkeypatch.setattr("jitalloc.pool.pool_cuda.MANY", 1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cupy:
    compile_to_text(monkeypatch, tmp_path / "cache")
    made = install(monkeypatch)
    made.pause = PAUSE
    return made


def at_once(*works: Callable[[], None]) -> None:
    """Run each work in a thread of its own, and raise what one of them raises."""
    start, failures = threading.Barrier(len(works)), []

    def run(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[work]) for work in works]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if failures:
        raise failures[0]


def again(call: Callable[[], Any]) -> Callable[[], None]:
    def work() -> None:
        for _ in range(ROUNDS):
            call()

    return work


@by_stand_in
def test_the_launches_of_a_call_follow_each_other(cupy: Cupy) -> None:
    pool: Any = PagePool(64, 4, order="fifo", device="cuda")
    counts, slots = cupy.kept(np.array([1, 1])), cupy.kept(np.array([0, 5]))
    pages = cupy.kept(np.array([0, 1], np.int32))

    def group() -> None:
        with pool.free_group():
            pool.free(pages)

    cupy.launches.clear()
    at_once(
        again(lambda: pool.alloc(8)),
        again(lambda: pool.alloc_batch(counts, out=pages)),
        again(pool.merge),
        again(lambda: pool.free(pages)),
        again(lambda: pool.free_slots(slots)),
    )
    again(group)()
    names = [each.kernel.removesuffix("_cuda") for each in cupy.launches]
    calls: Counter[tuple[str, ...]] = Counter()
    first = {"pool_total", "owners_take_off", "owners_mark_slots"}
    while names:
        length = 2 if names[0] in first else 1
        calls[tuple(names[:length])] += 1
        del names[:length]
    assert calls == {
        ("pool_alloc",): ROUNDS,
        ("pool_total", "pool_alloc_batch"): ROUNDS,
        ("pool_merge",): ROUNDS,
        ("owners_take_off", "owners_free_ring"): 2 * ROUNDS,
        ("owners_mark_slots", "owners_free_slots_ring"): ROUNDS,
    }


def fails(record: Any, wanted: int) -> None:
    """Keep a failure in the record, if it is the first."""
    if record[FAULT_STATUS] == 0:
        record[FAULT_STATUS] = pack_status(OUT_OF_PAGES, 4)
        record[FAULT_KIND] = CALL_KINDS.index("alloc_batch")
        record[FAULT_WANTED] = wanted


@by_stand_in
def test_a_thread_that_waits_gets_the_failure_of_its_own_call(cupy: Cupy) -> None:
    pool: Any = PagePool(64, 4, device="cuda")

    def alloc_batch(
        slab: Any, record: Any, pairs: Any, indptr: Any, out: Any, wide: int, summed: int
    ) -> None:
        counts = pairs.view(np.int64)
        if counts.sum() > 4:
            fails(record, int(counts.sum()))
        indptr[:] = [0, *np.cumsum(counts)]

    cupy.runs["pool_alloc_batch_cuda"] = alloc_batch
    good = cupy.kept(np.array([1, 2]))

    def bad(wanted: int) -> Callable[[], None]:
        counts = cupy.kept(np.array([wanted, 0]))

        def call() -> None:
            with pytest.raises(OutOfPages) as caught:
                pool.alloc_batch(counts)
            assert caught.value.requested == wanted

        return call

    def fine() -> None:
        assert pool.alloc_batch(good).pages.size == 3

    at_once(
        again(bad(5)),
        again(bad(6)),
        again(fine),
        again(lambda: pool.num_free),
        again(pool.snapshot),
    )


@by_stand_in
def test_who_only_looks_holds_nobody_up(cupy: Cupy) -> None:
    """A look may wait for all that the GPU has still to do."""
    pool: Any = PagePool(64, 4, device="cuda")
    looking, launched = threading.Event(), threading.Event()
    asnumpy = cupy.asnumpy

    def slow(values: Any) -> Any:
        looking.set()
        assert launched.wait(10), "a launch has waited for the look"
        return asnumpy(values)

    def launch() -> None:
        assert looking.wait(10)
        pool.alloc(8)
        launched.set()

    cupy.asnumpy = slow  # type: ignore[method-assign]
    at_once(lambda: pool.num_free, launch)


@by_stand_in
def test_sizes_of_a_group_are_kept_until_its_own_call_is_known(cupy: Cupy) -> None:
    """Not until any call that waits: that one may have begun before the group."""
    pool: Any = PagePool(64, 4, device="cuda")
    pages = cupy.kept(np.array([0, 1], np.int32))
    with pool.free_group():
        pool.free(pages)
    asnumpy = cupy.asnumpy

    def meanwhile(values: Any) -> Any:
        got = asnumpy(values)
        cupy.asnumpy = asnumpy  # type: ignore[method-assign]
        with pool.free_group():
            pool.free(pages)
        return got

    cupy.asnumpy = meanwhile  # type: ignore[method-assign]
    assert pool.num_free == 64
    assert list(pool._groups) == [2]
    assert pool.num_free == 64
    assert list(pool._groups) == []


@pytest.mark.usefixtures("few_threads")
class TestOnTheDevice:
    pytestmark = ON_DEVICE

    def test_each_slot_goes_out_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slots: Any = SlotAllocator(32, device="cuda")
        taken: list[int] = []
        download = type(slots._gpu).download

        def late(gpu: Any, values: Any) -> Any:
            time.sleep(0.002)  # others may launch
            return download(gpu, values)

        monkeypatch.setattr(type(slots._gpu), "download", late)

        def take() -> None:
            for _ in range(8):
                taken.append(slots.alloc())

        at_once(*[take] * 4)
        assert sorted(taken) == list(range(32))
        slots.check()

    @pytest.mark.parametrize("order", ["sorted", "fifo"])
    def test_calls_of_several_launches(self, order: str) -> None:
        pool: Any = PagePool(64, 4, order=order, device="cuda")

        def work() -> None:
            for _ in range(4):
                pages = pool.alloc(8)
                pool.free(pages)
                pool.merge()

        at_once(*[work] * 4)
        pool.check()
        assert pool.available == 64


# Processes.

FORK = """
import os, signal, sys, tempfile, threading
from pathlib import Path
import pytest
from jitalloc import PagePool, SlotAllocator, WrongDevice
from tests.cupy_stand_in import compile_to_text, install
with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
    compile_to_text(patch, Path(folder))
    install(patch)
    pool, streamed = PagePool(8, device="cuda"), PagePool(8, device="cuda", stream=5)
    slots, cpu = SlotAllocator(64, device="cuda"), PagePool(8)
    pages = pool.alloc(2)
    held, done = threading.Event(), threading.Event()
    def hold():
        with pool._calls:
            held.set()
            done.wait()
    other = threading.Thread(target=hold)  # does not live on in the child
    other.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        refused = 0
        for call in (lambda: pool.alloc(1), lambda: pool.free(pages), lambda: pool.num_free,
                     lambda: pool.try_alloc(1), pool.clear, pool.check, lambda: repr(pool),
                     lambda: pool.alloc_batch(pages), lambda: setattr(pool, "stream", 3),
                     lambda: streamed.alloc(1), slots.alloc, slots.clear,
                     lambda: PagePool(8, device="cuda")):
            try:
                call()
            except WrongDevice as error:
                refused += "os.fork" in str(error)
        cpu.alloc(2)
        os._exit(refused)
    done.set()
    other.join()
    pool.free(pages)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@by_stand_in
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")
def test_a_forked_process_is_told_so() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (13, "")
