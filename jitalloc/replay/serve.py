"""Serve mode: continuous batching on a virtual clock, as a serving engine does it.

In each step every running sequence decodes one token, and what is left of the step's token
budget reads prompts in chunks, first come, first served. A request is admitted when the pages of
its whole prompt can be had, with one to spare for each sequence that runs; cached pages it
shares, and what it shares with running sequences is no page more. It takes the others at once,
so that prompts never race each other for the last pages. Each token computed gets its slot: a
decoded one from the append, those of a prompt from the slot mapping of its chunk.

Each chunk of a prompt enters the cache as soon as it is read, so that requests behind it share it
while the rest is still to be read; prompt and response stay there when the sequence ends. Tokens
that were found are not read again, but the last one of a prompt always is: the first token of the
response comes from it. When decoding runs out of pages, cached ones give way; when that does not
suffice, the newest sequence gives all of its own back and waits, first in line, to be computed
again from whatever of it is still cached then. Arrival order is kept throughout, so the oldest
always gets on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import OutOfPages
from jitalloc.replay.batch import DecodeBatch, Sequence
from jitalloc.replay.meter import Meter
from jitalloc.replay.options import ReplayOptions
from jitalloc.replay.prompts import Prompts
from jitalloc.replay.request import Request


class Server:
    """Serves a stream of requests from one cache, step by step.

    Parameters
    ----------
    requests : iterable of Request
        By arrival.
    options : ReplayOptions
    meter : Meter
        Holds the pool and the cache; gets the figures.

    Attributes
    ----------
    waiting : deque of Sequence
        Arrived, or sent back, and without pages; first come, first served.
    reading : deque of Sequence
        Have pages for their prompts, and read them; oldest first.
    decoding : DecodeBatch
        Have read their prompts, and decode a token a step.
    """

    def __init__(self, requests: Iterable[Request], options: ReplayOptions, meter: Meter) -> None:
        self.options = options
        self.meter = meter
        self.pool = meter.pool
        self.cache = meter.cache
        self.waiting: deque[Sequence] = deque()
        self.reading: deque[Sequence] = deque()
        self.decoding = DecodeBatch()
        self._step = 0
        self._step_seconds = options.step_ms / 1e3
        self._token_seconds = options.token_us / 1e6
        self._prompts = Prompts()
        self._sharing = False  # a request with block ids has come
        self._refused = -1  # pages that could be had when the next to be admitted was refused
        self._requests = iter(requests)
        self._next = next(self._requests, None)

    # The scheduler: what a step does, who is admitted, who is sent back, who leaves.

    def step(self) -> bool:
        """Run one step; False when all has been served.

        Requests that have come wait; those at the head of the line get pages. Whoever decodes
        gets one token, and may push the newest back into the line; what is left of the budget
        reads prompts. Time passes, the cache takes in what was read, and who is done leaves.
        """
        self._arrive()
        self._admit()
        if not self.num_running:
            return self._idle()
        self._step += 1
        self._decode()
        tokens, chunked, read = self._read(self.options.step_tokens - len(self.decoding))
        self._export(read)
        tokens += len(self.decoding)
        seconds = self._step_seconds + self._token_seconds * tokens
        self._pass(seconds, self.num_running + len(read))
        self._commit(chunked)
        if read:
            self.decoding.join(read, self._step)
        self._finish()
        self.meter.end_step()
        return True

    @property
    def num_running(self) -> int:
        """Sequences that have pages."""
        return len(self.decoding) + len(self.reading)

    def _arrive(self) -> None:
        """Let requests wait whose time has come; what can never fit is rejected."""
        meter = self.meter
        while self._next is not None and self._next.arrival <= meter.now:
            request = self._next
            if request.input_length + request.output_length > self.options.length_limit:
                meter.rejected += 1
                meter.look_up(request.input_length, request.input_length, 0)
            else:
                prompt = self._prompts.of(request, meter.seen)
                self.waiting.append(Sequence(meter.seen, request, prompt))
                self._sharing |= prompt.shared and meter.prefix is not None
            meter.seen += 1
            self._next = next(self._requests, None)

    def _admit(self) -> None:
        """Give pages to those that wait, in their order, until the first that finds too few."""
        while self.waiting and self.num_running < self.options.max_batch:
            sequence, spare = self.waiting[0], self.num_running
            with self.meter.timed:
                cached = self._allocate(sequence, spare)
            if cached < 0:
                break
            self._found(sequence, cached)
            self.reading.append(self.waiting.popleft())

    def _idle(self) -> bool:
        """Wait for the next request; False where there is none.

        Nobody waits for pages now: alone, whatever was not rejected fits.
        """
        if self._next is None:
            return False
        self._pass(self._next.arrival - self.meter.now, 0)
        self.meter.now = self._next.arrival  # not by the sum, which may round to less
        return True

    def _decode(self) -> None:
        """Append one token to every decoding sequence; make room where pages run out."""
        while self.decoding:
            try:
                self._append()
                break
            except OutOfPages:
                self._preempt()
        self.meter.decode_tokens += len(self.decoding)

    def _read(self, budget: int) -> tuple[int, list[Sequence], list[Sequence]]:
        """Read up to `budget` prompt tokens, oldest first.

        Returns
        -------
        int
            How many there were.
        list of Sequence
            Who has read some of them.
        list of Sequence
            Whose prompt is read to its end.
        """
        meter = self.meter
        total = 0
        chunked: list[Sequence] = []
        read: list[Sequence] = []
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
            if end > start:
                chunked.append(sequence)
            rows.append(sequence.row)
            chunks.append(np.arange(start, end))
            if sequence.left:
                break
            read.append(self.reading.popleft())
        if chunks:
            self._map_slots(rows, chunks)
        return total, chunked, read

    def _preempt(self) -> None:
        """Send the newest sequence back to wait; what was computed of it may stay cached."""
        if self.reading:
            sequence = self.reading.pop()
            computed = sequence.prompt - sequence.left
        else:
            sequence = self.decoding.send_back(self._step)
            computed = sequence.prompt
        sequence.sent_back = True
        self._refused = -1
        self.waiting.appendleft(sequence)
        self.meter.preemptions += 1
        self._give_back(sequence, computed)

    def _finish(self) -> None:
        """Free the sequences that are done after this step."""
        if self._step == self.decoding.next_end:
            done = self.decoding.done(self._step)
            self._free(self.decoding.rows[done])
            self.decoding.drop(done)

    # The calls of the allocator, each timed and counted, and the figures.

    def _allocate(self, sequence: Sequence, spare: int) -> int:
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
                # A prompt found to its end counts as a hit as a whole; `_found` computes its last.
                cached = self.cache.allocate(
                    sequence.key, tokens=tokens, namespace=sequence.tokens.scope, compute=0
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

    def _found(self, sequence: Sequence, cached: int) -> None:
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

    def _append(self) -> None:
        """Append one token to every decoding sequence, or raise OutOfPages and append none."""
        meter, batch, up = self.meter, self.decoding, self.meter.transfers.up
        with meter.timed:
            if self.cache.device != "cpu":  # where an append evicts nothing by itself
                self.cache.make_room(batch.pages_begun(self._step, self.options.page_size))
                meter.calls += 1
            tokens = up(batch.responses) if self._sharing else None
            meter.calls += 1
            self.cache.append_batch(up(batch.rows), 1, tokens=tokens)
            meter.transfers.settle()

    def _map_slots(self, rows: list[int], chunks: list[NDArray[np.int64]]) -> None:
        """Look up where the keys and values of the prompt tokens of this step go."""
        each_row = np.repeat(np.array(rows, np.int32), [len(chunk) for chunk in chunks])
        positions = np.concatenate(chunks)
        up = self.meter.transfers.up
        with self.meter.timed:
            self.cache.slot_mapping(up(each_row), up(positions))
            self.meter.transfers.settle()
        self.meter.calls += 1

    def _export(self, read: list[Sequence]) -> None:
        """Build the block tables of all that run, where they are asked for."""
        if self.options.export == "none":
            return
        beside = np.array([each.row for each in (*read, *self.reading)], np.int32)
        rows = np.concatenate((self.decoding.rows, beside))
        with self.meter.timed:
            there = self.meter.transfers.up(rows)
            if self.options.export == "csr":
                self.cache.page_table_csr(there)
            else:
                self.cache.block_tables(there)
        self.meter.calls += 1

    def _commit(self, chunked: list[Sequence]) -> None:
        """Let what is read of prompts enter the cache."""
        sharing = [each for each in chunked if each.tokens.shared]
        if self.meter.prefix is None or not sharing:
            return
        self._refused = -1
        rows = np.array([each.row for each in sharing], np.int32)
        computed = np.array([each.prompt - each.left for each in sharing], np.int32)
        up = self.meter.transfers.up
        with self.meter.timed:
            self.cache.commit_batch(up(rows), up(computed))
        self.meter.calls += 1

    def _give_back(self, sequence: Sequence, computed: int) -> None:
        """Free a sequence of which the first `computed` tokens may stay cached."""
        with self.meter.timed:
            if self.meter.prefix is not None and sequence.tokens.shared:
                self.cache.commit(sequence.key, computed)
                self.meter.calls += 1
            self.cache.free(sequence.key)
        self.meter.calls += 1

    def _free(self, rows: NDArray[np.int32]) -> None:
        """Free sequences that are done, their last tokens computed."""
        self.meter.count_runs(rows)
        with self.meter.timed:
            there = self.meter.transfers.up(rows)
            if self._sharing:
                self.cache.commit_batch(there)
                self.meter.calls += 1
            self.cache.free_batch(there)
        self.meter.calls += 1
        self.meter.finished += len(rows)

    def _pass(self, seconds: float, running: int) -> None:
        """Let virtual time pass."""
        meter = self.meter
        meter.hold(meter.now, seconds, running, len(self.waiting))
        meter.now += seconds
