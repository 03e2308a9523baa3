"""Serve mode: continuous batching on a virtual clock, as a serving engine does it.

In each step every running sequence decodes one token, and what is left of the step's token
budget reads prompts in chunks, first come, first served. A request is admitted when the pages of
its whole prompt can be had, with one to spare for each sequence that runs; cached pages it
shares, and what it shares with running sequences is no page more. It takes the others at once,
so that prompts never race each other for the last pages. Each token computed gets its slot: a
decoded one from the append, those of a prompt from the slot mapping of its chunk.

A prompt enters the cache as soon as it is read, so that requests behind it share it; prompt and
response stay there when the sequence ends. Tokens that were found are not read again, but the
last one of a prompt always is: the first token of the response comes from it. When decoding runs
out of pages, cached ones give way; when that does not suffice, the newest sequence gives all of
its own back and waits, first in line, to be computed again from whatever of it is still cached
then. Arrival order is kept throughout, so the oldest always gets on.
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
from jitalloc.replay.prompts import Prompt, Prompts
from jitalloc.replay.request import Request

NEVER: Final = 2**63 - 1


class _Sequence:
    """A request on its way: waiting, reading its prompt, or decoding."""

    __slots__ = ("key", "left", "output", "prompt", "reached", "row", "sent_back", "tokens")

    def __init__(self, key: int, request: Request, tokens: Prompt) -> None:
        self.key = key
        self.prompt = request.input_length  # tokens to read before decoding goes on
        self.output = request.output_length  # tokens still to decode then
        self.tokens = tokens
        self.left = 0  # of `prompt`, still to read
        self.reached = 0  # tokens ever computed or found: what lies below comes again
        self.sent_back = False
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
        self.decoding: list[_Sequence] = []  # oldest first, as are the arrays
        self._rows: NDArray[np.int32] = np.empty(0, np.int32)
        self._ends: NDArray[np.int64] = np.empty(0, np.int64)  # step after which each is done
        self._lengths: NDArray[np.int64] = np.empty(0, np.int64)  # tokens that each has then
        self._responses: NDArray[np.int32] = np.empty(0, np.int32)  # the token each one appends
        self._next_end = NEVER
        self._step = 0
        self._step_seconds = options.step_ms / 1e3
        self._token_seconds = options.token_us / 1e6
        self._prompts = Prompts()
        self._sharing = False  # a request with block ids has come
        self._refused = -1  # pages that could be had when the next to be admitted was refused
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
                meter.look_up(request.input_length, request.input_length, 0)
            else:
                prompt = self._prompts.of(request, meter.seen)
                self.waiting.append(_Sequence(meter.seen, request, prompt))
                self._sharing |= prompt.shared and meter.prefix is not None
            meter.seen += 1
            self._pull()

    def _admit(self) -> None:
        while self.waiting:
            running = len(self.decoding) + len(self.reading)
            if running == self.options.max_batch:
                break
            sequence = self.waiting[0]
            start = perf_counter_ns()
            cached = self._allocate(sequence, running)
            self.meter.spent += perf_counter_ns() - start
            if cached < 0:
                break
            self._found(sequence, cached)
            self.reading.append(self.waiting.popleft())

    def _allocate(self, sequence: _Sequence, spare: int) -> int:
        """Give a sequence its pages; return how many tokens were cached, -1 if it has to wait.

        How much it shares with running sequences, only the look-up tells. So where its pages
        might not suffice it is tried, and undone when too few are left; then it is tried again
        when more can be had, or more is cached.
        """
        meter, length = self.meter, sequence.prompt
        room = meter.obtainable
        fits = -(-length // self.options.page_size) + spare <= room
        if meter.prefix is not None and sequence.tokens.shared:
            if not fits and room <= self._refused:
                return -1
            try:
                tokens = sequence.tokens.tokens(length)
                meter.calls += 1
                cached = self.cache.allocate(
                    sequence.key, tokens=tokens, namespace=sequence.tokens.scope
                )
            except OutOfPages:
                self._refused = room
                return -1
            if not fits and meter.obtainable < spare:
                meter.calls += 1
                self.cache.free(sequence.key, commit=False)
                self._refused = room
                return -1
        elif fits:
            meter.calls += 1
            cached = self.cache.allocate(sequence.key, length)
        else:
            return -1
        self._refused = -1
        sequence.row = self.cache.row(sequence.key)
        return cached

    def _found(self, sequence: _Sequence, cached: int) -> None:
        """Count what a sequence found; the rest of its prompt is to be read."""
        meter = self.meter
        found = min(cached, max(0, sequence.prompt - 1))
        again = min(found, sequence.reached)
        if not sequence.sent_back:
            meter.look_up(sequence.prompt, sequence.prompt, cached)
        meter.restored_tokens += again
        meter.cached_tokens += found - again
        sequence.reached = max(sequence.reached, found)
        sequence.left = sequence.prompt - found

    def _decode(self) -> None:
        """Append one token to every decoding sequence; make room where pages run out."""
        meter, up = self.meter, self.meter.transfers.up
        done = False
        while not done and self.decoding:
            start = perf_counter_ns()
            try:
                if self.cache.device != "cpu":  # where an append evicts nothing by itself
                    self.cache.make_room(self._pages_begun())
                    meter.calls += 1
                tokens = up(self._responses) if self._sharing else None
                self.cache.append_batch(up(self._rows), 1, tokens=tokens)
                meter.transfers.settle()
                done = True
            except OutOfPages:
                pass
            meter.spent += perf_counter_ns() - start
            meter.calls += 1
            if not done:
                self._preempt()
        meter.decode_tokens += len(self.decoding)

    def _pages_begun(self) -> int:
        """Return how many decoding sequences begin a page in this step."""
        lengths = self._lengths - (self._ends - (self._step - 1))
        return int((lengths % self.options.page_size == 0).sum())

    def _preempt(self) -> None:
        """Send the newest sequence back to wait; what was computed of it may stay cached."""
        if self.reading:
            sequence = self.reading.pop()
            computed = sequence.prompt - sequence.left
        else:
            sequence = self.decoding.pop()
            left = int(self._ends[-1]) - (self._step - 1)
            sequence.prompt += sequence.output - left
            sequence.output = left
            computed = sequence.reached = sequence.prompt
            self._rows, self._ends = self._rows[:-1], self._ends[:-1]
            self._responses, self._lengths = self._responses[:-1], self._lengths[:-1]
            self._next_end = int(self._ends.min(initial=NEVER))
        sequence.sent_back = True
        self._refused = -1
        self.waiting.appendleft(sequence)
        self.meter.preemptions += 1
        start = perf_counter_ns()
        if computed < sequence.prompt:
            self.cache.truncate(sequence.key, computed)
            self.meter.calls += 1
        self.cache.free(sequence.key)
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
        up = self.meter.transfers.up
        start = perf_counter_ns()
        self.cache.slot_mapping(up(each_row), up(positions))
        self.meter.transfers.settle()
        self.meter.spent += perf_counter_ns() - start
        self.meter.calls += 1

    def _export(self, joining: list[_Sequence]) -> None:
        rows = self._rows
        read = [*joining, *self.reading]
        if read:
            rows = np.concatenate((rows, np.array([each.row for each in read], np.int32)))
        start = perf_counter_ns()
        there = self.meter.transfers.up(rows)
        if self.options.export == "csr":
            self.cache.page_table_csr(there)
        else:
            self.cache.block_tables(there)
        self.meter.spent += perf_counter_ns() - start
        self.meter.calls += 1

    def _join(self, joining: list[_Sequence]) -> None:
        """Sequences whose prompt is read enter the cache, and decode from the next step on."""
        if not joining:
            return
        self.decoding += joining
        rows = np.array([each.row for each in joining], np.int32)
        ends = np.array([self._step + each.output for each in joining], np.int64)
        lengths = np.array([each.prompt + each.output for each in joining], np.int64)
        responses = np.array([each.tokens.own for each in joining], np.int32)
        self._rows = np.concatenate((self._rows, rows))
        self._ends = np.concatenate((self._ends, ends))
        self._lengths = np.concatenate((self._lengths, lengths))
        self._responses = np.concatenate((self._responses, responses))
        if self.meter.prefix is None:
            return
        self._refused = -1
        start = perf_counter_ns()
        for each in joining:
            if each.tokens.shared:
                self.cache.commit(each.key)
                self.meter.calls += 1
        self.meter.spent += perf_counter_ns() - start

    def _finish(self) -> None:
        """Free the sequences that are done after this step."""
        done = self._ends == self._step
        if done.any():
            rows = self._rows[done]
            self.meter.count_runs(rows)
            start = perf_counter_ns()
            self.cache.free_batch(self.meter.transfers.up(rows))
            self.meter.spent += perf_counter_ns() - start
            self.meter.calls += 1
            self.meter.finished += len(rows)
            going = ~done
            self.decoding = [each for each, on in zip(self.decoding, going, strict=True) if on]
            self._rows, self._ends = self._rows[going], self._ends[going]
            self._responses, self._lengths = self._responses[going], self._lengths[going]
        self._next_end = int(self._ends.min(initial=NEVER))
