"""Quiet at a fork: what has a lock stands still while `os.fork` copies the process.

Without it, a fork while another thread is inside a pool would leave the child a lock word, or a
lock of the host, that nobody ever gives back. So the forking thread takes all of them before, in
the order in which calls take them, and parent and child give theirs back. A call that another
thread has begun ends first: a fork waits for it, at most as long as a kernel takes to compile.

Whoever makes an owner of a lock calls `keep_quiet`. Owners are known weakly; to be known costs
0.8 us (`bench_upkeep.Making`).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jitalloc import _jit
from jitalloc._intrinsics import try_lock, unlock
from jitalloc._jit import kernel
from jitalloc.state import FORKING, LOCK

LAST: Final = 2**62  # place of a lock that is taken behind all others

_numbers = itertools.count()
_knowing = threading.RLock()  # no owner is made between the look at all of them and the fork
_owners: dict[int, _Owner] = {}
_taken: list[Any] = []  # locks, and owners whose word is taken, by the thread that forks


class _Owner(NamedTuple):
    """Who has a lock, by a weak reference, a lock of the host, a lock word, or both."""

    known: weakref.ref[Any]
    place: int
    lock: Any
    slab: str | None


@kernel("int64(int64[::1], int64)")
def forking_hold_cpu(slab: NDArray[np.int64], take: int) -> int:
    """Mutates the lock of a slab: takes it for a fork, or gives back what was taken so.

    Reads `take`, requires 1 or 0; returns whether the lock is now as it was asked for.
    """
    if take == 0:
        if slab[LOCK] == FORKING:
            unlock(slab)
        return 1
    if not try_lock(slab):
        return 0
    slab[LOCK] = FORKING
    return 1


def keep_quiet(owner: Any, place: int = LAST, lock: Any = None, slab: str | None = None) -> None:
    """Let `owner` stand still at every fork, as long as it lives.

    Parameters
    ----------
    owner : object
        Can be referred to weakly.
    place : int
        Locks of lower places are taken first.
    lock : RLock, optional
        A lock of the host.
    slab : str, optional
        Name of the attribute that holds a slab with a lock word, which may be replaced, or not be
        there: a pool of the GPU has one on the host where a prefix cache stands on it. Taken when
        all locks of the host are.
    """
    number = next(_numbers)

    def forget(_known: weakref.ref[Any], forget: Any = _owners.pop) -> None:
        forget(number, None)

    with _knowing:
        _owners[number] = _Owner(weakref.ref(owner, forget), place, lock, slab)


@contextmanager
def stand_still(owner: Any, slab: str) -> Iterator[NDArray[np.int64]]:
    """Keep every loop out of a slab of `owner` for the time of a `with` block, as at a fork."""
    _hold(owner, slab)
    try:
        yield getattr(owner, slab)
    finally:
        forking_hold_cpu.run(getattr(owner, slab), 0)


def _before() -> None:
    _knowing.acquire()
    owners = [(*each, each.known()) for each in list(_owners.values())]
    for _known, _place, lock, _slab, owner in sorted(owners, key=lambda each: each[1]):
        if lock is not None and owner is not None:
            _taken.append(lock)
            lock.acquire()
    for _known, _place, _lock, slab, owner in owners:
        if slab is not None and getattr(owner, slab, None) is not None:
            _taken.append((owner, slab))
            _hold(owner, slab)
    # Behind the words: a call that keeps its word over several loops may have one to compile.
    _taken.append(_jit.compiling)
    _jit.compiling.acquire()


def _hold(owner: Any, slab: str) -> None:
    """Take the lock word of a slab, which may be another one by and by."""
    pause = 1e-6
    while not forking_hold_cpu.run(getattr(owner, slab), 1):
        time.sleep(pause)
        pause = min(2 * pause, 1e-3)


def _after() -> None:
    try:
        while _taken:
            _give_back(_taken.pop())
    finally:  # whatever goes wrong: without it no owner could be made any more
        _knowing.release()


def _give_back(taken: Any) -> None:
    if isinstance(taken, tuple):
        owner, slab = taken
        forking_hold_cpu.run(getattr(owner, slab), 0)
    else:
        with suppress(RuntimeError):  # Ctrl-C has come before it was taken
            taken.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
