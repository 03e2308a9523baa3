"""BlockTableMirror: block tables of the CPU, followed by a copy where attention kernels read."""

from __future__ import annotations

import threading
from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import CorruptState, WrongDevice
from jitalloc.on_device import OnDevice
from jitalloc.sequences.loops.mirror import mirror_pack_cpu
from jitalloc.sequences.state import LENGTH, TableArrays, table_arrays
from jitalloc.snapshot import uncopied


class Mirrored(Protocol):
    """What a mirror asks of block tables."""

    _slab: NDArray[np.int64]
    max_sequences: int
    max_pages_per_sequence: int
    page_size: int
    pad: int


class BlockTableMirror(OnDevice):
    """A copy on the GPU of block tables that live on the CPU; made by `PagedKVCache.mirror`.

    For engines whose scheduler runs on the host: pool, tables and prefix cache live on the CPU,
    where a call takes microseconds and its errors come at once, and once a step `refresh` brings
    to the GPU what has changed. The layouts that attention kernels read are then made there, from
    rows and into buffers that are there.

    Notes
    -----
    The mirror has what the exports read: which rows live, their lengths and page ids. Rows are
    compared with what was sent last, id by id, so every change is seen, whatever call made it:
    1,024 rows that each grew by a token cost the host about 25 us, or 50 where they have 500 pages.

    The first failure of an export is kept, as on a pool of the GPU. The next call that waits raises
    it: `check`, or an export that has to learn its size.

    Examples
    --------
    >>> mirror = cache.mirror("cuda")  # doctest: +SKIP
    >>> rows_there = cupy.asarray(cache.rows(batch))  # doctest: +SKIP
    >>> cache.append_batch(rows)  # doctest: +SKIP
    >>> mirror.refresh()  # doctest: +SKIP
    1024
    >>> mirror.block_tables(rows_there, out=tables_there)  # doctest: +SKIP
    """

    __reduce_ex__ = uncopied("it follows tables to a GPU; make another one")

    __slots__ = ("_anew", "_lock", "_sent", "_tables", "_there")

    stream: Any
    _there: Any  # the tables of the device

    def __init__(self, tables: Mirrored, lock: AbstractContextManager[Any] | None = None) -> None:
        if type(tables._slab) is not np.ndarray:
            raise WrongDevice("tables", type(tables).__name__, "they live on the GPU themselves")
        self._tables = tables
        self._lock = threading.RLock() if lock is None else lock
        self._sent = tables._slab.copy()  # its header tells the sizes; nothing else counts yet
        self._anew = True

    def _pack(self, message: NDArray[np.int32]) -> int:
        """Write what has changed since it was told last; return how many words it takes.

        Where `message` has fewer, nothing has been told.
        """
        return int(mirror_pack_cpu.run(self._tables._slab, self._sent, message, int(self._anew)))

    @abstractmethod
    def refresh(self) -> int:
        """Bring to the device what has changed since the last call, and wait for nothing.

        One copy in stream order, from memory of the host that is pinned, and one launch; nothing
        where nothing has changed. What the stream does behind it sees the tables as they are now,
        whatever the host does to them meanwhile.

        Returns
        -------
        int
            Rows that were brought.

        Raises
        ------
        InvalidArgument
            The stream is being captured: a graph would bring the tables of now each time it runs.

        Notes
        -----
        Two messages can be under way; the next one waits until the copy of the first is done.
        Memory grows with the largest message so far, and to get it takes long: the first call, made
        by the constructor, mostly brings little.
        """

    @abstractmethod
    def _copy_of_state(self) -> NDArray[np.int64]:
        """Wait, raise the first failure of an export, or return a copy of the tables there."""

    def check(self) -> None:
        """Raise the first failure of an export, or verify that the mirror has what it was told.

        Waits, and copies the state.

        Raises
        ------
        CorruptState
            A row of the mirror is not what was sent.
        """
        with self._lock:
            rows, width = self._tables.max_sequences, self._tables.max_pages_per_sequence
            there = table_arrays(self._copy_of_state(), rows, width)
            self._compare(there, table_arrays(self._sent, rows, width))

    def _compare(self, there: TableArrays, sent: TableArrays) -> None:
        lives = [
            np.unpackbits(each.taken.view(np.uint8), bitorder="little")[: each.pages.shape[0]]
            for each in (there, sent)
        ]
        wrong = lives[0] != lives[1]
        wrong |= there.columns[LENGTH] != sent.columns[LENGTH]
        wrong |= (there.pages != sent.pages).any(axis=1)
        if wrong.any():
            raise CorruptState(f"row {int(np.argmax(wrong))} of the mirror is not what was sent")

    def block_tables(self, rows: Any, *, width: int | None = None, out: Any = None) -> Any:
        """Return padded page ids, `int32[B, width]`, on the device; see `BlockTables.block_tables`.

        One launch. Without `width` and `out` the call waits, to learn how many columns there are.
        """
        return self._there.block_tables(rows, width=width, out=out)

    def slot_mapping(self, rows: Any, positions: Any, *, dtype: Any = None, out: Any = None) -> Any:
        """Return the slots of tokens, `int64[B]`, on the device; see `BlockTables.slot_mapping`.

        One launch; waits for nothing. As the mirror does not know the size of the pool, it gives
        int32 only where a page is one token.
        """
        return self._there.slot_mapping(rows, positions, dtype=dtype, out=out)

    def page_table_csr(self, rows: Any, *, out: Any = None) -> Any:
        """Return a `PageTableCSR` of arrays on the device; see `BlockTables.page_table_csr`.

        One launch. Without `out` the call waits, to learn how many pages there are.
        """
        return self._there.page_table_csr(rows, out=out)

    def attention_batch(
        self, rows: Any, num_new: Any, *, dtype: Any = None, out: Any = None
    ) -> Any:
        """Return an `AttentionBatch` on the device; see `BlockTables.attention_batch`.

        One launch. Without `out` the call waits, to learn how many tokens and pages there are. Of
        int32 as in `slot_mapping`.
        """
        return self._there.attention_batch(rows, num_new, dtype=dtype, out=out)

    def seq_lens(self, rows: Any, *, out: Any = None) -> Any:
        """Return the tokens of each sequence, `int32[B]` on the device: see `BlockTables.seq_lens`.

        One launch; waits for nothing.
        """
        return self._there.seq_lens(rows, out=out)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self._tables!r}"


def mirror_of(
    tables: Mirrored,
    device: Any,
    stream: Any,
    lock: AbstractContextManager[Any] | None = None,
) -> BlockTableMirror:
    """Return a mirror of `tables` of the class that manages `device`.

    `lock` is held while the tables are read.
    """
    made = BlockTableMirror._by_device.get(device) if isinstance(device, str) else None
    if made is None:
        raise WrongDevice("device", device, "a mirror can live on 'cuda' only")
    mirror: BlockTableMirror = made(tables, lock, stream)
    return mirror
