"""Work that Ctrl-C must not cut in two."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def uninterrupted(work: Callable[[], T]) -> T:
    """Run `work` to its end whatever signal arrives, and return its result.

    Python raises KeyboardInterrupt, and whatever else a signal handler raises, in the main
    thread only. So the work runs in a thread of its own while the caller waits; what arrives
    meanwhile is raised when the work is done. Costs about 0.1 ms: for calls that are rare.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="jitalloc-upkeep")
    arrived: BaseException | None = None
    try:
        thread.start()
    except BaseException as error:
        arrived = error
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:
            arrived = error
    if arrived is not None:
        raise arrived
    if failures:
        raise failures[0]
    return results[0]
