"""Many processes on one cache of compiled kernels, many threads on one pool, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest

from jitalloc import OutOfPages, PagedKVCache, PageInUse, PagePool, _jit
from jitalloc.pool.state import pool_slab_words

ROOT = Path(__file__).parents[1]

# Each process compiles, or loads, three kernels that compile fast.
SHORT_RUN = """
import jitalloc
pool = jitalloc.PagePool(100)
pages = pool.alloc(70)
print(pages.sum(), pool.merge(), pool.num_free)
"""


def start(code: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Run Python code in a process whose kernels are cached in `folder`."""
    own = {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    inherited = {key: each for key, each in os.environ.items() if key != "NUMBA_DISABLE_JIT"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env={**inherited, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> str:
    """Wait for the end of a process, which must be a good one; return what it printed."""
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
    assert process.returncode == 0, err[-3000:]
    assert err == ""
    return out


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder, and when it was written."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in found}


# Processes.


def test_eight_processes_start_at_once_on_an_empty_cache(tmp_path: Path) -> None:
    processes = [start(SHORT_RUN, tmp_path) for _ in range(8)]
    assert [finish(process) for process in processes] == ["2415 0 30\n"] * 8
    compiled = files(tmp_path)
    assert sum(name.endswith(".nbc") for name in compiled) == 3
    assert sum(name.endswith(".nbi") for name in compiled) == 3
    # The ninth only reads.
    assert finish(start(SHORT_RUN, tmp_path)) == "2415 0 30\n"
    assert files(tmp_path) == compiled


def test_the_cache_can_be_switched_off(tmp_path: Path) -> None:
    assert finish(start(SHORT_RUN, tmp_path, JITALLOC_CACHE="0")) == "2415 0 30\n"
    assert files(tmp_path) == {}


def test_a_cache_that_cannot_be_written_is_done_without() -> None:
    assert finish(start(SHORT_RUN, Path("/dev/null/nowhere"))) == "2415 0 30\n"


def test_a_damaged_cache_is_compiled_anew(tmp_path: Path) -> None:
    finish(start(SHORT_RUN, tmp_path))
    for name in files(tmp_path):
        Path(name).write_bytes(Path(name).read_bytes()[:50])
    assert finish(start(SHORT_RUN, tmp_path)) == "2415 0 30\n"


# Threads.

# As plain Python, taking the lock is no single step.
compiled = pytest.mark.skipif(_jit.JIT_DISABLED, reason="needs the compiled lock")


def hammer(work: list[object], seconds: float = 1.0) -> None:
    """Run functions in threads of their own, again and again, until the time is up."""
    stop = threading.Event()
    for function in work:
        function()  # type: ignore[operator]  # compiles what it needs

    def repeat(function: object) -> int:
        turns = 0
        while not stop.is_set():
            function()  # type: ignore[operator]
            turns += 1
        return turns

    with ThreadPoolExecutor(len(work)) as threads:
        futures = [threads.submit(repeat, function) for function in work]
        time.sleep(seconds)
        stop.set()
    assert all(future.result() > 0 for future in futures)


class Worker:
    """A thread's caller: it holds pages that nobody else may be given."""

    def __init__(self, pool: PagePool, seed: int, owner: np.ndarray) -> None:
        self.pool, self.random, self.owner, self.me = pool, Random(seed), owner, seed
        self.held: list[int] = []

    def turn(self) -> None:
        if self.random.random() < 0.5:
            try:
                pages = self.pool.alloc(self.random.randrange(1, 40))
            except OutOfPages:
                return
            assert (self.owner[pages] == 0).all(), "a page was handed out twice"
            self.owner[pages] = self.me
            self.held += pages.tolist()
        else:
            self.random.shuffle(self.held)
            pages = np.array([self.held.pop() for _ in range(len(self.held) // 2)], np.int32)
            assert (self.owner[pages] == self.me).all()
            self.owner[pages] = 0
            assert self.pool.free(pages) == pages.size
            self.pool.merge()


@compiled
def test_two_threads_hammer_one_pool(order: str) -> None:
    pool, owner = PagePool(200, 4, order=order), np.zeros(200, np.int64)
    workers = [Worker(pool, seed, owner) for seed in (1, 2)]
    hammer([worker.turn for worker in workers])
    pool.check(held=[page for worker in workers for page in worker.held])


@compiled
def test_calls_that_fail_disturb_nobody(order: str) -> None:
    pool, owner = PagePool(200, 4, order=order), np.zeros(200, np.int64)
    mine = pool.alloc(100)
    owner[mine] = 9
    worker = Worker(pool, 1, owner)

    def fail() -> None:
        with pytest.raises(ValueError, match="freed more often"):
            pool.free([*mine.tolist(), int(mine[0])])

    def read() -> None:
        assert (pool.refcount(mine) == 1).all()
        assert pool.admit([101]) == 0
        assert 100 <= pool.num_used <= 200
        pool.check()

    last = int(mine[-1]) * 4

    def decode() -> None:
        assert pool.alloc_decode([2], [last]).tolist() == [last + 1]
        assert pool.alloc_extend([1], [4], [last]).tolist() == [last + 1, last + 2, last + 3]

    hammer([fail, read, decode, worker.turn])
    pool.check(held=[*mine.tolist(), *worker.held])


@compiled
def test_threads_while_the_pool_is_resized_and_copied() -> None:
    pool, owner = PagePool(200, 4), np.zeros(400, np.int64)
    workers = [Worker(pool, seed, owner) for seed in (1, 2)]
    random = Random(3)

    def resize() -> None:
        with contextlib.suppress(PageInUse):
            pool.resize(random.randrange(200, 401))
        time.sleep(1e-4)

    def copy() -> None:
        snapshot = pool.snapshot()
        assert pool_slab_words(snapshot.num_pages) == snapshot.slab.size
        other = PagePool(1, 4)
        other.restore(snapshot)
        other.check()

    def look() -> None:
        stats = pool.stats()
        assert stats.free + stats.released + stats.used == stats.num_pages
        assert 0 <= stats.used <= stats.peak_used
        assert stats.allocated - stats.freed == stats.used
        pool.check()

    hammer([workers[0].turn, workers[1].turn, resize, copy, look])
    pool.check(held=[page for worker in workers for page in worker.held])


@compiled
def test_threads_with_sequences_of_their_own() -> None:
    pool = PagePool(100, 4)
    cache = PagedKVCache(pool, 20, 10)

    def live(name: str) -> None:
        try:
            cache.allocate(name, 5)
            cache.fork(name, (name, "fork"))
            cache.append_batch(cache.rows([name, (name, "fork")]), 3)
            rows = cache.rows([name, (name, "fork")])
            assert cache.seq_lens(rows).tolist() == [8, 8]
            first, second = cache.block_tables(rows, width=2).tolist()
            assert first[0] == second[0]
            assert first[1] != second[1]
        finally:
            cache.free_batch(cache.rows([each for each in (name, (name, "fork")) if each in cache]))

    def defragment() -> None:
        pool.defragment()
        time.sleep(0.001)

    hammer([lambda: live("a"), lambda: live("b"), lambda: cache.snapshot()])
    cache.check(held=[])
    assert len(cache) == 0
    hammer([lambda: live("a"), defragment], seconds=0.5)
    cache.check(held=[])


# Ctrl-C.

INTERRUPTED = """
import random, signal
import jitalloc
jitalloc.warmup()
random.seed(1)

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
{make}
interrupted = 0
for i in range(600):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.random() * 3e-4 + 1e-6)
            while True:
{work}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
{check}
print(interrupted > 400)
"""


def interrupt_often(folder: Path, make: str, work: str, check: str) -> None:
    def indented(text: str, depth: int) -> str:
        return "\n".join(" " * depth + line for line in text.strip().splitlines())

    code = INTERRUPTED.format(make=make, work=indented(work, 16), check=indented(check, 4))
    # On an empty cache of kernels it compiles them all first.
    assert finish(start(code, folder), timeout=300) == "True\n"


def test_an_interrupted_pool_is_neither_locked_nor_broken(kernels: Path) -> None:
    interrupt_often(
        kernels,
        "pool = jitalloc.PagePool(64, 4); snapshot = pool.snapshot()",
        """
pages = pool.alloc(5)
pool.free(pages[:3])
with pool.free_group():
    pool.free(pages[3:])
pool.alloc_extend([0, 0], [9, 5], [-1, -1])
pool.defragment()
pool.resize(60 + random.randrange(10))
pool.clear()
pool.restore(snapshot)
""",
        """
pool.check()
pool.clear()
assert pool.alloc(pool.num_pages).size == pool.num_pages
pool.clear()
""",
    )


def test_an_interrupted_cache_is_neither_locked_nor_broken(kernels: Path) -> None:
    interrupt_often(
        kernels,
        """
pool = jitalloc.PagePool(64, 4)
cache = jitalloc.PagedKVCache(pool, 8, 8)
snapshot = cache.snapshot()
""",
        """
cache.allocate("a", 5)
cache.fork("a", "b")
cache.append("b", 2)
cache.evict()
cache.evict_to(0.0)
cache.allocate("c", 3)
cache.free("c")
cache.restore(snapshot)
""",
        """
cache.check(held=[])
cache.clear()
pool.clear()
""",
    )


# A test run in the background of a shell ignores Ctrl-C, and so would its children.
LOOP = """
import signal, jitalloc
signal.signal(signal.SIGINT, signal.default_int_handler)
pool = jitalloc.PagePool(100)
pool.free(pool.alloc(1))
print("ready", flush=True)
while True:
    pool.free(pool.alloc(70))
"""


def test_ctrl_c_ends_a_busy_process(kernels: Path) -> None:
    with start(LOOP, kernels) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        try:
            _out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err
