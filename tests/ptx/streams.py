"""Streams of the machine's GPU, and graphs captured from them.

What is given to a stream is done at once. While a stream is captured it is kept instead, for each
launch of the graph, with the memory that it uses: that has to be there still.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any


class CUDARuntimeError(RuntimeError):
    """What CUDA's runtime says."""


_numbers = itertools.count(1 << 20, 16)
_local = threading.local()


class Graph:
    """What was captured."""

    def __init__(self, work: list[tuple[Callable[[], Any], list[int]]]) -> None:
        self.work = work

    def launch(self, stream: Any = None) -> None:
        """Do it all, in the order in which it was captured."""
        from tests.ptx.device_memory import is_live

        for each, uses in self.work:
            if not all(is_live(number) for number in uses):
                raise CUDARuntimeError("the graph uses memory that was freed after its capture")
            each()

    def upload(self, stream: Any = None) -> None:
        """Nothing is to be uploaded."""


class Event:
    """A point in a stream; all before it is done already."""

    def __init__(self, *_options: Any, **_more: Any) -> None:
        self.recorded = False

    def record(self, stream: Any = None) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        waits("to wait for an event")

    @property
    def done(self) -> bool:
        return True


class Stream:
    """A stream; `with` makes it the current one of the thread."""

    def __init__(self, null: bool = False, non_blocking: bool = False, ptr: int = 0) -> None:
        self.ptr = 0 if null else ptr or next(_numbers)
        self.kept: list[tuple[Callable[[], Any], list[int]]] | None = None

    def __enter__(self) -> Stream:
        _stack().append(self)
        return self

    def __exit__(self, *_what: object) -> None:
        _stack().pop()

    def use(self) -> Stream:
        _stack()[-1] = self
        return self

    def begin_capture(self, mode: Any = None) -> None:
        if not self.ptr or self.kept is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        self.kept = []

    def end_capture(self) -> Graph:
        if self.kept is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        made, self.kept = Graph(self.kept), None
        return made

    def is_capturing(self) -> bool:
        return self.kept is not None

    def synchronize(self) -> None:
        waits("to wait for a stream", self)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if not event.recorded:
            raise CUDARuntimeError("the event was never recorded")


def external(ptr: int, device_id: int = -1) -> Stream:
    """Return a stream that somebody else has made."""
    return _known.setdefault(ptr, Stream(ptr=ptr)) if ptr else _default


_default = Stream(null=True)
_known: dict[int, Stream] = {1: _default}


def _stack() -> list[Stream]:
    if not hasattr(_local, "streams"):
        _local.streams = [_default]
    streams: list[Stream] = _local.streams
    return streams


def current(_device: int = 0) -> Stream:
    """Return the current stream of this thread."""
    return _stack()[-1]


def enqueue(work: Callable[[], Any], uses: Sequence[int]) -> None:
    """Give work to the current stream. `uses`: the allocations that it reads or writes."""
    stream = current()
    if stream.kept is not None:
        stream.kept.append((work, list(uses)))
    else:
        work()


def waits(what: str, stream: Stream | None = None) -> None:
    """Refuse what waits while the stream is captured."""
    if (stream or current()).kept is not None:
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")
