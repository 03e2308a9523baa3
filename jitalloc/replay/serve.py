"""Serve mode: continuous batching on a virtual clock, as a serving engine does it.

In each step every running sequence decodes one token, and what is left of the step's token
budget reads prompts in chunks, first come, first served. A request is admitted when the pages
of its whole prompt are available, with one to spare for each sequence that runs; it takes them
at once, so that prompts never race each other for the last pages. Each token computed gets its
slot: a decoded one from the append, those of a prompt from the slot mapping of its chunk. When
decoding runs out of pages, the newest sequence gives all of its own back and waits, first in
line, to be computed again. Arrival order is kept throughout, so the oldest always gets on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from time import perf_counter_ns
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import OutOfPages
from jitalloc.replay.meter import Meter
from jitalloc.replay.options import ReplayOptions
from jitalloc.replay.request import Request

NEVER: Final = 2**63 - 1


class _Sequence:
    """A request on its way: waiting, reading its prompt, or decoding."""

    __slots__ = ("key", "left", "output", "prompt", "reached", "row")

    def __init__(self, key: int, request: Request) -> None:
        self.key = key
        self.prompt = request.input_length  # tokens to read before decoding goes on
        self.output = request.output_length  # tokens still to decode then
        self.left = 0  # of `prompt`, still to read
        self.reached = 0  # tokens ever computed: what lies below is computed again
        self.row = -1


class Server:
    """Serves a stream of requests from one cache, step by step.

    Parameters
    ----------
    requests : iterable of Request
        By arrival.
    options : ReplayOptions
    meter : Meter
        Holds the pool and the cache; gets the figures.
    """

    def __init__(self, requests: Iterable[Request], options: ReplayOptions, meter: Meter) -> None:
        self.options = options
        self.meter = meter
        self.pool = meter.pool
        self.cache = meter.cache
        self.waiting: deque[_Sequence] = deque()
        self.reading: deque[_Sequence] = deque()
        self.decoding: list[_Sequence] = []  # oldest first, as are the two arrays
        self._rows: NDArray[np.int32] = np.empty(0, np.int32)
        self._ends: NDArray[np.int64] = np.empty(0, np.int64)  # step after which each is done
        self._next_end = NEVER
        self._step = 0
        self._step_seconds = options.step_ms / 1e3
        self._token_seconds = options.token_us / 1e6
        self._requests = iter(requests)
        self._next: Request | None = None
        self._pull()

    def step(self) -> bool:
        """Run one step; False when all has been served."""
        meter = self.meter
        if self._next is not None and self._next.arrival <= meter.now:
            self._arrive()
        if self.waiting:
            self._admit()
        if not self.decoding and not self.reading:
            # Nothing waits either: alone, whatever was not rejected fits.
            if self._next is None:
                return False
            meter.hold(meter.now, self._next.arrival - meter.now, 0, 0)
            meter.now = self._next.arrival
            return True

        self._step += 1
        if self.decoding:
            self._decode()
        tokens = len(self.decoding)
        joining: list[_Sequence] = []
        if self.reading:
            tokens += self._read(self.options.step_tokens - tokens, joining)
        if self.options.export != "none":
            self._export(joining)
        seconds = self._step_seconds + self._token_seconds * tokens
        running = len(self.decoding) + len(self.reading) + len(joining)
        meter.hold(meter.now, seconds, running, len(self.waiting))
        meter.now += seconds
        if self._step == self._next_end or joining:
            self._join(joining)
            self._finish()
        meter.end_step()
        return True

    def _pull(self) -> None:
        self._next = next(self._requests, None)

    def _arrive(self) -> None:
        meter = self.meter
        while self._next is not None and self._next.arrival <= meter.now:
            request = self._next
            if request.input_length + request.output_length > self.options.length_limit:
                meter.rejected += 1
            else:
                self.waiting.append(_Sequence(meter.seen, request))
            meter.seen += 1
            self._pull()

    def _admit(self) -> None:
        meter, size = self.meter, self.options.page_size
        while self.waiting:
            running = len(self.decoding) + len(self.reading)
            if running == self.options.max_batch:
                break
            sequence = self.waiting[0]
            pages = -(-sequence.prompt // size)
            start = perf_counter_ns()
            fits = pages + running <= self.pool.available
            if fits:
                cached = self.cache.allocate(sequence.key, sequence.prompt)
                sequence.row = self.cache.row(sequence.key)
                sequence.left = sequence.prompt - cached
                meter.calls += 1
            meter.spent += perf_counter_ns() - start
            if not fits:
                break
            self.reading.append(self.waiting.popleft())

    def _decode(self) -> None:
        """Append one token to every decoding sequence; make room where pages run out."""
        meter = self.meter
        done = False
        while not done and self.decoding:
            start = perf_counter_ns()
            try:
                self.cache.append_batch(self._rows, 1)
                done = True
            except OutOfPages:
                pass
            meter.spent += perf_counter_ns() - start
            meter.calls += 1
            if not done:
                self._preempt()
        meter.decode_tokens += len(self.decoding)

    def _preempt(self) -> None:
        """Send the newest sequence back to wait; its pages are freed."""
        if self.reading:
            sequence = self.reading.pop()
        else:
            sequence = self.decoding.pop()
            left = int(self._ends[-1]) - (self._step - 1)
            sequence.prompt += sequence.output - left
            sequence.output = left
            sequence.reached = sequence.prompt
            self._rows, self._ends = self._rows[:-1], self._ends[:-1]
            self._next_end = int(self._ends.min(initial=NEVER))
        self.waiting.appendleft(sequence)
        self.meter.preemptions += 1
        self._free(np.array([sequence.row], np.int32))

    def _free(self, rows: NDArray[np.int32]) -> None:
        start = perf_counter_ns()
        self.cache.free_batch(rows)
        self.meter.spent += perf_counter_ns() - start
        self.meter.calls += 1

    def _read(self, budget: int, joining: list[_Sequence]) -> int:
        """Read up to `budget` prompt tokens, oldest first; return how many there were."""
        meter = self.meter
        total = 0
        rows: list[int] = []
        chunks: list[NDArray[np.int64]] = []  # token positions
        while self.reading:
            sequence = self.reading[0]
            start = sequence.prompt - sequence.left
            end = start + min(sequence.left, budget - total)
            again = max(0, min(end, sequence.reached) - start)
            meter.recomputed_tokens += again
            meter.prompt_tokens += end - start - again
            sequence.left = sequence.prompt - end
            sequence.reached = max(sequence.reached, end)
            total += end - start
            rows.append(sequence.row)
            chunks.append(np.arange(start, end))
            if sequence.left:
                break
            joining.append(self.reading.popleft())
        self._map_slots(rows, chunks)
        return total

    def _map_slots(self, rows: list[int], chunks: list[NDArray[np.int64]]) -> None:
        """Look up where the keys and values of the prompt tokens of this step go."""
        each_row = np.repeat(np.array(rows, np.int32), [len(chunk) for chunk in chunks])
        positions = np.concatenate(chunks)
        start = perf_counter_ns()
        self.cache.slot_mapping(each_row, positions)
        self.meter.spent += perf_counter_ns() - start
        self.meter.calls += 1

    def _export(self, joining: list[_Sequence]) -> None:
        rows = self._rows
        read = [*joining, *self.reading]
        if read:
            rows = np.concatenate((rows, np.array([each.row for each in read], np.int32)))
        start = perf_counter_ns()
        if self.options.export == "csr":
            self.cache.page_table_csr(rows)
        else:
            self.cache.block_tables(rows)
        self.meter.spent += perf_counter_ns() - start
        self.meter.calls += 1

    def _join(self, joining: list[_Sequence]) -> None:
        """Sequences whose prompt is read decode from the next step on."""
        if joining:
            self.decoding += joining
            rows = np.array([each.row for each in joining], np.int32)
            ends = np.array([self._step + each.output for each in joining], np.int64)
            self._rows = np.concatenate((self._rows, rows))
            self._ends = np.concatenate((self._ends, ends))

    def _finish(self) -> None:
        """Free the sequences that are done after this step."""
        done = self._ends == self._step
        if done.any():
            rows = self._rows[done]
            self.meter.count_runs(rows)
            self._free(rows)
            self.meter.finished += len(rows)
            going = ~done
            self.decoding = [each for each, on in zip(self.decoding, going, strict=True) if on]
            self._rows, self._ends = self._rows[going], self._ends[going]
        self._next_end = int(self._ends.min(initial=NEVER))
