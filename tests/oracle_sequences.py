"""What a paged KV cache must do, in plain Python, on the pool of `oracle.py`.

`Cache.rows` maps the row of a live sequence to a `Row`. As in the pool, a call looks first and
changes afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from jitalloc import errors
from jitalloc.errors import InvalidArgument, OutOfRows, SequenceTooLong
from tests.oracle import Moves, Pool, pages_of
from tests.oracle_batches import Batches
from tests.oracle_forks import Forks
from tests.oracle_rows import Eviction, Row


class Cache(Forks, Batches):
    """The model of `PagedKVCache`."""

    row_type: type[Row] = Row

    def __init__(
        self,
        pool: Pool,
        max_sequences: int,
        max_pages: int,
        eviction: str = "lru",
        threshold: float = 0.9,
        sink: int = 4,
        window: int = 1024,
    ) -> None:
        self.pool, self.max_sequences, self.max_pages = pool, max_sequences, max_pages
        self.eviction, self.threshold, self.sink, self.window = eviction, threshold, sink, window
        self.rows: dict[int, Row] = {}
        self.ids: dict[Hashable, int] = {}
        self.allocations = self.frees = self.forks = self.copies = 0
        self.evictions = self.dropped = self.peak = 0
        pool.caches.append(self)

    # Looking things up.

    @property
    def utilization(self) -> float:
        return self.pool.utilization

    def _holders(self, page: int) -> int:
        return self.pool.owners[page]

    def row(self, seq_id: Hashable) -> int:
        if seq_id not in self.ids:
            raise errors.UnknownSequence(seq_id)
        return self.ids[seq_id]

    def check_rows(self, name: str, rows: Sequence[int], distinct: bool = False) -> None:
        for i, row in enumerate(rows):
            if row not in self.rows:
                raise InvalidArgument(name, row, "no sequence lives here", i)
            if distinct and row in rows[:i]:
                raise InvalidArgument(name, row, "named twice", i)

    def _numbers(self, name: str, rows: Sequence[int], given: Any) -> list[Any]:
        """For each of the rows a number of its tokens, or None."""
        scalar = given is None or isinstance(given, int)
        numbers = [given] * len(rows) if scalar else list(given)
        self.check_rows("rows", rows, distinct=True)
        for i, (row, n) in enumerate(zip(rows, numbers, strict=True)):
            if n is not None and not 0 <= n <= self.rows[row].length:
                raise InvalidArgument(name, n, "not within the sequence", i)
        return numbers

    def _too_long(self, tokens: int) -> bool:
        return pages_of(tokens, self.pool.page_size) > self.max_pages

    def _check_new(self, seq_id: Hashable) -> None:
        if seq_id is None:  # None stands for no sequence
            raise InvalidArgument("seq_id", None, "no id")
        if seq_id in self.ids:
            raise errors.DuplicateSequence(seq_id)

    def _new_row(self) -> int:
        for row in range(self.max_sequences):
            if row not in self.rows:
                return row
        raise OutOfRows("all rows are taken")

    def _touch(self, row: int) -> None:
        self.rows[row].last_used = self.pool.step
        self.rows[row].uses += 1

    # Growing.

    def allocate(self, seq_id: Hashable, num_tokens: int, priority: int = 0) -> int:
        if num_tokens < 0:
            raise InvalidArgument("num_tokens", num_tokens, "negative")
        self._check_new(seq_id)
        if self._too_long(num_tokens):
            raise SequenceTooLong("num_tokens", num_tokens, "more pages than a row has room for")
        row = self._new_row()
        need = pages_of(num_tokens, self.pool.page_size)
        self.pool.need(need)
        pages = self.pool.take(need)
        self.pool.step += 1
        self._add(seq_id, row, self.row_type(self.pool.step, priority, num_tokens, pages))
        return 0

    def _add(self, seq_id: Hashable, row: int, made: Row) -> None:
        self.rows[row], self.ids[seq_id] = made, row
        self.allocations += 1
        self._touch(row)
        self.peak = max(self.peak, len(self.rows))

    def append(
        self, seq_id: Hashable, n: int = 1, *, computed: bool = True
    ) -> tuple[list[int], Moves]:
        return self.append_batch([self.row(seq_id)], [n], computed=computed)

    def append_batch(
        self, rows: Sequence[int], counts: Sequence[int], *, computed: bool = True
    ) -> tuple[list[int], Moves]:
        """Slots of the new tokens, row after row, and the page copies."""
        size, owners = self.pool.page_size, dict(enumerate(self.pool.owners))
        self.pool.check_counts("n", counts)
        self.check_rows("rows", rows, distinct=True)
        copies, needs = [], []
        for i, (row, n) in enumerate(zip(rows, counts, strict=True)):
            at = self.rows[row]
            if self._too_long(at.length + n):
                raise SequenceTooLong("n", n, "more pages than a row has room for", i)
            # A partly filled last page that somebody else holds as well must not be written to.
            shared = n > 0 and at.length % size > 0 and owners[at.pages[-1]] > 1
            if shared:
                owners[at.pages[-1]] -= 1  # the next row of this batch may be its last owner
            copies.append(shared)
            needs.append(pages_of(at.length + n, size) - len(at.pages) + shared)
        self.pool.need(sum(needs))
        taken = self.pool.take(sum(needs))
        self.pool.step += 1
        slots, moves = [], Moves([], [])
        for row, n, copied, need in zip(rows, counts, copies, needs, strict=True):
            at = self.rows[row]
            if computed and n:
                at.computed = at.length
            mine, taken = taken[:need], taken[need:]
            if copied:
                moves.src.append(at.pages[-1])
                moves.dst.append(mine[0])
                self.pool.give_back([at.pages.pop()])
            at.pages += mine
            for position in range(at.length, at.length + n):
                slots.append(at.pages[position // size] * size + position % size)
            at.length += n
            self._touch(row)
        self.copies += len(moves.src)
        return slots, moves

    # What is computed.

    def commit(
        self,
        seq_id: Hashable,
        num_tokens: int | None = None,
        *,
        tokens: Sequence[int] | None = None,
    ) -> int:
        """Counted, and that is all: there is nothing to enter."""
        self.rows[self.row(seq_id)].compute(num_tokens, tokens)
        self.pool.step += 1
        return 0

    def commit_batch(self, rows: Sequence[int], num_tokens: Any = None) -> list[int]:
        """All are looked at before any is committed; then each as by its id, at one moment."""
        numbers = self._numbers("num_tokens", rows, num_tokens)
        step = self.pool.step
        for row, n in zip(rows, numbers, strict=True):
            self.commit(self._name(row), n)
            self.pool.step = step
        self.pool.step = step + 1
        return [self.cached_tokens(row) for row in rows]

    def cached_tokens(self, row: int) -> int:
        """How many tokens of a sequence stand in the prefix cache: there is none."""
        return 0

    # Shrinking.

    def truncate(self, seq_id: Hashable, num_tokens: int) -> int:
        if num_tokens < 0:
            raise InvalidArgument("num_tokens", num_tokens, "negative")
        row = self.row(seq_id)
        at = self.rows[row]
        if num_tokens > at.length:
            raise InvalidArgument("num_tokens", num_tokens, "not within the sequence")
        keep = pages_of(num_tokens, self.pool.page_size)
        released = self.pool.give_back(at.pages[keep:])
        at.pages, at.length = at.pages[:keep], num_tokens
        at.computed = min(at.computed, num_tokens)
        self.pool.step += 1
        self._touch(row)
        return released

    def truncate_batch(self, rows: Sequence[int], num_tokens: Any = None, drop: Any = None) -> int:
        """All are looked at before any is cut; then each as by its id, at one moment."""
        name, given = ("num_tokens", num_tokens) if drop is None else ("drop", drop)
        numbers = self._numbers(name, rows, given)
        released, step = 0, self.pool.step + 1
        for row, n in zip(rows, numbers, strict=True):
            self.pool.step = step - 1
            kept = n if drop is None else self.rows[row].length - n
            released += self.truncate(self._name(row), kept)
        self.pool.step = step
        return released

    def free(self, seq_id: Hashable) -> int:
        return self.free_batch([self.row(seq_id)])

    def free_batch(self, rows: Sequence[int]) -> int:
        self.check_rows("rows", rows, distinct=True)
        self.pool.step += 1
        return sum(self._end(row) for row in rows)

    def _end(self, row: int) -> int:
        self.frees += 1
        del self.ids[self._name(row)]
        return self.pool.give_back(self.rows.pop(row).pages)

    def clear(self) -> None:
        self.free_batch(list(self.ids.values()))

    def cut(self, at: Row, sink: int, window: int) -> list[int]:
        """The places in `at.pages` that are neither in the sink nor in the window."""
        size = self.pool.page_size
        in_sink = range(pages_of(sink, size))
        in_window = {i // size for i in range(max(at.length - window, 0), at.length)}
        return [i for i in range(len(at.pages)) if i not in in_sink and i not in in_window]

    def apply_streaming_llm(self, seq_id: Hashable, sink: int, window: int) -> int:
        for name, tokens in (("sink_tokens", sink), ("window_tokens", window)):
            if tokens < 0:
                raise InvalidArgument(name, tokens, "negative")
        row = self.row(seq_id)
        self.pool.step += 1
        return self._drop(row, sink, window)[1]

    def apply_window(self, seq_id: Hashable, window: int) -> int:
        return self.apply_streaming_llm(seq_id, 0, window)

    def apply_streaming_llm_batch(self, rows: Sequence[int], sink: int, window: int) -> list[int]:
        self.check_rows("rows", rows, distinct=True)
        self.pool.step += 1
        return [self._drop(row, sink, window)[1] for row in rows]

    def _drop(self, row: int, sink: int, window: int) -> tuple[int, int]:
        """Drop the pages between; how many went free, and how many tokens were in them."""
        at, size = self.rows[row], self.pool.page_size
        gone = self.cut(at, sink, window)
        tokens = sum(min(size, at.length - i * size) for i in gone)
        released = self.pool.give_back([at.pages[i] for i in gone])
        at.computed = sum(1 for position in range(at.computed) if position // size not in gone)
        at.pages = [page for i, page in enumerate(at.pages) if i not in gone]
        at.length -= tokens
        self.dropped += tokens
        self._touch(row)
        return released, tokens

    # Giving way.

    def pin(self, seq_id: Hashable, pinned: bool = True) -> None:
        self.rows[self.row(seq_id)].pinned = pinned

    def unpin(self, seq_id: Hashable) -> None:
        self.pin(seq_id, False)

    def set_priority(self, seq_id: Hashable, priority: int) -> None:
        self.rows[self.row(seq_id)].priority = priority

    def _loses(self, row: int) -> list[int]:
        """The pages that evicting this sequence would take from it."""
        at = self.rows[row]
        if self.eviction != "streaming":
            return at.pages
        return [at.pages[i] for i in self.cut(at, self.sink, self.window)]

    def _by_value(self) -> list[int]:
        """Rows that may be evicted, the first to go first."""

        def worth(row: int) -> tuple[int, ...]:
            at = self.rows[row]
            first = {
                "lru": at.last_used,
                "lfu": at.uses,
                "longest": -at.length,
                "streaming": -at.length,
                "priority": at.priority,
            }[self.eviction]
            return (first, at.last_used, at.born, row)

        free = [row for row, at in self.rows.items() if not at.pinned]
        if self.eviction == "streaming":
            free = [row for row in free if self._loses(row)]
        return sorted(free, key=worth)

    def select_eviction_target(self) -> Hashable | None:
        return next((self._name(row) for row in self._by_value()), None)

    def _name(self, row: int) -> Hashable:
        return next(name for name, at in self.ids.items() if at == row)

    def evict(self, seq_id: Hashable | None = None) -> Eviction | None:
        seq_id = self.select_eviction_target() if seq_id is None else seq_id
        if seq_id is None:
            return None
        row = self.row(seq_id)
        if self.rows[row].pinned:
            raise InvalidArgument("seq_id", seq_id, "pinned")
        self.pool.step += 1
        return self._evict_row(row)

    def _evict_row(self, row: int) -> Eviction:
        self.evictions += 1
        name, length = self._name(row), self.rows[row].length
        if self.eviction == "streaming":
            return Eviction(name, *self._drop(row, self.sink, self.window))
        self.dropped += length
        return Eviction(name, self._end(row), length)

    def evict_to(self, utilization: float | None = None) -> list[Eviction]:
        limit = self.threshold if utilization is None else utilization
        self.pool.step += 1
        done = []
        while self.utilization > limit:
            candidates = self._by_value()
            losses = Counter(page for row in candidates for page in self._loses(row))
            useful = [
                row
                for row in candidates
                # Evicting all candidates would free a page of this one.
                if any(losses[page] == self._holders(page) for page in self._loses(row))
            ]
            if not useful:
                break
            done.append(self._evict_row(useful[0]))
        return done
