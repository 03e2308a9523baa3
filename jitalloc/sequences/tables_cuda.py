"""Block tables on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.arguments import as_count
from jitalloc.errors import InvalidArgument
from jitalloc.gpu.arguments import as_device, as_device_out, as_integers
from jitalloc.gpu.kernel import CudaKernel
from jitalloc.gpu.slab import ITEMS, blocks_for
from jitalloc.sequences.attention import (
    AttentionBatch,
    as_attention,
    as_slot_dtype,
    check_slots_fit,
)
from jitalloc.sequences.loops.attention_cuda import attention_export_cuda, attention_total_cuda
from jitalloc.sequences.loops.tables_cuda import (
    tables_csr_cuda,
    tables_lengths_cuda,
    tables_padded_cuda,
    tables_rename_cuda,
    tables_slots_cuda,
    tables_total_cuda,
    tables_width_cuda,
)
from jitalloc.sequences.state import TableArrays, table_arrays
from jitalloc.sequences.tables import BlockTables, PageTableCSR, as_csr
from jitalloc.snapshot import uncopied
from jitalloc.state import INT32, INT64

if TYPE_CHECKING:
    from jitalloc.pool.pool_cuda import CudaPagePool


class CudaBlockTables(BlockTables):
    """`BlockTables` whose arrays live on the GPU, beside those of a pool.

    The exports are those of the CPU, with the differences of all calls on the GPU.

    - `rows` are `int32` and `positions` `int32` or `int64` on the GPU. Host memory is refused,
      never copied. A row that is NULL fills a batch up: it is like a sequence without tokens, and
      its slot is NULL.
    - An export is one launch on the current stream and waits for nothing, unless its docstring
      says so. With caller buffers it can be captured in a CUDA graph.
    - Where a row is refused, all of the result is NULL; the pool keeps the failure like that of
      a call of its own, and raises it later.
    """

    __reduce_ex__ = uncopied("they live on the GPU")

    __slots__ = ("_state", "pool")

    def __init__(
        self, pool: CudaPagePool, max_sequences: int, max_pages_per_sequence: int, pad: int
    ) -> None:
        self.pool = pool
        super().__init__(max_sequences, max_pages_per_sequence, pool.page_size, pad)

    def _install(self, slab: NDArray[np.int64]) -> None:
        gpu = self.pool._gpu
        self._slab = gpu.keep(slab)
        self._state = gpu.wrap(self._slab)
        self.arrays = table_arrays(self._slab, self.max_sequences, self.max_pages_per_sequence)

    def _copy_on_cpu(self) -> TableArrays:
        """Return the named arrays of a copy on the host. Waits for the GPU."""
        slab = self.pool._gpu.download(self._slab)
        return table_arrays(slab, self.max_sequences, self.max_pages_per_sequence)

    def _start(self, kernel: CudaKernel, elements: int, *arguments: Any) -> None:
        """Launch an export with a thread for each `ITEMS` of `elements`; 0: in one block."""
        pool = self.pool
        gpu = pool._gpu
        blocks, wrapped = blocks_for(gpu, elements), pool._wrapped(arguments)
        with pool._calls:
            gpu.launch(kernel, blocks, gpu.threads, pool._state[1], self._state, *wrapped)

    def _number(self, kernel: CudaKernel, rows: Any) -> int:
        """Return the number that `kernel` finds out about `rows`; waits for the GPU."""
        (found,) = self._numbers(kernel, 1, rows)
        return found

    def _numbers(
        self, kernel: CudaKernel, size: int, *arguments: Any, rule: tuple[int, ...] = ()
    ) -> list[int]:
        """Return `size` numbers that `kernel` finds out; waits for the GPU."""
        gpu = self.pool._gpu
        found = gpu.empty(size, INT64)
        with self.pool._calls:
            self._start(kernel, 0, *arguments, found, *rule)
            self.pool._settled()
        numbers: list[int] = gpu.download(found).tolist()
        return numbers

    def block_tables(self, rows: Any, *, width: int | None = None, out: Any = None) -> Any:
        """Return padded page ids, `int32[B, width]`: see `BlockTables.block_tables`.

        Without `width` and `out` the call waits for the GPU, to learn how many columns there are.
        """
        gpu = self.pool._gpu
        rows = as_device(gpu, "rows", rows, INT32)
        batch = rows.size
        if out is not None:
            table = gpu.adopt("out", out)
            if table.ndim != 2 or table.dtype != INT32 or table.shape[0] != batch:
                shown = f"{table.dtype}{list(table.shape)}"
                raise InvalidArgument("out", shown, f"must be int32[{batch}, width]")
            if width not in (None, table.shape[1]):
                raise InvalidArgument("width", width, f"out has {table.shape[1]} columns")
            if not table.flags.c_contiguous:
                raise InvalidArgument("out", table.strides, "must be C-contiguous")
            width = table.shape[1]
        else:
            if width is None:
                width = self._number(tables_width_cuda, rows)
            width = as_count("width", width)
            table = gpu.empty(batch * width, INT32).reshape(batch, width)
        flat = table.reshape(-1)
        self._start(tables_padded_cuda, max(flat.size, batch), rows, flat, width, self.pad)
        return table

    def slot_mapping(self, rows: Any, positions: Any, *, dtype: Any = None, out: Any = None) -> Any:
        """Return the slots of tokens, `int64[B]` or `int32[B]`: see `BlockTables.slot_mapping`.

        `out` may be `positions` itself.
        """
        gpu = self.pool._gpu
        rows = as_device(gpu, "rows", rows, INT32)
        positions = as_integers(gpu, "positions", positions, rows.size)[0].view(INT32)
        slots = None if out is None else gpu.adopt("out", out)
        kind = as_slot_dtype(dtype, slots)
        check_slots_fit(kind, self.pool.num_pages, self.page_size)
        slots = as_device_out(gpu, "out", slots, kind, rows.size)
        wide = int(kind == INT64)
        target = slots.view(INT32) if wide else slots
        self._start(tables_slots_cuda, rows.size, rows, positions, target, wide)
        return slots

    def page_table_csr(self, rows: Any, *, out: PageTableCSR | None = None) -> PageTableCSR:
        """Return page ids in compressed sparse rows: see `BlockTables.page_table_csr`.

        Without `out` the call waits for the GPU, to learn how many pages there are. With it, a
        buffer `out.indices` that is too short is a failure like any other.
        """
        gpu = self.pool._gpu
        rows = as_device(gpu, "rows", rows, INT32)
        batch = rows.size
        starts, pages, last = (None, None, None) if out is None else as_csr(out)
        total = self._number(tables_total_cuda, rows) if out is None else None
        csr = PageTableCSR(
            as_device_out(gpu, "out.indptr", starts, INT32, batch + 1),
            as_device_out(gpu, "out.indices", pages, INT32, total),
            as_device_out(gpu, "out.last_page_len", last, INT32, batch),
        )
        # A thread looks up whose a page is before it copies it: one each, not several in turn.
        self._start(tables_csr_cuda, ITEMS * csr.indices.size, rows, *csr)
        return csr

    def seq_lens(self, rows: Any, *, out: Any = None) -> Any:
        """Return the tokens of each sequence, `int32[B]`: see `BlockTables.seq_lens`."""
        gpu = self.pool._gpu
        rows = as_device(gpu, "rows", rows, INT32)
        lengths = as_device_out(gpu, "out", out, INT32, rows.size)
        self._start(tables_lengths_cuda, rows.size, rows, lengths)
        return lengths

    def attention_batch(
        self, rows: Any, num_new: Any, *, dtype: Any = None, out: AttentionBatch | None = None
    ) -> AttentionBatch:
        """Return all that an attention call reads, on the GPU: see `BlockTables.attention_batch`.

        Without `out` the call waits for the GPU, to learn how many tokens and pages there are. With
        it, a buffer `out.slots` or `out.kv_indices` that is too short is a failure like any other.
        A row that is NULL has as many new tokens as `num_new` says, as `append_batch` counts them:
        of each the position is 0 and the slot NULL, so a captured step keeps its shape.

        Parameters
        ----------
        rows : int32[B]
        num_new : int, or int32[B] or int64[B]
        dtype : {int64, int32}, optional
        out : AttentionBatch, optional
        """
        gpu = self.pool._gpu
        rows = as_device(gpu, "rows", rows, INT32)
        nothing: list[Any] = [None] * len(AttentionBatch._fields)
        given = AttentionBatch(*nothing) if out is None else as_attention(out)
        if out is not None:
            given = given._replace(slots=gpu.adopt("out.slots", given.slots))
        kind = as_slot_dtype(dtype, given.slots)
        check_slots_fit(kind, self.pool.num_pages, self.page_size)
        if isinstance(num_new, list | tuple) or getattr(num_new, "ndim", 0) != 0:
            counts, each = as_integers(gpu, "num_new", num_new, rows.size)[0].view(INT32), -1
        else:
            counts, each = rows, as_count("num_new", num_new)
        tokens = pages = None
        if out is None:
            sizes = self._numbers(attention_total_cuda, 2, rows, counts, rule=(each,))
            tokens, pages = sizes
        batch = rows.size
        slots = as_device_out(gpu, "out.slots", given.slots, kind, tokens)
        made = AttentionBatch(
            as_device_out(gpu, "out.qo_indptr", given.qo_indptr, INT32, batch + 1),
            as_device_out(gpu, "out.positions", given.positions, kind, slots.size),
            slots,
            as_device_out(gpu, "out.kv_indptr", given.kv_indptr, INT32, batch + 1),
            as_device_out(gpu, "out.kv_indices", given.kv_indices, INT32, pages),
            as_device_out(gpu, "out.kv_last_page_len", given.kv_last_page_len, INT32, batch),
            as_device_out(gpu, "out.seq_lens", given.seq_lens, INT32, batch),
        )
        self._start_attention(rows, counts, each, made)
        return made

    def _start_attention(self, rows: Any, counts: Any, each: int, made: AttentionBatch) -> None:
        pool, gpu, wide = self.pool, self.pool._gpu, int(made.slots.dtype == INT64)
        pairs = made
        if wide:
            positions, slots = made.positions.view(INT32), made.slots.view(INT32)
            pairs = made._replace(positions=positions, slots=slots)
        # A thread looks up whose a page or a token is before it writes it: one each.
        elements = ITEMS * max(made.kv_indices.size, made.slots.size)
        wrapped = [
            *pool._wrapped((rows, counts)),
            gpu.wrap_all(pairs),
            *pool._wrapped((each, wide)),
        ]
        blocks = blocks_for(gpu, elements)
        with pool._calls:
            arrays = pool._state[1], self._state
            gpu.launch(attention_export_cuda, blocks, gpu.threads, *arrays, *wrapped)

    def _rename(self, names: Any) -> None:
        gpu = self.pool._gpu
        elements = self.max_sequences * self.max_pages_per_sequence
        gpu.launch(
            tables_rename_cuda,
            blocks_for(gpu, elements),
            gpu.threads,
            self._state,
            gpu.wrap(names),
        )
