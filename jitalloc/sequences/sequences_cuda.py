"""PagedKVCache on the GPU: batches of rows grow, fork, shrink and end without a wait."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from jitalloc.arguments import as_count, check_bool
from jitalloc.errors import TOO_MANY, InvalidArgument, OutOfPages, argument_error, pack_status
from jitalloc.gpu.arguments import as_device, as_device_out, as_integers
from jitalloc.pool.holders import Moves
from jitalloc.sequences.arguments import check_same_length, check_token_count, kept_or_dropped
from jitalloc.sequences.attention import as_slot_dtype
from jitalloc.sequences.loops.eviction_cuda import eviction_window_batch_cuda
from jitalloc.sequences.loops.forking_cuda import FACTS
from jitalloc.sequences.loops.room_cuda import room_count_cuda
from jitalloc.sequences.loops.row_batches_cuda import OPTION
from jitalloc.sequences.loops.sequences_cuda import (
    sequences_append_ahead_cuda,
    sequences_append_cuda,
    sequences_fork_batch_cuda,
    sequences_reorder_cuda,
    sequences_truncate_batch_cuda,
)
from jitalloc.sequences.sequences import Appended, PagedKVCache
from jitalloc.sequences.upkeep_cuda import CudaSequenceUpkeep
from jitalloc.state import INT32, INT32_MAX, INT64, NULL


def reorder_words(batch: int, width: int) -> int:
    """Return how many words of scratch `sequences_reorder_cuda` needs for rows of `width` pages."""
    return (2 + FACTS) * batch + 1 + (batch * width + 1) // 2


class CudaPagedKVCache(CudaSequenceUpkeep, PagedKVCache, device="cuda"):
    """A `PagedKVCache` whose arrays live on the GPU; made by giving it a pool on the GPU.

    The calls are those of the CPU, with the same results and the same state, and these differences.

    - Arrays are CuPy's, or anything on the GPU with `__cuda_array_interface__` or DLPack: rows and
      tokens `int32`, counts and lengths `int32` or `int64`. Host memory is refused, never copied.
    - Calls on a batch of rows (`append_batch`, `commit_batch`, `fork_batch`, `reorder`,
      `truncate_batch`, `apply_streaming_llm_batch`, `apply_window_batch`, `free_batch`, and the
      layouts `block_tables`, `slot_mapping`, `page_table_csr`, `seq_lens`) are one launch on the
      current stream and wait for nothing, unless their docstrings say so. One that fails changes
      nothing and fills its results with NULL; the next call that waits raises it (`CudaPagePool`
      says more). Numbers that the CPU returns come as `int64[1]` on the GPU.
    - In a batch, a row that is NULL fills it up: it is passed over, its results are NULL, and the
      layouts take it for a sequence without tokens. So a captured step goes on while the sequences
      in it end.
    - Calls by id are a batch of one and wait for its answer, once (`append`, `adopt` twice; `evict`
      and `evict_to` look at a copy of the state first, so they wait twice). They raise an earlier
      failure before they begin, and their own at once. `pin`, `unpin` and `set_priority` do not
      wait.
    - Behind a prefix cache the batch calls are what they are without one, and wait for nothing, but
      for `commit_batch`, and `free_batch` with `commit`, which wait once. Pages that would give way
      for them on the CPU do not here: `make_room` before. `allocate`, `commit`, `free`, `make_room`
      and what counts pages fetch once what the loops of the host run on. Where cached pages have to
      give way, `allocate` waits three times more and `make_room` once, for the owners of all pages;
      so does what counts pages, and a commit where forks hold a page that is to enter.
      Token ids may lie on the host, where they are looked up. What rows have locked or given back
      since is locked and given back in the index when one of these calls next looks, in the order
      of rows: among pages given back meanwhile, who gives way first may differ from the CPU.
    - `plan` and `allocate_batch` take tokens and `indptr` from the GPU or the host, and tell on the
      host what is cached; the rows lie on the GPU. `allocate_batch` is one launch and waits as
      `allocate` does, `plan` for the owners of all pages too, where there is a prefix cache.
    - The ids are known to the host alone. Behind `free_batch` the next call that looks at an id
      waits, to learn which sequences have ended. Those that end in a CUDA graph are forgotten by
      the next call that waits, for example `stats`; until then their rows are not given away. So
      `allocate` and `fork` take the lowest row that the host knows to be free.
    - Given fixed shapes and caller buffers, every call that does not wait can be captured in a CUDA
      graph, once it has been made outside of one: the first call with an `n`, and one with more
      rows than ever before, make arrays that stay. `restore`, and `resize` of the pool, make the
      state anew: graphs captured before are stale.
    """

    # The last buffer of copies that a caller has given, and its views.
    _copies: tuple[Any, ...] = None, 0

    def append(
        self,
        seq_id: Hashable,
        n: int | None = None,
        *,
        tokens: Any = None,
        computed: bool = True,
    ) -> Appended:
        """Grow a sequence by `n` tokens, and wait: see `PagedKVCache.append`.

        Parameters
        ----------
        seq_id : Hashable
        n : int, optional
        tokens : int32[n], optional
        computed : bool

        Returns
        -------
        Appended
            `int64[n]` slots and `int32` pages on the GPU, no longer than they have to be.
        """
        gpu = self.pool._gpu
        if n is None:
            n = 1 if tokens is None else as_device(gpu, "tokens", tokens, INT32).size
        with self.lock:
            self._launcher.wait()
            rows = gpu.upload(np.array([self._ids.row(seq_id)], INT32))
            try:
                return self._append_one(rows, n, tokens, computed)
            except OutOfPages as error:
                if not self._rows.make_room_for(error.requested):
                    raise
            return self._append_one(rows, n, tokens, computed)

    def _append_one(self, rows: Any, n: int, tokens: Any, computed: bool) -> Appended:
        gpu = self.pool._gpu
        with self.pool._calls:
            slots, copies = self.append_batch(rows, n, tokens=tokens, computed=computed)
            self._launcher.wait()
            count = int((gpu.download(copies.src) != NULL).sum())
        return Appended(slots, Moves(copies.src[:count], copies.dst[:count]))

    def append_batch(
        self,
        rows: Any,
        n: Any = 1,
        *,
        tokens: Any = None,
        dtype: Any = None,
        computed: bool = True,
        out: Any = None,
        copies: Any = None,
    ) -> Appended:
        """Grow sequences by `n` tokens each, all or nothing: see `PagedKVCache.append_batch`.

        Parameters
        ----------
        rows : int32[B]
        n : int, or int32[B] or int64[B]
            New tokens, for all or for each. A number is kept on the GPU when it first comes. That
            of a row that is NULL tells how many slots stay NULL.
        tokens : int32[sum(n)], optional
            Ids of the new tokens. With `n` on the GPU, an empty array is like none.
        dtype : int64, optional
            Nothing else: `attention_batch` gives the same slots as int32, in its one launch.
        computed : bool
            Whether what stood before new tokens counts as computed.
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
        check_bool("computed", computed)
        gpu, launcher = self.pool._gpu, self._launcher
        if dtype is not None and as_slot_dtype(dtype) != INT64:
            expected = "append_batch on the GPU gives int64; attention_batch gives int32 too"
            raise InvalidArgument("dtype", "int32", expected)
        rows = self._as_rows("rows", rows)
        batch = rows.size
        most = (batch + self.pool.num_pages) * self.pool.page_size
        total, counts = self._counts("n", n, batch)
        waits = total is None and out is None
        if total is not None and total > INT32_MAX:
            raise argument_error(pack_status(TOO_MANY, 0), "n", [n])
        if waits:
            total = int(np.clip(gpu.download(n), 0, most).sum())
        ids = (
            self._launcher.no_tokens if tokens is None else as_device(gpu, "tokens", tokens, INT32)
        )
        if tokens is not None and total is not None:
            check_token_count(ids, total)
        size = min(total or 0, most) if out is None else None
        slots = as_device_out(gpu, "out", out, INT64, size)
        flat, moves = self._moves(copies, batch)
        with self.lock, self.pool._calls:
            arrays = launcher.known, rows, counts, ids, slots, flat
            loop = sequences_append_cuda if computed else sequences_append_ahead_cuda
            launcher.launch(loop, *arrays)
            if waits:
                launcher.wait()
        return Appended(slots, moves)

    def _as_rows(self, name: str, rows: Any) -> Any:
        return as_device(self.pool._gpu, name, rows, INT32)

    def _counts(self, name: str, n: Any, batch: int) -> tuple[int | None, Any]:
        """Return the sum of numbers of rows, where that is known, and the numbers on the GPU."""
        if isinstance(n, list | tuple) or getattr(n, "ndim", 0) != 0:
            return None, as_integers(self.pool._gpu, name, n, batch)[0].view(INT32)
        n = as_count(name, n)
        return n * batch, self._launcher.constant(n)

    def _moves(self, copies: Any, batch: int) -> tuple[Any, Moves]:
        """Return the buffer `copies`, or a new one where it is None, flat and in its two parts."""
        last, size, *views = self._copies
        if copies is not None and copies is last and batch == size:
            return views[0], views[1]  # three views cost as much as the launch
        gpu = self.pool._gpu
        if copies is None:
            flat = gpu.empty(2 * batch, INT32, "copies")
        else:
            array = gpu.adopt("copies", copies)
            if array.shape != (2, batch) or array.dtype != INT32 or not array.flags.c_contiguous:
                shown = f"{array.dtype}{list(array.shape)}"
                raise InvalidArgument("copies", shown, f"must be a contiguous int32[2, {batch}]")
            flat = array.reshape(-1)
        moves = Moves(flat[:batch], flat[batch:])
        if copies is not None and array is copies:
            self._copies = copies, batch, flat, moves
        return flat, moves

    def room_for(self, rows: Any, n: Any = 1, *, reserve: int = 0) -> int:
        """Return how many of the first sequences can grow: see `PagedKVCache.room_for`.

        Waits for the answer, and behind a prefix cache once more before, for what its index says
        of pages that would give way. `append_batch` takes these only once `make_room` has been
        called. A row that is NULL takes no pages.

        Parameters
        ----------
        rows : int32[B]
        n : int, or int32[B] or int64[B]
        reserve : int
        """
        gpu, launcher = self.pool._gpu, self._launcher
        rows = self._as_rows("rows", rows)
        total, counts = self._counts("n", n, rows.size)
        if total is not None and total > INT32_MAX:
            raise argument_error(pack_status(TOO_MANY, 0), "n", [n])
        left = as_count("reserve", reserve)
        with self.lock:
            spare = 0 if self.prefix_cache is None else self._rows.page_counts()[1]
            with self.pool._calls:
                shares = launcher.scratch(rows.size // 2 + 1).view(INT32)[: rows.size]
                found = gpu.empty(1, INT64)
                launcher.launch(room_count_cuda, rows, counts, shares, found, spare - left)
                launcher.wait()
                return int(gpu.download(found)[0])

    def commit_batch(self, rows: Any, num_tokens: Any = None, *, out: Any = None) -> Any:
        """Say how far sequences are computed, all or nothing: see `PagedKVCache.commit_batch`.

        Waits once where there is a prefix cache.

        Parameters
        ----------
        rows : int32[B]
        num_tokens : int, or int32[B] or int64[B], optional
            A number is kept on the GPU when it first comes.
        out : int64[B], optional
            Buffer for how many tokens of each stand in the cache now.

        Returns
        -------
        int64[B]
        """
        rows = self._as_rows("rows", rows)
        counts = self._launcher.no_tokens
        if num_tokens is not None:
            counts = self._counts("num_tokens", num_tokens, rows.size)[1]
        cached = as_device_out(self.pool._gpu, "out", out, INT64, rows.size)
        with self.lock:
            self._rows.commit_there(rows, counts, cached)
        return cached

    def fork_batch(self, src_rows: Any, dst_rows: Any) -> None:
        """Let empty sequences share all pages of others: see `PagedKVCache.fork_batch`.

        Parameters
        ----------
        src_rows, dst_rows : int32[B]
        """
        src_rows = self._as_rows("src_rows", src_rows)
        dst_rows = self._as_rows("dst_rows", dst_rows)
        check_same_length("dst_rows", dst_rows, src_rows)
        with self.lock:
            arrays = src_rows, dst_rows, self._launcher.no_tokens, self._launcher.scratch(1)
            self._launcher.launch(sequences_fork_batch_cuda, *arrays, 0)

    def reorder(self, rows: Any, parents: Any) -> None:
        """Let each sequence continue another one: see `PagedKVCache.reorder`.

        The first call makes scratch as large as the block table, and keeps it.

        Parameters
        ----------
        rows, parents : int32[B]
        """
        rows = self._as_rows("rows", rows)
        parents = self._as_rows("parents", parents)
        check_same_length("parents", parents, rows)
        with self.lock:
            words = reorder_words(rows.size, self.tables.max_pages_per_sequence)
            scratch = self._launcher.scratch(words + 1)
            self._launcher.launch(sequences_reorder_cuda, rows, parents, scratch[1:], scratch[:1])

    def truncate_batch(
        self, rows: Any, num_tokens: Any = None, *, drop: Any = None, out: Any = None
    ) -> Any:
        """Drop the tails of sequences, all or nothing: see `PagedKVCache.truncate_batch`.

        Parameters
        ----------
        rows : int32[B]
        num_tokens, drop : int, or int32[B] or int64[B]
            A number is kept on the GPU when it first comes.
        out : int64[1], optional
            Buffer for how many pages went free.

        Returns
        -------
        int64[1]
        """
        name, values = kept_or_dropped(num_tokens, drop)
        rows = self._as_rows("rows", rows)
        _total, counts = self._counts(name, values, rows.size)
        released = as_device_out(self.pool._gpu, "out", out, INT64, 1)
        flags = OPTION if name == "drop" else 0
        with self.lock:
            scratch = self._launcher.scratch(2 * rows.size + 1)
            arrays = rows, counts, scratch, released
            self._launcher.launch(sequences_truncate_batch_cuda, *arrays, flags)
        return released

    def apply_streaming_llm_batch(
        self, rows: Any, sink_tokens: int, window_tokens: int, *, out: Any = None
    ) -> Any:
        """Keep the first and the last tokens of sequences: see `PagedKVCache`.

        Parameters
        ----------
        rows : int32[B]
        sink_tokens, window_tokens : int
        out : int64[B], optional
            Buffer for how many tokens each drops.

        Returns
        -------
        int64[B]
        """
        rows = self._as_rows("rows", rows)
        sink = as_count("sink_tokens", sink_tokens)
        window = as_count("window_tokens", window_tokens)
        dropped = as_device_out(self.pool._gpu, "out", out, INT64, rows.size)
        with self.lock:
            scratch = self._launcher.scratch(3 * rows.size + 3)
            arrays = rows, scratch[1:], dropped, scratch[:1]
            rule = sink << 32 | window
            self._launcher.launch(eviction_window_batch_cuda, *arrays, rule, self._launcher.behind)
        return dropped

    def apply_window_batch(self, rows: Any, window_tokens: int, *, out: Any = None) -> Any:
        """Keep the pages of the last tokens of sequences: see `PagedKVCache.apply_window_batch`.

        Parameters
        ----------
        rows : int32[B]
        window_tokens : int
        out : int64[B], optional
            Buffer for how many tokens each drops.

        Returns
        -------
        int64[B]
        """
        return self.apply_streaming_llm_batch(rows, 0, window_tokens, out=out)

    def free_batch(self, rows: Any, *, commit: bool = True, out: Any = None) -> Any:
        """End sequences, all or nothing: see `PagedKVCache.free_batch`.

        Their ids are forgotten by the next call that looks at one, which waits.

        Parameters
        ----------
        rows : int32[B]
        commit : bool
        out : int64[1], optional
            Buffer for how many pages went free.

        Returns
        -------
        int64[1]
        """
        check_bool("commit", commit)
        rows = self._as_rows("rows", rows)
        released = as_device_out(self.pool._gpu, "out", out, INT64, 1)
        with self.lock:
            self._rows.end_there(rows, commit, released)
            self._ids.stale = True
        return released
