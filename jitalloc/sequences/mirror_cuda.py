"""BlockTableMirror on the GPU: one copy from pinned memory and one launch bring what changed."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import JitallocError
from jitalloc.gpu.record import CALL_KINDS, FAULT_CALL, FAULT_KIND
from jitalloc.gpu.slab import ITEMS, CudaSlab, blocks_for
from jitalloc.pool.faults_cuda import fault_error
from jitalloc.sequences.loops.mirror import HEADER_WORDS, RECORD_WORDS, RECORDS, ROWS
from jitalloc.sequences.loops.mirror_cuda import WARP, mirror_apply_cuda
from jitalloc.sequences.mirror import BlockTableMirror, Mirrored
from jitalloc.sequences.tables_cuda import CudaBlockTables
from jitalloc.state import HEADER_SLOTS, INT32, INT32_MAX

IDS = 4  # new page ids a row that there is room for at first


class MirrorRecord(CudaSlab):
    """Stands for the pool of the tables on the GPU: it keeps what their exports have to tell."""

    num_pages = INT32_MAX  # it is not known how many there are: their ids are int32

    def __init__(self, page_size: int, stream: Any) -> None:
        self.page_size = page_size
        self._put(np.zeros(HEADER_SLOTS, np.int64))
        self.stream = stream

    def _fault(self, record: NDArray[np.int64]) -> JitallocError:
        error = fault_error(record, self.page_size, False, 0)
        kind = CALL_KINDS[int(record[FAULT_KIND])]
        error.__notes__ = [
            f"raised late: it is export {int(record[FAULT_CALL])} of the mirror ({kind})"
        ]
        return error


class _Sheet:
    """Pinned memory for a message, and the event behind the last copy of it."""

    __slots__ = ("event", "message")

    def __init__(self, message: NDArray[np.int32]) -> None:
        self.message = message
        self.event: Any = None


class CudaBlockTableMirror(BlockTableMirror, device="cuda"):
    """A `BlockTableMirror` on CuPy's current GPU; made by `PagedKVCache.mirror("cuda")`.

    Rows and positions are CuPy's arrays, or anything on the GPU with `__cuda_array_interface__` or
    DLPack; host memory is refused, never copied. All calls go to one stream, that of the mirror
    (`stream`) or else CuPy's current one; on several, events have to order them. Exports with
    caller buffers can be captured in a CUDA graph; `refresh` before each of its launches changes
    what they read.
    """

    __slots__ = ("_message", "_record", "_sheets", "_wrapped")

    def __init__(
        self,
        tables: Mirrored,
        lock: AbstractContextManager[Any] | None = None,
        stream: Any = None,
    ) -> None:
        super().__init__(tables, lock)
        rows, width = tables.max_sequences, tables.max_pages_per_sequence
        record: Any = MirrorRecord(tables.page_size, stream)
        self._record = record
        self._there = CudaBlockTables(record, rows, width, tables.pad)
        size = HEADER_WORDS + rows * (RECORD_WORDS + IDS)
        self._sheets = [_Sheet(self._record._gpu.pinned(size, INT32)) for _ in range(2)]
        self._take(size)
        self.refresh()

    def __del__(self) -> None:
        with suppress(Exception):  # made in part, or CUDA is gone already
            for sheet in self._sheets:  # a copy may read the memory still
                self._ready(sheet)

    @property
    def stream(self) -> Any:
        """The stream of all calls, as it was given; see `CudaPagePool.stream`. It may be set."""
        return self._record.stream

    @stream.setter
    def stream(self, stream: Any) -> None:
        self._record.stream = stream

    def _take(self, size: int) -> None:
        """Make room on the GPU for messages of `size` words."""
        gpu = self._record._gpu
        self._message = gpu.empty(size, INT32)
        self._wrapped = gpu.wrap(self._message)

    def _ready(self, sheet: _Sheet) -> None:
        """Wait until nobody reads a sheet any more; mostly that was long ago."""
        if sheet.event is not None:
            self._record._gpu.wait_for(sheet.event)
            sheet.event = None

    def refresh(self) -> int:
        """Bring to the GPU what has changed; see `BlockTableMirror.refresh`."""
        gpu = self._record._gpu
        with self._lock:
            sheet = self._sheets[0]
            self._ready(sheet)
            size = self._pack(sheet.message)
            if size > sheet.message.size:
                sheet.message = gpu.pinned(max(size, 2 * sheet.message.size), INT32)
                size = self._pack(sheet.message)
            records, rows = int(sheet.message[RECORDS]), int(sheet.message[ROWS])
            if rows:
                self._anew = True  # until it is on its way
                if size > self._message.size:
                    self._take(sheet.message.size)
                sheet.event = gpu.upload_async(sheet.message[:size], self._message)
                self._sheets.reverse()
                blocks = blocks_for(gpu, ITEMS * WARP * records)
                arrays = self._there._state, self._wrapped
                gpu.launch(mirror_apply_cuda, blocks, gpu.threads, *arrays)
                self._anew = False
        return rows

    def _copy_of_state(self) -> NDArray[np.int64]:
        self._record._settled()
        slab: NDArray[np.int64] = self._record._gpu.download(self._there._slab)
        return slab
