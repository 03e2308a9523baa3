"""PagedKVCache on the GPU: batches of rows grow, fork and reorder without a wait."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from jitalloc._cuda import CudaKernel
from jitalloc.arguments import as_count
from jitalloc.cuda.arguments import as_device, as_device_out
from jitalloc.cuda.holding import CudaSequenceState
from jitalloc.errors import TOO_MANY, InvalidArgument, argument_error, pack_status
from jitalloc.kernels.cuda.sequences import (
    FACTS,
    sequences_append_cuda,
    sequences_append_serial_cuda,
    sequences_fork_batch_cuda,
    sequences_reorder_cuda,
)
from jitalloc.moves import Moves
from jitalloc.sequences import Appended
from jitalloc.state import INT32, INT32_MAX, INT64, NULL
from jitalloc.stats import SequenceInfo
from jitalloc.tables import PageTableCSR


class CudaPagedKVCache(CudaSequenceState, device="cuda"):
    """A `PagedKVCache` whose arrays live on the GPU; made by giving it a pool on the GPU.

    The calls are those of the CPU, with the same results and the same state, and these differences.

    - Arrays are CuPy's, or anything on the GPU with `__cuda_array_interface__` or DLPack: rows and
      tokens `int32`, counts `int64`. Host memory is refused, never copied.
    - `append_batch`, `fork_batch`, `reorder` and the layouts (`block_tables`, `slot_mapping`,
      `page_table_csr`, `seq_lens`) are one launch on CuPy's current stream and wait for nothing,
      unless their docstrings say so. One that fails changes nothing and fills its results with
      NULL; the next call that waits raises it (`CudaPagePool` says more).
    - All other calls take sequence ids or return what Python has to see: they wait for the GPU,
      raise an earlier failure before they begin, and their own at once. `pin`, `unpin` and
      `set_priority` do not wait.
    - A batch call behind a prefix cache, and every call that waits, is run by one thread: what
      enters the cache or gives way has no order but that of the loop of the CPU. Without a prefix
      cache `append_batch`, `fork_batch` and `reorder` are run by a block.
    - Given fixed shapes and caller buffers, every call that does not wait can be captured in a CUDA
      graph, once it has been made outside of one: the first call with an `n`, and the first
      `reorder`, make arrays that stay. `restore`, and `resize` of the pool, make the state anew:
      graphs captured before are stale.
    """

    def _launch(self, kernel: CudaKernel, serial: bool, *arguments: Any) -> None:
        """Start a kernel in one block, on record, pool and tables."""
        gpu, words, tables = self.pool._gpu, self.pool._words, self.tables._slab
        if self._bound[0] is not words or self._bound[1] is not tables:  # not yet, or made anew
            self._bound = words, tables, (gpu.wrap(words), gpu.wrap(tables))
        threads = 1 if serial else gpu.threads
        gpu.launch(kernel, 1, threads, *self._bound[2], *map(gpu.wrap, arguments))

    def rows(self, seq_ids: Iterable[Hashable]) -> Any:
        """Return the rows of sequences as `int32[B]` on the GPU: see `PagedKVCache.rows`.

        They are copied there: keep them as long as the batch stays the same.
        """
        return self.pool._gpu.upload(super().rows(seq_ids))

    def sequence(self, seq_id: Hashable) -> SequenceInfo:
        """Return what is known of a sequence, `pages` on the GPU: see `PagedKVCache.sequence`."""
        self.pool._settled()
        return super().sequence(seq_id)

    def append(self, seq_id: Hashable, n: int | None = None, *, tokens: Any = None) -> Appended:
        """Grow a sequence by `n` tokens, and wait: see `PagedKVCache.append`.

        Parameters
        ----------
        seq_id : Hashable
        n : int, optional
        tokens : int32[n], optional

        Returns
        -------
        Appended
            `int64[n]` slots and `int32` pages on the GPU, no longer than they have to be.
        """
        gpu = self.pool._gpu
        if n is None:
            n = 1 if tokens is None else self._as_tokens(tokens).size
        with self.lock:
            rows = self.rows([seq_id])
            self.pool._settled()
            slots, copies = self.append_batch(rows, n, tokens=tokens)
            self.pool._settled()
            count = int((gpu.download(copies.src) != NULL).sum())
        return Appended(slots, Moves(copies.src[:count], copies.dst[:count]))

    def append_batch(
        self, rows: Any, n: Any = 1, *, tokens: Any = None, out: Any = None, copies: Any = None
    ) -> Appended:
        """Grow sequences by `n` tokens each, all or nothing: see `PagedKVCache.append_batch`.

        Parameters
        ----------
        rows : int32[B]
        n : int or int64[B]
            New tokens, for all or for each. A number is kept on the GPU when it first comes.
        tokens : int32[sum(n)], optional
            Ids of the new tokens. With `n` on the GPU, an empty array is like none.
        out : int64[any], optional
            Buffer for the slots, NULL behind the last. Without it, and with `n` on the GPU, the
            call waits to learn how many there are, and raises at once what failed.
        copies : int32[2, B], optional
            Buffer for the pages to copy, sources and destinations, NULL behind the last.

        Returns
        -------
        Appended
            `copies` are as long as the batch, NULL behind the last.
        """
        gpu = self.pool._gpu
        rows = self._as_rows("rows", rows)
        batch = rows.size
        most = (batch + self.pool.num_pages) * self.pool.page_size
        total, counts = self._counts(n, batch)
        waits = total is None and out is None
        if waits:
            total = int(np.clip(gpu.download(counts), 0, most).sum())
        ids = self._no_tokens if tokens is None else self._as_tokens(tokens)
        if tokens is not None and ids.size != total and total is not None:
            text = f"must have {total} elements, one a new token"
            raise InvalidArgument("tokens", ids.size, text)
        size = min(total or 0, most) if out is None else None
        slots = as_device_out(gpu, "out", out, INT64, size)
        moved = self._moves(copies, batch)
        flat = moved.reshape(-1)
        with self.lock:
            if self.prefix_cache is None:
                self._launch(sequences_append_cuda, False, rows, counts, ids, slots, flat)
            else:
                arrays = (self._prefix, rows, counts, ids, slots, flat)
                self._launch(sequences_append_serial_cuda, True, *arrays)
            if waits:
                self.pool._settled()
        return Appended(slots, Moves(moved[0], moved[1]))

    def _counts(self, n: Any, batch: int) -> tuple[int | None, Any]:
        """Return how many tokens come in all, where that is known, and how many a row."""
        gpu = self.pool._gpu
        if isinstance(n, list | tuple) or getattr(n, "ndim", 0) != 0:
            return None, as_device(gpu, "n", n, INT64, batch)
        n = as_count("n", n)
        if n * batch > INT32_MAX:
            raise argument_error(pack_status(TOO_MANY, 0), "n", [n])
        if n not in self._constants:  # for good: a CUDA graph may have captured it
            self._constants[n] = gpu.upload(np.array([n]))
        return n * batch, self._constants[n]

    def _moves(self, copies: Any, batch: int) -> Any:
        """Return the buffer `copies`, or a new one where it is None."""
        gpu = self.pool._gpu
        if copies is None:
            return gpu.empty(2 * batch, INT32).reshape(2, batch)
        array = gpu.adopt("copies", copies)
        if array.shape != (2, batch) or array.dtype != INT32 or not array.flags.c_contiguous:
            shown = f"{array.dtype}{list(array.shape)}"
            raise InvalidArgument("copies", shown, f"must be a contiguous int32[2, {batch}]")
        return array

    def fork_batch(self, src_rows: Any, dst_rows: Any) -> None:
        """Let empty sequences share all pages of others: see `PagedKVCache.fork_batch`.

        Parameters
        ----------
        src_rows, dst_rows : int32[B]
        """
        src_rows = self._as_rows("src_rows", src_rows)
        dst_rows = self._as_rows("dst_rows", dst_rows)
        self._same_length("dst_rows", dst_rows, src_rows)
        with self.lock:
            self._launch(sequences_fork_batch_cuda, False, self._prefix, src_rows, dst_rows)

    def reorder(self, rows: Any, parents: Any) -> None:
        """Let each sequence continue another one: see `PagedKVCache.reorder`.

        The first call makes scratch as large as the block table, and keeps it.

        Parameters
        ----------
        rows, parents : int32[B]
        """
        rows = self._as_rows("rows", rows)
        parents = self._as_rows("parents", parents)
        self._same_length("parents", parents, rows)
        with self.lock:
            if self._scratch is None:
                height, width = self.tables.max_sequences, self.tables.max_pages_per_sequence
                words = FACTS * height + 1 + (height * width + 1) // 2
                self._scratch = self.pool._gpu.empty(words, INT64)
            arrays = (self._prefix, rows, parents, self._scratch)
            self._launch(sequences_reorder_cuda, False, *arrays)

    def block_tables(self, rows: Any, **options: Any) -> Any:
        """Return padded page ids: see `CudaBlockTables.block_tables`."""
        return self.tables.block_tables(rows, **options)

    def slot_mapping(self, rows: Any, positions: Any, **options: Any) -> Any:
        """Return the slots of tokens: see `CudaBlockTables.slot_mapping`."""
        return self.tables.slot_mapping(rows, positions, **options)

    def page_table_csr(self, rows: Any, **options: Any) -> PageTableCSR:
        """Return page ids in compressed sparse rows: see `CudaBlockTables.page_table_csr`."""
        csr: PageTableCSR = self.tables.page_table_csr(rows, **options)
        return csr

    def seq_lens(self, rows: Any, **options: Any) -> Any:
        """Return the tokens of each sequence: see `CudaBlockTables.seq_lens`."""
        return self.tables.seq_lens(rows, **options)
