"""Random calls on a pool of the GPU and on one of the CPU, right and wrong ones.

Arguments of a call are what earlier calls returned, so that nothing has to go up. After each
round everything that came back is compared, and every word of the state that counts; a failure is
compared when it happens. By itself (`python -m tests.cuda_stress 1000`) it is what a sanitizer
watches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from jitalloc import NULL, PagePool
from tests.cuda_pairs import same_words
from tests.pairs import outcome

MOST = 40  # elements of a result
Pair = tuple[Any, Any]  # an array of the GPU, and the same on the CPU


class Line:
    """Sequences of one length that are decoded together."""

    def __init__(self) -> None:
        self.length = 0
        self.last: Any = None
        self.begun: list[Pair] = []  # slots that are the first of a page


class Stress:
    """Two pools and what was allocated on them."""

    def __init__(self, seed: int, pages: int, **options: Any) -> None:
        self.size = size = 4
        self.pools: Pair = tuple(
            PagePool(pages, size, device=device, **options) for device in ("cuda", "cpu")
        )
        self.gpu, self.random = self.pools[0]._gpu, Random(seed)
        self.held: list[Pair] = []  # pages
        self.spent: list[Pair] = []  # pages that were given back
        self.slots: list[Pair] = []
        self.lines: list[Line] = []
        self.failed = self.done = 0
        numbers = np.random.default_rng(seed)
        self.counts = [self.up(numbers.integers(0, 5, i % 9)) for i in range(32)]
        self.prompts = [self.up(numbers.integers(1, 3 * size, i % 5 + 1)) for i in range(32)]
        self.full = {(n, i): self.up(np.full(n, i)) for n in range(1, 6) for i in range(-1, 32)}
        self.calls: dict[Callable[[], object], float] = {
            **dict.fromkeys((self.alloc, self.free, self.part, self.share, self.batch), 8),
            **dict.fromkeys((self.extend, self.decode, self.decode_in_place), 8),
            **dict.fromkeys((self.free_slots, self.free_line, self.look, self.merge), 4),
            self.free_again: 2,
            self.clear: 0.2,
        }
        self.begin_round(0)

    def up(self, values: Any) -> Pair:
        host = np.array(values, np.int64)
        return self.gpu.upload(host), host

    # A round.

    def begin_round(self, calls: int) -> None:
        self.used = [0, 0]
        self.arenas: list[Pair] = []
        for dtype in (np.int32, np.int64):
            host = np.full(4 * MOST * calls, 77, dtype)
            self.arenas.append((self.gpu.upload(host), host))

    def room(self, dtype: type, size: int) -> Pair:
        """Room for a result, on both sides, that `agree` will compare."""
        kind = int(dtype is np.int64)
        first, gpu, cpu = self.used[kind], *self.arenas[kind]
        self.used[kind] += size
        return gpu[first : first + size], cpu[first : first + size]

    def run(self, operations: int, most: int = 1_000) -> None:
        calls, weights = [*self.calls], [*self.calls.values()]
        while operations > 0:
            count = min(operations, most)
            self.begin_round(count)
            for each in self.random.choices(calls, weights, k=count):
                each()
            self.agree()
            operations -= count

    def agree(self) -> None:
        self.pools[0]._settled()
        for (gpu, cpu), used in zip(self.arenas, self.used, strict=True):
            assert (self.gpu.download(gpu)[:used] == cpu[:used]).all()
        assert same_words(self.gpu.download(self.pools[0]._slab), self.pools[1]._slab)

    def both(self, call: Callable[[Any, int], Any], *results: Pair) -> bool:
        """Make a call on both sides; whether it succeeded. If not, results are NULL."""
        wanted = outcome(lambda: call(self.pools[1], 1))
        call(self.pools[0], 0)
        self.done += 1
        if wanted[0] == "returned":
            return True
        self.failed += 1
        for each in results:
            each[1].fill(NULL)
        assert outcome(self.pools[0]._settled) == wanted
        return False

    def take(self, of: list[Any]) -> Any:
        return of.pop(self.random.randrange(len(of))) if of else None

    # Calls.

    def alloc(self) -> None:
        out = self.room(np.int32, self.random.choice((0, 1, 2, 7, MOST)))
        run = self.pools[1].order == "sorted" and self.random.random() < 0.2
        if self.both(lambda pool, at: pool.alloc(out[at].size, contiguous=run, out=out[at]), out):
            self.held.append(out)

    def batch(self) -> None:
        counts, fit = self.random.choice(self.counts), self.room(np.int64, 1)
        indptr, out = self.room(np.int32, counts[1].size + 1), self.room(np.int32, MOST)
        self.pools[0].admit(counts[0], out=fit[0])
        fit[1][0] = self.pools[1].admit(counts[1])
        out[1].fill(NULL)
        size = int(counts[1].sum())

        def call(pool: Any, at: int) -> None:
            if at == 0:
                pool.alloc_batch(counts[0], indptr=indptr[0], out=out[0])
            else:
                indptr[1][:], out[1][:size] = pool.alloc_batch(counts[1])

        if self.both(call, indptr, out):
            self.held.append((out[0][:size], out[1][:size]))

    def give(self, name: str, what: Pair) -> None:
        count = self.room(np.int64, 1)

        def call(pool: Any, at: int) -> None:
            if at == 0:
                getattr(pool, name)(what[0], out=count[0])
            else:
                count[1][0] = getattr(pool, name)(what[1])

        self.both(call, count)

    def free(self) -> None:
        pages = self.take(self.held)
        if pages is not None:
            self.give("free", pages)
            self.spent.append(pages)
            del self.spent[:-20]

    def free_again(self) -> None:
        """An error, unless somebody else has the pages now; then the error is his."""
        pages = self.take(self.spent)
        if pages is not None:
            self.give("free", pages)

    def part(self) -> None:
        """Free every second page, and keep the others."""
        pages = self.take(self.held)
        if pages is not None:
            gpu, cpu = pages
            self.give("free", (gpu[::2], cpu[::2]))
            self.held.append((gpu[1::2], cpu[1::2]))

    def share(self) -> None:
        if self.held:
            pages = self.random.choice(self.held)
            if self.both(lambda pool, at: pool.share(pages[at])):
                self.held.append(pages)

    def look(self) -> None:
        if self.held:
            gpu, cpu = self.random.choice(self.held)
            out = self.room(np.int32, cpu.size)
            self.pools[0].refcount(gpu, out=out[0])
            out[1][:] = self.pools[1].refcount(cpu)

    def merge(self) -> None:
        out = self.room(np.int64, 1)
        self.pools[0].merge(out=out[0])
        out[1][0] = self.pools[1].merge()

    def extend(self) -> None:
        lengths = self.random.choice(self.prompts)
        n, total = lengths[1].size, int(lengths[1].sum())
        out = self.room(np.int64, total + 3)
        buffers, none, last = (out[0], out[1][:total]), self.full[n, 0], self.full[n, NULL]
        out[1].fill(NULL)
        if self.both(
            lambda pool, at: pool.alloc_extend(none[at], lengths[at], last[at], out=buffers[at])
        ):
            self.slots.append((out[0][:total], buffers[1]))
        else:
            out[1].fill(NULL)

    def decode(self) -> None:
        """A token more for some sequences, or the first one of new ones."""
        line = self.random.choice(self.lines) if self.lines else Line()
        if len(self.lines) < 20 and self.random.random() < 0.3:
            line = Line()
        n = self.random.randrange(1, 6) if line.last is None else line.last[1].size
        last = self.full[n, NULL] if line.last is None else line.last
        seq, out = self.full[n, line.length + 1], self.room(np.int64, n)
        good = self.both(lambda pool, at: pool.alloc_decode(seq[at], last[at], out=out[at]), out)
        if line in self.lines:
            self.lines.remove(line)
        if good and line.length < 30:
            if line.length % self.size == 0:
                line.begun.append(out)
            line.length, line.last = line.length + 1, out
            self.lines.append(line)

    def decode_in_place(self) -> None:
        # Not over a slot that begins a page: that is kept, to free the page.
        inside = [each for each in self.lines if each.length % self.size > 1 and each.length < 30]
        if inside:
            line = self.random.choice(inside)
            seq, last = self.full[line.last[1].size, line.length + 1], line.last
            if self.both(lambda pool, at: pool.alloc_decode(seq[at], last[at], out=last[at]), last):
                line.length += 1
            else:
                self.lines.remove(line)

    def free_slots(self) -> None:
        slots = self.take(self.slots)
        if slots is not None:
            self.give("free_slots", slots)

    def free_line(self) -> None:
        line = self.take(self.lines)
        for slots in line.begun if line is not None else ():
            self.give("free_slots", slots)

    def clear(self) -> None:
        for pool in self.pools:
            pool.clear()
        for each in (self.held, self.spent, self.slots, self.lines):
            each.clear()  # type: ignore[attr-defined]


if __name__ == "__main__":
    for each in ("sorted", "fifo", "lifo"):
        stress = Stress(1, 300, order=each)
        stress.run(int(sys.argv[1]))
        print(f"{each}: {stress.done} calls, {stress.failed} of them refused")
