"""The pool over time, in at most a thousand intervals however long a replay gets.

Time is virtual time in seconds in serve mode; in cache mode, which has no clock, the number of
the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from jitalloc.pool import PagePool

MOST_SAMPLES: Final = 1024
FIRST_INTERVAL: Final = 0.25  # doubles whenever the intervals get too many


class Sample(NamedTuple):
    """One interval.

    Attributes
    ----------
    start : float
        Where it begins.
    used : float
        Pages in use, mean.
    fragmentation : float
        At its end; the mean of several ends where intervals were merged.
    running, waiting : float
        Sequences with and without pages, mean.
    """

    start: float
    used: float
    fragmentation: float
    running: float
    waiting: float


@dataclass(slots=True)
class Timeline:
    """Gathers samples in intervals of equal length, which lie without a gap from 0 on.

    Attributes
    ----------
    pool : PagePool
    samples : list of Sample
        The intervals that are over.
    interval : float
        Their length.
    """

    pool: PagePool
    samples: list[Sample] = field(default_factory=list)
    interval: float = FIRST_INTERVAL
    _end: float = FIRST_INTERVAL
    _length: float = 0.0  # sums of the interval under way
    _used: float = 0.0
    _running: float = 0.0
    _waiting: float = 0.0

    def add(self, start: float, length: float, used: int, running: int, waiting: int) -> None:
        """Say what held from `start`, the end of what was said before, for `length`."""
        end = start + length
        if end >= self._end:
            fragmentation = self.pool.stats().fragmentation
            while end >= self._end:
                self._count(self._end - start, used, running, waiting)
                start = self._end
                self._close(fragmentation)
        self._count(end - start, used, running, waiting)

    def finish(self) -> None:
        """Close the interval under way; there is always one at least."""
        if self._length or not self.samples:
            self._close(self.pool.stats().fragmentation)

    def _count(self, length: float, used: int, running: int, waiting: int) -> None:
        self._length += length
        self._used += used * length
        self._running += running * length
        self._waiting += waiting * length

    def _close(self, fragmentation: float) -> None:
        length = self._length or 1.0
        means = (self._used / length, fragmentation, self._running / length, self._waiting / length)
        self.samples.append(Sample(len(self.samples) * self.interval, *means))
        self._length = self._used = self._running = self._waiting = 0.0
        if len(self.samples) == MOST_SAMPLES:
            pairs = zip(self.samples[::2], self.samples[1::2], strict=True)
            self.samples = [
                Sample(a.start, *((x + y) / 2 for x, y in zip(a[1:], b[1:], strict=True)))
                for a, b in pairs
            ]
            self.interval *= 2
        self._end = (len(self.samples) + 1) * self.interval
