"""What attention kernels read of sequences, in plain Python: rows of `oracle_sequences.py`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from jitalloc.errors import InvalidArgument, OutOfPages, SequenceTooLong


class Layouts:
    """The part of the model of `PagedKVCache` that hands out its block tables."""

    pool: Any
    rows: Any
    check_rows: Any

    def block_tables(self, rows: Sequence[int], width: int | None = None) -> list[list[int]]:
        for i, row in enumerate(rows):
            self.check_rows("rows", rows[: i + 1])
            if width is not None and len(self.rows[row].pages) > width:
                raise InvalidArgument("width", width, "a sequence has more pages")
        if width is None:
            width = max((len(self.rows[row].pages) for row in rows), default=0)
        padding = 0 if self.pool.first else -1
        tables = [list(self.rows[row].pages) for row in rows]
        return [pages + [padding] * (width - len(pages)) for pages in tables]

    def slot_mapping(self, rows: Sequence[int], positions: Sequence[int]) -> list[int]:
        size, slots = self.pool.page_size, []
        for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
            self.check_rows("rows", rows[: i + 1])
            if not 0 <= position < self.rows[row].length:
                raise InvalidArgument("positions", position, "no token of the sequence", i)
            slots.append(self.rows[row].pages[position // size] * size + position % size)
        return slots

    def page_table_csr(self, rows: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        self.check_rows("rows", rows)
        indptr, indices, last = [0], [], []
        for row in rows:
            indices += self.rows[row].pages
            indptr.append(len(indices))
            last.append((self.rows[row].length - 1) % self.pool.page_size + 1)
        return indptr, indices, last

    def seq_lens(self, rows: Sequence[int]) -> list[int]:
        self.check_rows("rows", rows)
        return [self.rows[row].length for row in rows]

    def attention_batch(self, rows: Sequence[int], num_new: int | Sequence[int]) -> tuple[Any, ...]:
        self.check_rows("rows", rows)
        counts = [num_new] * len(rows) if isinstance(num_new, int) else num_new
        positions: list[int] = []
        slots: list[int] = []
        qo_indptr = [0]
        for i, (row, n) in enumerate(zip(rows, counts, strict=True)):
            length = self.rows[row].length
            if not 0 <= n <= length:
                raise InvalidArgument("num_new", n, "more than the sequence has", i)
            new = range(length - n, length)
            positions += new
            slots += self.slot_mapping([row] * n, new)
            qo_indptr.append(len(slots))
        indptr, indices, last = self.page_table_csr(rows)
        return qo_indptr, positions, slots, indptr, indices, last, self.seq_lens(rows)

    def _available(self) -> int:
        return self.pool.available

    def room_for(self, rows: Sequence[int], n: int | Sequence[int] = 1, *, reserve: int = 0) -> int:
        """How many rows can grow: on a copy, they do."""
        counts = [n] * len(rows) if isinstance(n, int) else list(n)
        self.pool.check_counts("n", counts)
        self.check_rows("rows", rows, distinct=True)
        before = self._available()
        for k in range(1, len(rows) + 1):
            copy = deepcopy(self)
            try:
                copy.append_batch(rows[:k], counts[:k])
            except (OutOfPages, SequenceTooLong):
                return k - 1
            taken = copy.pool.allocated - self.pool.allocated
            if taken and before - taken < reserve:
                return k - 1
        return len(rows)
