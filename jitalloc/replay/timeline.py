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

Held = tuple[int, int, int, int]
"""Pages that sequences hold, pages cached beside them, running and waiting sequences."""


class Sample(NamedTuple):
    """One interval.

    Attributes
    ----------
    start : float
        Where it begins.
    held, cached : float
        Pages that sequences hold, and pages that are only cached; means.
    running, waiting : float
        Sequences with and without pages, means.
    fragmentation : float
        At its end; the mean of several ends where intervals were merged.
    lookup_tokens, hit_tokens : int
        Tokens of the prompts that were looked up in it, and how many of them were found.
    """

    start: float
    held: float
    cached: float
    running: float
    waiting: float
    fragmentation: float
    lookup_tokens: int
    hit_tokens: int


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
    _held: float = 0.0
    _cached: float = 0.0
    _running: float = 0.0
    _waiting: float = 0.0
    _lookup_tokens: int = 0
    _hit_tokens: int = 0

    def add(self, start: float, length: float, held: Held) -> None:
        """Say what held from `start`, the end of what was said before, for `length`."""
        end = start + length
        if end >= self._end:
            fragmentation = self.pool.stats().fragmentation or 0.0
            while end >= self._end:
                self._count(self._end - start, held)
                start = self._end
                self._close(fragmentation)
        self._count(end - start, held)

    def look_up(self, tokens: int, found: int) -> None:
        """Say how much of a prompt was found, in the interval under way."""
        self._lookup_tokens += tokens
        self._hit_tokens += found

    def finish(self) -> None:
        """Close the interval under way; there is always one at least."""
        if self._length or not self.samples:
            self._close(self.pool.stats().fragmentation or 0.0)
        elif self._lookup_tokens:  # of requests that never got a page, and took no time
            last = self.samples[-1]
            self.samples[-1] = last._replace(
                lookup_tokens=last.lookup_tokens + self._lookup_tokens,
                hit_tokens=last.hit_tokens + self._hit_tokens,
            )

    def _count(self, length: float, held: Held) -> None:
        self._length += length
        self._held += held[0] * length
        self._cached += held[1] * length
        self._running += held[2] * length
        self._waiting += held[3] * length

    def _close(self, fragmentation: float) -> None:
        length = self._length or 1.0
        sums = (self._held, self._cached, self._running, self._waiting)
        held, cached, running, waiting = (each / length for each in sums)
        start = len(self.samples) * self.interval
        tokens = (self._lookup_tokens, self._hit_tokens)
        self.samples.append(Sample(start, held, cached, running, waiting, fragmentation, *tokens))
        self._length = self._held = self._cached = self._running = self._waiting = 0.0
        self._lookup_tokens = self._hit_tokens = 0
        if len(self.samples) == MOST_SAMPLES:
            pairs = zip(self.samples[::2], self.samples[1::2], strict=True)
            self.samples = [_merged(a, b) for a, b in pairs]
            self.interval *= 2
        self._end = (len(self.samples) + 1) * self.interval


def _merged(a: Sample, b: Sample) -> Sample:
    held, cached, running, waiting, fragmentation = (
        (x + y) / 2 for x, y in zip(a[1:6], b[1:6], strict=True)
    )
    tokens = (a.lookup_tokens + b.lookup_tokens, a.hit_tokens + b.hit_tokens)
    return Sample(a.start, held, cached, running, waiting, fragmentation, *tokens)
