"""Ids of sequences whose block table lives on the GPU, where rows may end unseen by the host."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from jitalloc.errors import DuplicateSequence
from jitalloc.sequences.ids import SequenceIds
from jitalloc.sequences.state import TableArrays
from jitalloc.sequences.tables_cuda import CudaBlockTables


class CudaSequenceIds(SequenceIds):
    """`SequenceIds` of a block table on the GPU.

    Rows end there that the host has not named: by a batch call, or by a graph. Once it is known
    that some may have (`stale`), the next look at the ids waits, and forgets those of free rows.
    """

    __slots__ = ("_by_row", "_rows", "stale")

    tables: Any

    def __init__(self, tables: CudaBlockTables) -> None:
        self.stale = False
        super().__init__(tables)

    @property
    def rows(self) -> dict[Hashable, int]:
        """The rows of the ids."""
        self._follow()
        return self._rows

    @rows.setter
    def rows(self, rows: dict[Hashable, int]) -> None:
        self._rows = rows

    @property
    def by_row(self) -> list[Hashable]:
        """The ids of the rows."""
        self._follow()
        return self._by_row

    @by_row.setter
    def by_row(self, by_row: list[Hashable]) -> None:
        self._by_row = by_row

    def leave(self, row: int) -> Hashable:
        """Forget the id of the sequence that has just ended in `row`, and return it."""
        seq_id, self._by_row[row] = self._by_row[row], None
        del self._rows[seq_id]
        return seq_id

    def _follow(self) -> None:
        if self.stale:
            with self.lock:
                if self.stale:
                    self.reconcile()

    def _arrays(self) -> TableArrays:
        arrays: TableArrays = self.tables._copy_on_cpu()
        return arrays

    def reconcile(self) -> None:
        """Make the ids follow the block table; waits."""
        self.stale = False
        super().reconcile()

    def expect(self, seq_id: Hashable) -> None:
        """Announce that a sequence of this id is about to be made; waits where one has it."""
        try:
            super().expect(seq_id)
        except DuplicateSequence:
            self.reconcile()  # perhaps it has ended
            super().expect(seq_id)

    def expect_all(self, ids: Sequence[Hashable]) -> None:
        """Announce a batch of sequences; waits where one of their ids is taken."""
        try:
            super().expect_all(ids)
        except DuplicateSequence:
            self.reconcile()  # perhaps it has ended
            super().expect_all(ids)

    def free_rows(self, count: int) -> list[int]:
        """Return the `count` lowest rows that are known to be free, or all where there are less."""
        for _ in range(2):
            free = [row for row, seq_id in enumerate(self.by_row) if seq_id is None]
            if len(free) >= count:
                break
            self.reconcile()  # perhaps one has become free
        return free[:count]

    def free_row(self) -> int:
        """Return the lowest row that is known to be free, or -1."""
        for _ in range(2):
            try:
                return self.by_row.index(None)
            except ValueError:
                self.reconcile()  # perhaps one has become free
        return -1
