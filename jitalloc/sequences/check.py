"""The invariants of sequences: block table, ids and locks, as `check` and `load` verify them."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import CorruptState, corrupt_error
from jitalloc.prefix.prefix import PrefixCache
from jitalloc.prefix.state import UNCACHED
from jitalloc.sequences.ids import SequenceIds
from jitalloc.sequences.loops.sharing import sharing_check_cpu
from jitalloc.sequences.loops.tables import tables_check_cpu
from jitalloc.sequences.rows import SequenceRows
from jitalloc.sequences.state import LOCK_END, LOCKED
from jitalloc.sequences.tables import BlockTables


def check_sequences(rows: SequenceRows) -> None:
    """Verify every row of the block table, its id and its locks, and the prefix cache."""
    tables, pool = rows.tables, rows.pool
    header = tables.arrays.header
    for slot, value in tables._sizes().items():
        if header[slot] != value:
            raise CorruptState(f"table header[{slot}] is {header[slot]}, the table has {value}")
    owners = np.zeros(pool.num_pages, np.int32)
    status = tables_check_cpu.run(pool._slab, tables._slab, owners)
    if status < 0:
        raise corrupt_error(status)
    _check_ids(rows.ids)
    _check_locks(rows)


def _check_ids(ids: SequenceIds) -> None:
    if sorted(ids.rows.values()) != sorted(ids.live_rows()):
        raise CorruptState("the rows of the ids are not the rows in taken")
    for seq_id, row in ids.rows.items():
        if ids.by_row[row] != seq_id:
            raise CorruptState(f"row {row} is not the row of {seq_id!r}")


def _check_locks(rows: SequenceRows) -> None:
    if rows.prefix_cache is None:
        if rows.tables.arrays.columns[LOCKED].any():
            raise CorruptState("a row locks cached pages, but there is no prefix cache")
        return
    rows.prefix_cache.check()
    locks = np.zeros(rows.pool.num_pages, np.int32)
    slabs = rows.tables._slab, rows.index._slab
    status = rows.pool._run(sharing_check_cpu, *slabs, locks)
    if status < 0:
        raise corrupt_error(status)


def check_paths(tables: BlockTables, prefix: PrefixCache) -> None:
    """Verify that rows from a file lock paths that are there, before these are walked."""
    columns = tables.arrays.columns
    following, previous = prefix.arrays.following_pages, prefix.arrays.previous_pages
    for row in np.flatnonzero(columns[LOCKED]).tolist():
        depth, page = int(columns[LOCKED, row]), int(columns[LOCK_END, row])
        sound = 0 <= page < following.size and UNCACHED != following[page] < 0
        while sound and page >= 0:
            page, depth = int(previous[page]), depth - 1
        if not sound or depth:
            raise CorruptState(f"row {row} locks a path of cached pages that is not there")
