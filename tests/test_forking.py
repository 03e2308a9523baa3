"""`os.fork` while other threads are inside pools, slots and caches: the child can use its copy."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    OutOfPages,
    PagedKVCache,
    PagePool,
    PrefixCache,
    SlotAllocator,
    SlotPrefixCache,
    _jit,
    forking,
)
from jitalloc.forking import forking_hold_cpu, keep_quiet
from jitalloc.state import FORKING, LOCK, RETIRED
from tests.test_processes import compiled

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="needs os.fork"),
    # What they warn of, threads at a fork, is what is tested here.
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]

PATIENCE = 60.0  # seconds; a child that waits for a lock would wait for ever


def in_a_child(work: Callable[[], None], patience: float = PATIENCE) -> None:
    """Run `work` in a fork of this process, which has to end well, and in time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # no test of pytest's ever goes on here
        try:
            work()
            os.write(writing, b"well")
        except BaseException as error:
            os.write(writing, repr(error).encode()[:1000])
        finally:
            os._exit(0)
    os.close(writing)
    try:
        said = b"no answer"
        if select.select([reading], [], [], patience)[0]:
            said = os.read(reading, 1000)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)
        os.waitpid(child, 0)
    assert said == b"well"


def repeat(functions: list[Callable[[], None]], work: Callable[[], None]) -> None:
    """Run functions again and again in threads of their own while `work` runs in this one."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                function()
        except BaseException as error:
            failures.append(error)

    for function in functions:
        function()  # compiles what it needs
    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "the parent hangs"
    assert not failures, failures


class Everything:
    """A pool, caches on it, slots and their cache; a thread for each goes in and out."""

    def __init__(self) -> None:
        self.pool = PagePool(4000, 4)
        self.prefix = PrefixCache(self.pool)
        self.cache = PagedKVCache(self.pool, 40, 60, prefix_cache=self.prefix)
        self.slots = SlotAllocator(100_000)
        self.entries = SlotPrefixCache(50, 400)
        self.names = 0

    def pages(self) -> None:
        for _ in range(20):
            with contextlib.suppress(OutOfPages):
                self.pool.free(self.pool.alloc(1500)[::-1].copy())

    def upkeep(self) -> None:
        self.pool.snapshot()
        self.pool.stats()
        self.pool.resize(self.pool.num_pages)  # takes every lock; moves no page that a thread holds

    def sequences(self) -> None:
        self.names += 1
        tokens = np.repeat(Random(self.names).choices(range(3), k=50), 4)
        if "a" in self.cache:  # a child may be made between the calls of the thread
            self.cache.free("a")
        with contextlib.suppress(OutOfPages):
            self.cache.allocate("a", tokens=tokens, namespace=self.names)
            self.cache.append("a", 5)

    def look_up(self) -> None:
        with self.prefix.match([1] * 100, namespace=self.names):
            pass

    def slot(self) -> None:
        self.slots.free_batch(self.slots.alloc_batch(40_000))

    def entry(self) -> None:
        tokens = Random(self.names).choices(range(3), k=300)
        self.entries.clear()
        for slot in range(10):
            self.entries.insert(tokens[slot:], slot, 1)
            self.entries.find(tokens)

    def work(self) -> list[Callable[[], None]]:
        return [
            *(self.pages, self.sequences, self.look_up),
            *(self.upkeep, self.slot, self.entry),
        ]

    def use(self) -> None:
        """Use all of it, as a child or a parent does, and look whether it is sound."""
        for each in self.work():
            each()
        self.cache.check()
        self.prefix.check()
        self.pool.resize(5000)
        self.slots.check()
        self.entries.check()


@compiled
def test_a_child_uses_what_other_threads_were_inside_of() -> None:
    everything = Everything()
    Everything().use()  # compiles what children need

    def fork() -> None:
        for _ in range(25):
            in_a_child(everything.use)
            time.sleep(1e-3)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        repeat(everything.work(), fork)
    finally:
        sys.setswitchinterval(interval)
    everything.use()


def test_who_has_no_slab_on_the_host_is_passed_over() -> None:
    """As a pool of the GPU, where no prefix cache stands on it."""

    class Elsewhere:
        pass

    owners, lock = [Elsewhere(), PagePool(8)], threading.RLock()
    keep_quiet(owners[0], lock=lock, slab="_host")
    in_a_child(lambda: owners[1].free(owners[1].alloc(2)))
    made = threading.Thread(target=lambda: owners.append(PagePool(8)), daemon=True)
    made.start()
    made.join(PATIENCE)
    assert len(owners) == 3, "nobody can be made behind the fork"
    with ThreadPoolExecutor() as others:
        assert others.submit(lock.acquire, timeout=1).result(), "still held"


@compiled
def test_threads_fork_at_the_same_time() -> None:
    everything = Everything()

    def fork() -> None:
        in_a_child(everything.use)

    repeat(
        [everything.pages, everything.sequences],
        lambda: repeat([fork, fork], lambda: time.sleep(1)),
    )
    everything.use()


def add(pool: PagePool, answers: multiprocessing.SimpleQueue[int]) -> None:
    answers.put(int(pool.alloc(3).sum()))


@compiled
def test_processes_of_multiprocessing_inherit_a_pool() -> None:
    pool = PagePool(100)
    pool.alloc(10)
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[int] = context.SimpleQueue()

    def start() -> None:
        for _ in range(5):
            process = context.Process(target=add, args=(pool, answers))
            process.start()
            process.join(PATIENCE)
            assert process.exitcode == 0

    def look() -> None:
        pool.stats()
        pool.free(pool.alloc(0))

    repeat([look, look], start)
    assert [answers.get() for _ in range(5)] == [33] * 5
    assert pool.num_used == 10


def test_a_fork_waits_for_a_lock_word_and_marks_it() -> None:
    pool = PagePool(8)
    pool._slab[LOCK] = 1  # as a loop does
    threading.Timer(0.3, lambda: pool._slab.__setitem__(LOCK, 0)).start()
    begun = time.monotonic()
    in_a_child(lambda: pool.check(held=[]))
    assert time.monotonic() - begun > 0.2
    assert pool._slab[LOCK] == 0
    forking._before()
    assert pool._slab[LOCK] == FORKING
    forking._after()
    assert pool._slab[LOCK] == 0


def test_a_fork_waits_for_the_locks_of_the_host() -> None:
    pool = PagePool(8)
    prefix = PrefixCache(pool)
    cache = PagedKVCache(pool, 2, 2, prefix_cache=prefix)
    for lock in (pool._shape, prefix.lock, cache.lock, _jit.compiling):
        held = threading.Event()

        def hold(lock: Any = lock, held: threading.Event = held) -> None:
            with lock:
                held.set()
                time.sleep(0.2)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(PATIENCE)
        begun = time.monotonic()
        in_a_child(lambda: cache.allocate("a", 3))
        assert time.monotonic() - begun > 0.1
        thread.join()
    assert len(cache) == 0


def test_a_child_made_within_a_call_keeps_the_lock_of_that_call() -> None:
    pool = PagePool(8)
    with pool._shape:

        def use() -> None:
            pool._shape.release()  # what the call would do at its end
            pool.resize(9)

        in_a_child(use)
        assert pool._shape._is_owned()  # type: ignore[attr-defined]
    pool.resize(9)


def test_a_word_that_is_not_a_forks_is_not_given_back() -> None:
    slab = PagePool(8)._slab
    for value in (1, RETIRED):
        slab[LOCK] = value
        assert forking_hold_cpu.run(slab, 1) == 0
        assert forking_hold_cpu.run(slab, 0) == 1
        assert slab[LOCK] == value
    slab[LOCK] = 0
    assert forking_hold_cpu.run(slab, 1) == 1
    assert forking_hold_cpu.run(slab, 1) == 0
    assert forking_hold_cpu.run(slab, 0) == 1
    assert slab[LOCK] == 0


def test_a_group_of_another_thread_is_closed_in_the_child() -> None:
    pool = PagePool(8)
    pages = pool.alloc(4)
    entered, leave = threading.Event(), threading.Event()

    def gather() -> None:
        with pool.free_group():
            pool.free(pages[:1])
            entered.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=gather)
    thread.start()
    entered.wait(PATIENCE)

    def use() -> None:
        with pool.free_group() as group:
            pool.free(pages[1:])
        assert group.released == 3

    in_a_child(use)
    leave.set()
    thread.join()
    assert pool.free(pages[1:]) == 3

    def within() -> None:
        with pool.free_group() as group:
            pool.free(pool.alloc(2))
            in_a_child(lambda: group.__exit__(None, None, None))
        assert group.released == 2

    within()


def test_owners_are_known_as_long_as_they_live() -> None:
    gc.collect()
    before = len(forking._owners)
    pool = PagePool(8)
    prefix = PrefixCache(pool)
    cache = PagedKVCache(pool, 2, 2, prefix_cache=prefix)
    slots, entries = SlotAllocator(4), SlotPrefixCache(2, 2)
    assert len(forking._owners) == before + 5
    gone = weakref.ref(pool)
    del pool, prefix, cache, slots, entries
    gc.collect()
    assert gone() is None
    assert len(forking._owners) == before


@compiled
def test_a_new_namespace_while_the_pool_is_defragmented() -> None:
    """A cache of sequences holds its lock, and takes that of its prefix cache, in this order."""
    pool = PagePool(100, 4)
    prefix = PrefixCache(pool)
    cache = PagedKVCache(pool, 2, 10, prefix_cache=prefix)
    names = iter(range(10**9))

    def allocate() -> None:
        cache.allocate("a", 8, namespace=next(names))
        cache.free("a")

    repeat([allocate, pool.defragment], lambda: time.sleep(1))  # type: ignore[list-item]
    cache.check(held=[])
