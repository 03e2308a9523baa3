"""Streams of the machine's GPU, and graphs captured from them.

Where the machine runs in order, what is given to a stream is done at once. At random, it is done as
late as by chance: when somebody waits for it, or for what stands behind it, or at any call before.
While a stream is captured, work is kept for each launch of the graph, with the memory that it
uses: that has to be there still.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.ptx.settings import settings

Work = Callable[[], Any]


class CUDARuntimeError(RuntimeError):
    """What CUDA's runtime says."""


class Memory:
    """An allocation, as far as streams know it.

    Attributes
    ----------
    number : int
        No other allocation has it, ever.
    """

    number = 0


listeners: weakref.WeakSet[Any] = weakref.WeakSet()  # hear of all that waits
LEGACY, MOST_AT_ONCE = 1, 3
_numbers = itertools.count(1 << 20, 16)
_local = threading.local()
_lock = threading.RLock()  # over all queues
_random = Random(settings.seed)
_live: set[int] = set()  # numbers of allocations


class Graph:
    """What was captured."""

    def __init__(self, work: list[tuple[Work, list[int]]]) -> None:
        self.work = work

    def launch(self, stream: Stream | None = None) -> None:
        """Give it all to a stream, or to the current one."""
        for each, uses in self.work:
            (stream or current()).put(lambda each=each, uses=uses: self._run(each, uses), ())

    def _run(self, work: Work, uses: list[int]) -> None:
        if not _live.issuperset(uses):
            raise CUDARuntimeError("the graph uses memory that was freed after its capture")
        work()

    def upload(self, stream: Stream | None = None) -> None:
        """Nothing is to be uploaded."""


class Event:
    """A point in a stream."""

    def __init__(self, *_flags: Any, **_options: Any) -> None:
        self.stream: Stream | None = None
        self.position = 0

    def record(self, stream: Any = None) -> None:
        """Stand behind what a stream has been given; of a foreign one, only `ptr` is looked at."""
        self.stream = current() if stream is None else by_pointer(stream.ptr)
        self.position = self.stream.given

    def reach(self) -> None:
        """Do all that stands before."""
        if self.stream is None:
            raise CUDARuntimeError("the event was never recorded")
        self.stream.run(self.position)

    def synchronize(self) -> None:
        if self.stream is None or self.stream.finished < self.position:
            waits("to wait for an event")
        self.reach()

    @property
    def done(self) -> bool:
        with _lock:
            if self.stream is not None and self.stream.finished < self.position:
                self.stream.run(self.stream.finished + 1)
            return self.stream is None or self.stream.finished >= self.position


class Stream:
    """A stream; `with` makes it the current one of the thread.

    Attributes
    ----------
    ptr : int
    given, finished : int
        How many pieces of work it was given, and how many are done.
    """

    def __init__(self, null: bool = False, non_blocking: bool = False, ptr: int = 0) -> None:
        self.ptr = 0 if null else ptr or next(_numbers)
        self.blocking = not non_blocking
        self.given = self.finished = 0
        self._queue: deque[tuple[Work, Any]] = deque()
        self._kept: list[tuple[Work, list[int]]] | None = None
        _streams[self.ptr] = self

    def put(self, work: Work, uses: Sequence[Memory]) -> None:
        """Take work, and the memory that it needs until it is done."""
        with _lock:
            if self._kept is not None:
                self._kept.append((work, [each.number for each in uses]))
                return
            self._order_with_null()
            self._queue.append((work, uses))
            _busy.add(self)
            self.given += 1
            if settings.mode != "random":
                self.run(self.given)
            elif _random.random() < 0.5:
                other = _random.choice(list(_streams.values()))
                other.run(other.finished + _random.randint(1, MOST_AT_ONCE))

    def _order_with_null(self) -> None:
        """The default stream and those that are not `non_blocking` wait for each other."""
        if not self.ptr:
            for each in list(_streams.values()):
                if each.blocking and each is not self:
                    each.run(each.given)
        elif self.blocking:
            _default.run(_default.given)

    def run(self, until: int) -> None:
        """Do what was given, in order, up to a position."""
        with _lock:
            while self.finished < until and self._queue:
                work, _uses = self._queue.popleft()
                self.finished += 1
                if not self._queue:
                    _busy.discard(self)
                work()

    def __enter__(self) -> Stream:
        _stack().append(self)
        return self

    def __exit__(self, *_what: object) -> None:
        _stack().pop()

    def use(self) -> Stream:
        _stack()[-1] = self
        return self

    def begin_capture(self, mode: Any = None) -> None:
        if self.ptr <= LEGACY or self._kept is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        self._kept = []

    def end_capture(self) -> Graph:
        if self._kept is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not captured")
        made, self._kept = Graph(self._kept), None
        return made

    def is_capturing(self) -> bool:
        return self._kept is not None

    def synchronize(self) -> None:
        waits("to wait for a stream", self)
        self.run(self.given)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        reached = Event()
        reached.stream, reached.position = event.stream, event.position
        self.put(reached.reach, ())


_streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
_busy: set[Stream] = set()  # have work to do, whether somebody still knows them or not
_default = Stream(null=True)
_foreign: list[Stream] = []  # kept: whoever made them does so


def by_pointer(ptr: int, device_id: int = -1) -> Stream:
    """Return a stream by its handle; one that somebody else has made is new."""
    found = _streams.get(0 if ptr == LEGACY else ptr)
    if found is None:
        found = Stream(ptr=ptr)
        _foreign.append(found)
    return found


def _stack() -> list[Stream]:
    if not hasattr(_local, "streams"):
        _local.streams = [_default]
    streams: list[Stream] = _local.streams
    return streams


def current(_device: int = 0) -> Stream:
    """Return the current stream of this thread."""
    return _stack()[-1]


def enqueue(work: Work, uses: Sequence[Memory]) -> None:
    """Give work to the current stream. `uses`: the allocations that it reads or writes."""
    current().put(work, uses)


def settle() -> None:
    """Do what the current stream was given: what follows reads its results, in stream order."""
    stream = current()
    if stream.is_capturing():
        raise CUDARuntimeError("the stand-in knows no arithmetic while a stream is captured")
    stream.run(stream.given)


def waits(what: str, stream: Stream | None = None) -> None:
    """Tell of what waits, and refuse it while the stream is captured."""
    for each in list(listeners):
        each.heard(what)
    if (stream or current()).is_capturing():
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")


def restart() -> None:
    """Begin anew with the seed."""
    _random.seed(settings.seed)


def finish() -> None:
    """Do what all streams were given."""
    for each in list(_streams.values()):
        each.run(each.given)


def born(number: int) -> None:
    """An allocation begins to live."""
    _live.add(number)


def died(number: int) -> None:
    """An allocation is gone."""
    _live.discard(number)
