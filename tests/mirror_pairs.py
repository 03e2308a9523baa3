"""Block tables beside who knows of them by messages alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from jitalloc.sequences.loops.mirror import (
    HEADER_WORDS,
    LATER,
    NOBODY,
    PART,
    RECORD_WORDS,
    mirror_pack_cpu,
)
from jitalloc.sequences.state import LENGTH
from jitalloc.state import NULL


class Told:
    """Does what messages about block tables say, in plain Python.

    Attributes
    ----------
    rows : dict
        By row of a live sequence: its tokens, and all page ids of the row.
    """

    def __init__(self, tables: Any) -> None:
        self.tables = tables
        self.sent = tables._slab.copy()
        self.rows: dict[int, tuple[int, list[int]]] = {}
        self.anew = 1

    def pack(self, room: int) -> np.ndarray[Any, Any]:
        """The message, or what of `room` words it would take: then nothing was told."""
        message = np.full(room, -77, np.int32)
        size = mirror_pack_cpu.run(self.tables._slab, self.sent, message, self.anew)
        return message[:size] if size <= room else np.full(size, -77, np.int32)

    def tell(self) -> list[tuple[int, ...]]:
        """Bring what has changed; return the records, and check that nothing else is missing."""
        records = self.read(self.pack(10_000).tolist())
        self.anew = 0
        assert self.rows == self.live_rows()
        return records

    def live_rows(self) -> dict[int, tuple[int, list[int]]]:
        arrays = self.tables.arrays
        bits = np.unpackbits(arrays.taken.view(np.uint8), bitorder="little")
        return {
            row: (int(arrays.columns[LENGTH, row]), arrays.pages[row].tolist())
            for row in np.flatnonzero(bits).tolist()
        }

    def read(self, message: list[int]) -> list[tuple[int, ...]]:
        if self.anew:
            self.rows = {}
        count, rows, *unused = message[:HEADER_WORDS]
        end = HEADER_WORDS + count * RECORD_WORDS
        assert unused == [-77, -77]
        ids = message[end:]
        made = [
            tuple(message[at : at + RECORD_WORDS]) for at in range(HEADER_WORDS, end, RECORD_WORDS)
        ]
        assert len({row for row, *_ in made}) == rows
        put = 0
        for row, tokens, first, new, nulls, start in made:
            assert start == put
            assert new <= PART
            length, pages = self.rows.pop(row, (0, [NULL] * self.tables.max_pages_per_sequence))
            pages[first : first + new] = ids[put : put + new]
            pages[first + new : first + new + nulls] = [NULL] * nulls
            put += new
            if tokens == NOBODY:
                assert pages == [NULL] * len(pages)
            else:
                self.rows[row] = length if tokens == LATER else tokens, pages
        assert put == len(ids), "nobody reads the ids at the end"
        return made
