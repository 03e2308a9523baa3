"""Work that Ctrl-C must not cut in two."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAKE_SECONDS = 0.02  # only after an interruption: how soon the end of the work is noticed


def uninterrupted(work: Callable[[], T]) -> T:
    """Run `work` to its end whatever signal arrives, and return its result.

    Python raises KeyboardInterrupt, and whatever else a signal handler raises, in the main
    thread only. So the work runs in a thread of its own while the caller waits; what arrives
    meanwhile is raised when the work is done. Costs about 0.1 ms: for calls that are rare.
    `threading.Thread` would not do: an interrupted `start` or `join` leaves it believing that
    the thread has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    permit = [True]  # whoever pops it decides: the thread begins, or the caller gives up
    results: list[T] = []
    failures: list[BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            permit.pop()
        except IndexError:
            return
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)
        finally:
            done.release()

    arrived: BaseException | None = None
    try:
        _thread.start_new_thread(run, ())
    except BaseException as error:
        try:
            permit.pop()
        except IndexError:
            arrived = error  # the work has begun, so it is waited for
        else:
            raise
    while not (results or failures):
        try:
            done.acquire(timeout=WAKE_SECONDS)
        except BaseException as error:
            arrived = error
    if arrived is not None:
        raise arrived
    if failures:
        raise failures[0]
    return results[0]
