"""Which id lives in which row, kept true to the block table even when a call is cut short."""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import DuplicateSequence, InvalidArgument, JitallocError, UnknownSequence
from jitalloc.sequences.state import BORN, TableArrays
from jitalloc.sequences.tables import BlockTables
from jitalloc.state import INT32

P = ParamSpec("P")
R = TypeVar("R")


class SequenceIds:
    """Ids and rows of live sequences, both ways.

    The rows that live are bits in the block table, written by kernels; the ids are Python
    objects, written behind the kernel. A KeyboardInterrupt between the two leaves `broken` set,
    and `reconcile` makes the ids follow the table.
    """

    __slots__ = ("broken", "by_row", "lock", "pending", "rows", "tables")

    def __init__(self, tables: BlockTables) -> None:
        self.tables = tables
        self.rows: dict[Hashable, int] = {}
        self.by_row: list[Hashable] = [None] * tables.max_sequences
        self.pending: Sequence[Hashable] = ()  # ids of sequences that a call is about to make
        self.broken = False
        self.lock = threading.RLock()

    def row(self, seq_id: Hashable) -> int:
        """Return the row of a live sequence."""
        try:
            return self.rows[seq_id]
        except KeyError:
            raise UnknownSequence(f"no sequence {seq_id!r}") from None
        except TypeError:
            raise InvalidArgument("seq_id", seq_id, "must be hashable") from None

    def rows_of(self, seq_ids: Iterable[Hashable]) -> NDArray[np.int32]:
        """Return the rows of live sequences."""
        ids = seq_ids if isinstance(seq_ids, list | tuple) else list(seq_ids)
        rows = np.empty(len(ids), INT32)
        try:
            # One call that looks all of them up, one that writes them: 1,024 take 17 us, where a
            # call for each takes 98.
            if len(ids) > 1:
                struct.pack_into(f"{len(ids)}i", rows.data, 0, *itemgetter(*ids)(self.rows))
            elif ids:
                rows[0] = self.rows[ids[0]]
        except (KeyError, TypeError):
            self._refuse(ids)
            raise
        return rows

    def _refuse(self, ids: Sequence[Hashable]) -> None:
        """Raise what is wrong with the first of some ids that names no live sequence."""
        rows = self.rows
        for position, seq_id in enumerate(ids):
            try:
                known = seq_id in rows
            except TypeError:
                raise InvalidArgument("seq_ids", seq_id, "must be hashable", position) from None
            if not known:
                text = f"no sequence {seq_id!r}, which is seq_ids[{position}]"
                raise UnknownSequence(text) from None

    def expect(self, seq_id: Hashable) -> None:
        """Announce that a sequence of this id is about to be made."""
        try:
            known = seq_id in self.rows
        except TypeError:
            raise InvalidArgument("seq_id", seq_id, "must be hashable") from None
        if seq_id is None:
            raise InvalidArgument("seq_id", None, "None is no id")
        if known:
            raise DuplicateSequence(f"a sequence {seq_id!r} exists already")
        self.pending = (seq_id,)

    def expect_all(self, ids: Sequence[Hashable]) -> None:
        """Announce that a batch of sequences of these ids is about to be made."""
        names: set[Hashable] = set()
        try:
            names.update(ids)
        except TypeError:
            self._refuse_new(ids)
        if len(names) != len(ids) or None in names or not names.isdisjoint(self.rows):
            self._refuse_new(ids)
        self.pending = ids

    def _refuse_new(self, ids: Sequence[Hashable]) -> None:
        """Raise what is wrong with the first of some ids that is none for a new sequence."""
        seen: set[Hashable] = set()
        for position, seq_id in enumerate(ids):
            if seq_id is None:
                raise InvalidArgument("ids", None, "None is no id", position)
            try:
                named, known = seq_id in seen, seq_id in self.rows
            except TypeError:
                raise InvalidArgument("ids", seq_id, "must be hashable", position) from None
            if named or known:
                text = "stands there twice" if named else "exists already"
                raise DuplicateSequence(f"a sequence {seq_id!r}, which is ids[{position}], {text}")
            seen.add(seq_id)

    def enter(self, row: int) -> None:
        """Give the announced id to the sequence that now lives in `row`."""
        self.enter_all((row,))

    def enter_all(self, rows: Iterable[int]) -> None:
        """Give the announced ids to the sequences that now live in `rows`."""
        for row, seq_id in zip(rows, self.pending, strict=True):
            self.by_row[row] = seq_id
            self.rows[seq_id] = row

    def leave(self, row: int) -> Hashable:
        """Forget the id of the sequence that lived in `row`, and return it."""
        seq_id, self.by_row[row] = self.by_row[row], None
        del self.rows[seq_id]
        return seq_id

    def _arrays(self) -> TableArrays:
        """Return the arrays of the block table, to be read."""
        return self.tables.arrays

    def live_rows(self) -> list[int]:
        """Return the rows that sequences live in by the block table, the oldest first."""
        arrays = self._arrays()
        rows = np.flatnonzero(np.unpackbits(arrays.taken.view(np.uint8), bitorder="little"))
        live: list[int] = rows[np.argsort(arrays.columns[BORN, rows], kind="stable")].tolist()
        return live

    def reconcile(self) -> None:
        """Make the ids follow the block table after a call that was cut short."""
        live = self.live_rows()
        for row in set(range(len(self.by_row))).difference(live):
            self.by_row[row] = None
        entered = set(self.by_row)
        pending = (seq_id for seq_id in self.pending if seq_id not in entered)
        for row in live:  # the oldest first, and of a batch the lowest: as their ids were announced
            if self.by_row[row] is None:
                self.by_row[row] = next(pending)
        self.rows = {self.by_row[row]: row for row in live}
        self.broken = False


class _HasIds(Protocol):
    _ids: SequenceIds


H = TypeVar("H", bound=_HasIds)


def changes_ids(method: Callable[Concatenate[H, P], R]) -> Callable[Concatenate[H, P], R]:
    """Serialise a method that makes or ends sequences, and keep ids and rows together."""

    @functools.wraps(method)
    def guarded(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        ids: Any = self._ids
        with ids.lock:
            if ids.broken:
                ids.reconcile()
            ids.broken = True
            try:
                result = method(self, *args, **kwargs)
            except JitallocError:
                ids.broken = False  # refused before anything changed
                raise
            except BaseException:
                ids.reconcile()
                raise
            ids.broken = False
            return result

    return guarded
