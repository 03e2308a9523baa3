"""What native code calls at accesses of global memory where launches are watched."""

from __future__ import annotations

from numba import carray

from tests.ptx.compiled import callback, load_bytes, store_bytes
from tests.ptx.layout import BLOCK_WORDS, LAUNCH_WORDS, THREAD_HEAD, Launch, Thread, Watch
from tests.ptx.races import meet_at_atomic, race_check, race_fence
from tests.ptx.weak import weak_atomic, weak_fence, weak_load, weak_store


@callback(3)
def watch_load(launch, block, thread, at, size, line):  # type: ignore[no-untyped-def]
    """Return what a thread reads."""
    L, B, T = (
        carray(launch, (LAUNCH_WORDS,)),
        carray(block, (BLOCK_WORDS,)),
        carray(thread, (THREAD_HEAD,)),
    )
    if L[Launch.WATCH] & Watch.RACE:
        race_check(L, B, T, at, size, 0, 0, line, 0)
    if L[Launch.WATCH] & Watch.WEAK:
        return weak_load(L, B, at, size)
    return load_bytes(at, size)


@callback(4)
def watch_store(launch, block, thread, at, value, size, line):  # type: ignore[no-untyped-def]
    """Store for a thread."""
    L, B, T = (
        carray(launch, (LAUNCH_WORDS,)),
        carray(block, (BLOCK_WORDS,)),
        carray(thread, (THREAD_HEAD,)),
    )
    if L[Launch.WATCH] & Watch.RACE:
        weak = L[Launch.WATCH] & Watch.WEAK
        seen = weak_load(L, B, at, size) if weak else load_bytes(at, size)
        race_check(L, B, T, at, size, 1, 0, line, int(seen == value))
    if L[Launch.WATCH] & Watch.WEAK:
        weak_store(L, B, T, at, value, size)
    else:
        store_bytes(at, value, size)
    return 0


@callback(3)
def watch_atomic(launch, block, thread, at, size, line):  # type: ignore[no-untyped-def]
    """Before an atomic."""
    L, B, T = (
        carray(launch, (LAUNCH_WORDS,)),
        carray(block, (BLOCK_WORDS,)),
        carray(thread, (THREAD_HEAD,)),
    )
    if L[Launch.WATCH] & Watch.RACE:
        race_check(L, B, T, at, size, 1, 1, line, 0)
        meet_at_atomic(L, B, T, at)
    if L[Launch.WATCH] & Watch.WEAK:
        weak_atomic(L, B, at, size)
    return 0


@callback(1)
def watch_fence(launch, block, thread, _line):  # type: ignore[no-untyped-def]
    """At a fence of the whole device."""
    L, B, T = (
        carray(launch, (LAUNCH_WORDS,)),
        carray(block, (BLOCK_WORDS,)),
        carray(thread, (THREAD_HEAD,)),
    )
    if L[Launch.WATCH] & Watch.RACE:
        race_fence(L, B, T)
    else:
        T[Thread.FENCES] += 1
    if L[Launch.WATCH] & Watch.WEAK:
        weak_fence(L, B, T)
    return 0
