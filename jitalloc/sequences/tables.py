"""BlockTables: rows of page ids, and the layouts that attention kernels read."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from jitalloc.arguments import as_count, as_integers, as_lengths, as_out
from jitalloc.choices import Device
from jitalloc.errors import (
    CHANGED,
    POSITION_RANGE,
    TABLE_WIDTH,
    InvalidArgument,
    WrongDevice,
    argument_error,
    unpack_status,
)
from jitalloc.sequences.attention import (
    AttentionBatch,
    as_attention,
    as_new,
    as_slot_dtype,
    as_slots,
    attention_error,
    check_buffers,
    narrowed,
    new_buffers,
    parts_of,
    wide_buffers,
)
from jitalloc.sequences.loops.attention import attention_export_cpu, attention_total_cpu
from jitalloc.sequences.loops.tables import (
    tables_csr_cpu,
    tables_lengths_cpu,
    tables_padded_cpu,
    tables_rename_cpu,
    tables_slots_cpu,
    tables_total_cpu,
    tables_width_cpu,
)
from jitalloc.sequences.mirror import BlockTableMirror, mirror_of
from jitalloc.sequences.state import (
    MAX_PAGES,
    NUM_ROWS,
    ROW_PAGE_SHIFT,
    ROW_PAGE_SIZE,
    TableArrays,
    table_arrays,
    table_slab_words,
)
from jitalloc.state import INT32, INT64, NULL, page_shift


class PageTableCSR(NamedTuple):
    """Pages of a batch in compressed sparse rows, as FlashInfer reads them.

    Attributes
    ----------
    indptr : int32[B + 1]
        The pages of sequence `i` are `indices[indptr[i] : indptr[i + 1]]`.
    indices : int32[indptr[B]]
        A caller's buffer may hold more elements; they are NULL.
    last_page_len : int32[B]
        Tokens in the last page, `1 .. page_size`; `page_size` for an empty sequence, so that
        `(pages - 1) * page_size + last_page_len` is the length of each.
    """

    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]
    last_page_len: NDArray[np.int32]


def as_csr(out: Any) -> PageTableCSR:
    """Return `out` if it is a `PageTableCSR`, whatever its arrays are."""
    if not isinstance(out, PageTableCSR):
        raise InvalidArgument("out", type(out).__name__, "must be a PageTableCSR of buffers")
    return out


class BlockTables:
    """One row of page ids a sequence, and its length; `PagedKVCache` writes, others read.

    Parameters
    ----------
    max_sequences : int
        Rows.
    max_pages_per_sequence : int
        Page ids a row.
    page_size : int
        Tokens a page.
    pad : int
        What fills a row of `block_tables` behind the last page.

    Attributes
    ----------
    arrays : TableArrays
        Named views into the state.

    Notes
    -----
    All exports are copies (or fill the caller's buffer): they do not follow the tables.
    """

    __slots__ = (
        "_slab",
        "arrays",
        "max_pages_per_sequence",
        "max_sequences",
        "pad",
        "page_size",
    )

    def __init__(
        self,
        max_sequences: int,
        max_pages_per_sequence: int,
        page_size: int,
        pad: int = NULL,
    ) -> None:
        rows = as_count("max_sequences", max_sequences, 1)
        width = as_count("max_pages_per_sequence", max_pages_per_sequence, 1)
        size = as_count("page_size", page_size, 1)
        self.max_sequences = rows
        self.max_pages_per_sequence = width
        self.page_size = size
        self.pad = pad
        slab = np.zeros(table_slab_words(rows, width), np.int64)
        for slot, value in self._sizes().items():
            slab[slot] = value
        table_arrays(slab).pages[:] = NULL
        self._install(slab)

    def __reduce__(self) -> tuple[Any, ...]:
        sizes = self.max_sequences, self.max_pages_per_sequence, self.page_size, self.pad
        return type(self)._revive, (*sizes, self._slab.copy())

    @classmethod
    def _revive(
        cls, rows: int, width: int, page_size: int, pad: int, slab: NDArray[np.int64]
    ) -> Self:
        """Return a copy of tables: what `pickle` and `copy` call."""
        tables = cls(rows, width, page_size, pad)
        tables._install(slab.copy())
        return tables

    def _install(self, slab: NDArray[np.int64]) -> None:
        self.arrays: TableArrays = table_arrays(slab)
        self._slab = slab

    def _sizes(self) -> dict[int, int]:
        """Return what the header says of the sizes, by its slots."""
        return {
            NUM_ROWS: self.max_sequences,
            MAX_PAGES: self.max_pages_per_sequence,
            ROW_PAGE_SIZE: self.page_size,
            ROW_PAGE_SHIFT: page_shift(self.page_size),
        }

    def _row_error(self, status: int, argument: str, rows: NDArray[Any]) -> InvalidArgument:
        """Return the exception for a status word about an element of `rows`."""
        return argument_error(status, argument, rows, 0, self.max_sequences - 1)

    def _checked(self, status: int, rows: NDArray[np.int32]) -> int:
        if status < 0:
            raise self._row_error(status, "rows", rows)
        return status

    def block_tables(
        self,
        rows: ArrayLike,
        *,
        width: int | None = None,
        out: NDArray[np.int32] | None = None,
    ) -> NDArray[np.int32]:
        """Return the page ids of each sequence, padded, as vLLM and TensorRT-LLM read them.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, in any order.
        width : int, optional
            Columns of the result; by default the pages of the longest of these sequences.
        out : int32[B, width], optional
            C-contiguous buffer for the result.

        Returns
        -------
        int32[B, width]
            Padded with `NULL` (-1), or with page 0 where the pool keeps it as null page.
            To index by it, as in `k[tables]`, make the pool with `null_page=True`: NumPy takes -1
            for the last page, which some sequence may hold, and says nothing.

        Raises
        ------
        InvalidArgument
            A row is out of range or free, a sequence needs more than `width` pages, or `out`
            does not fit.
        """
        rows = as_integers("rows", rows, INT32)
        if out is not None:
            if hasattr(out, "__cuda_array_interface__"):
                raise WrongDevice("out", type(out).__name__, "the tables live on the CPU")
            if type(out) is not np.ndarray or out.ndim != 2 or out.shape[0] != rows.size:
                shape = getattr(out, "shape", type(out).__name__)
                raise InvalidArgument("out", shape, f"must be int32[{rows.size}, width]")
            if width not in (None, out.shape[1]):
                raise InvalidArgument("width", width, f"out has {out.shape[1]} columns")
            if not out.flags.c_contiguous:
                raise InvalidArgument("out", out.strides, "must be C-contiguous")
            as_out(out.reshape(-1), INT32, out.size)
            table = out
        else:
            if width is None:
                width = self._checked(tables_width_cpu.run(self._slab, rows), rows)
            table = np.empty((rows.size, as_count("width", width)), np.int32)
        status = tables_padded_cpu.run(self._slab, rows, table, self.pad)
        if status < 0 and unpack_status(status)[0] == TABLE_WIDTH:
            position = unpack_status(status)[1]
            raise InvalidArgument(
                "width", table.shape[1], f"the sequence of rows[{position}] has more pages"
            )
        self._checked(status, rows)
        return table

    def slot_mapping(
        self,
        rows: ArrayLike,
        positions: ArrayLike,
        *,
        dtype: DTypeLike | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Return the slot of token `positions[i]` of the sequence in `rows[i]`.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences; a row may stand there many times.
        positions : array_like of int64[B]
            Token positions, `0 .. length - 1`.
        dtype : {int64, int32}, optional
            Of the slots: int64, unless `out` says otherwise.
        out : int64[B] or int32[B], optional
            Buffer for the result; may be `positions` itself.

        Returns
        -------
        int64[B] or int32[B]

        Raises
        ------
        InvalidArgument
            A row is out of range or free, a position is not in its sequence, `out` does not fit, or
            a slot does not fit `dtype`.
        """
        rows = as_integers("rows", rows, INT32)
        positions = as_lengths("positions", positions, rows.size)
        plain = dtype is None and (out is None or getattr(out, "dtype", None) is INT64)
        kind = INT64 if plain else as_slot_dtype(dtype, out)
        if out is not None:
            as_out(out, kind, rows.size)
        slots = np.empty(rows.size, INT64) if out is None or kind is not INT64 else out
        status = tables_slots_cpu.run(self._slab, rows, positions, slots)
        if status < 0 and unpack_status(status)[0] == POSITION_RANGE:
            raise argument_error(status, "positions", positions)
        self._checked(status, rows)
        return slots if kind is INT64 else as_slots(slots, kind, out)

    def page_table_csr(self, rows: ArrayLike, *, out: PageTableCSR | None = None) -> PageTableCSR:
        """Return the page ids of each sequence in compressed sparse rows (FlashInfer).

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, in any order.
        out : PageTableCSR, optional
            Buffers for the result: `indptr` and `last_page_len` of its size, `indices` of any
            size that suffices, NULL behind the last page.

        Returns
        -------
        PageTableCSR

        Raises
        ------
        InvalidArgument
            A row is out of range or free, or a buffer does not fit.
        """
        rows = as_integers("rows", rows, INT32)
        batch = rows.size
        if out is not None:
            starts, buffer, last = as_csr(out)
            as_out(starts, INT32, batch + 1, "out.indptr")
            as_out(buffer, INT32, None, "out.indices")
            as_out(last, INT32, batch, "out.last_page_len")
        while True:
            total = self._checked(tables_total_cpu.run(self._slab, rows), rows)
            if out is None:
                starts, last = np.empty(batch + 1, np.int32), np.empty(batch, np.int32)
                buffer = np.empty(total, np.int32)
            if total > buffer.size:
                raise InvalidArgument(
                    "out.indices", buffer.size, f"the call makes {total} elements"
                )
            status = tables_csr_cpu.run(self._slab, rows, starts, buffer[:total], last)
            if status == 0:
                buffer[total:] = NULL
                return PageTableCSR(starts, buffer, last)
            if unpack_status(status)[0] != CHANGED:  # another thread wrote to a sequence: again
                raise self._row_error(status, "rows", rows)

    def seq_lens(
        self, rows: ArrayLike, *, out: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        """Return the tokens of each sequence.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, in any order.
        out : int32[B], optional
            Buffer for the result.

        Returns
        -------
        int32[B]

        Raises
        ------
        InvalidArgument
            A row is out of range or free, or `out` does not fit.
        """
        rows = as_integers("rows", rows, INT32)
        lengths = np.empty(rows.size, np.int32) if out is None else as_out(out, INT32, rows.size)
        self._checked(tables_lengths_cpu.run(self._slab, rows, lengths), rows)
        return lengths

    def attention_batch(
        self,
        rows: ArrayLike,
        num_new: ArrayLike,
        *,
        dtype: DTypeLike | None = None,
        out: AttentionBatch | None = None,
    ) -> AttentionBatch:
        """Return all that one paged attention call reads, the last `num_new` tokens being new.

        Positions count the tokens that a sequence has now, as `slot_mapping` does. Where
        `apply_streaming_llm` or `apply_window` has dropped tokens, those behind have moved up:
        StreamingLLM rotates keys by just these positions in the cache. An engine that wants those
        of the whole text adds what these calls say they dropped.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, in any order.
        num_new : int or array_like of int32[B]
            How many of its last tokens are queries, for all or for each: what `append_batch` has
            just added, a chunk of a prompt, or 0. At most the tokens of the sequence.
        dtype : {int64, int32}, optional
            Of positions and slots: int64 by default, as vLLM and SGLang read them. FlashInfer
            appends with int32.
        out : AttentionBatch, optional
            Buffers for the result, by their dtype: `positions` and `slots` of any one size that
            suffices, `kv_indices` too, the others of their size. None may overlap another.

        Returns
        -------
        AttentionBatch

        Raises
        ------
        InvalidArgument
            A row is out of range or free, `num_new` is negative or more than a sequence has, a
            buffer does not fit, or a slot does not fit `dtype`. Nothing is written then.
        """
        rows = as_integers("rows", rows, INT32)
        counts = as_new(num_new, rows.size)
        if out is not None:
            check_buffers(as_attention(out), rows.size)
        kind = as_slot_dtype(dtype, None if out is None else out.slots)
        while True:
            made = out
            if made is None:
                sizes = np.empty(2, INT64)
                status = attention_total_cpu.run(self._slab, rows, counts, sizes)
                if status < 0:
                    raise attention_error(status, self._slab, self.arrays, rows, counts)
                made = new_buffers(rows.size, *sizes.tolist())
            elif kind != INT64:
                made = wide_buffers(made)
            status = attention_export_cpu.run(self._slab, rows, counts, *parts_of(made))
            if status == 0:
                return made if kind == INT64 else narrowed(made, kind, out)
            if unpack_status(status)[0] != CHANGED:  # another thread wrote to a sequence: again
                raise attention_error(status, self._slab, self.arrays, rows, counts, made)

    def mirror(self, device: Device = "cuda", *, stream: Any = None) -> BlockTableMirror:
        """Return a copy on a GPU that follows these tables, for an engine driven by the host.

        While another thread calls the cache that writes the tables, use `PagedKVCache.mirror`.

        Parameters
        ----------
        device : {"cuda"}
        stream : object, optional
            Of CuPy, of torch, or its address: where all calls go. Else CuPy's current one.

        Returns
        -------
        BlockTableMirror
            As the tables are now; its `refresh` brings what has changed since.

        Raises
        ------
        WrongDevice
            `device` is unknown or cannot be used here, or the tables live on the GPU themselves.
        """
        return mirror_of(self, device, stream)

    def _rename(self, names: NDArray[np.int32]) -> None:
        """Write `names[p]` wherever page `p` stands; the caller is inside the pool."""
        tables_rename_cpu.run(self._slab, names)

    def __repr__(self) -> str:
        return (
            f"BlockTables(max_sequences={self.max_sequences}, "
            f"max_pages_per_sequence={self.max_pages_per_sequence}, page_size={self.page_size})"
        )
