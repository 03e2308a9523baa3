"""A cache on the GPU beside its model; the steps of `cache_steps.py` run on it as they are."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    NULL,
    Appended,
    Moves,
    PagedKVCache,
    PagePool,
    PrefixCache,
    errors,
)
from jitalloc.cuda import CudaPagedKVCache
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda
from jitalloc.sequences.state import table_arrays
from tests.cache_pairs import CachePair
from tests.cuda_pairs import HostView
from tests.cuda_prefix_pairs import PrefixView
from tests.pairs import plain
from tests.prefix_pairs import cached

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)
SLACK = 3  # elements by which a buffer is longer than it has to be


def use_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Let blocks have so many threads; so many warps on a real GPU, which has whole ones only."""
    number = threads if _cuda.SIMULATED else min(32 * threads, 512)
    monkeypatch.setattr(_cuda_device.device(), "threads", number)


class HostCache:
    """Speaks like a cache of the CPU and calls one on the GPU: arrays go up, results come down.

    A call that fails raises what the device kept, after a look that its results are NULL.
    """

    def __init__(self, cache: CudaPagedKVCache) -> None:
        self.device_cache = cache
        self.dtypes = [INT32, INT64]  # what the next numbers of rows are

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device_cache, name)

    def __len__(self) -> int:
        return len(self.device_cache)

    def __contains__(self, seq_id: Any) -> bool:
        return seq_id in self.device_cache

    @property
    def prefix_cache(self) -> Any:
        prefix: Any = self.device_cache.prefix_cache
        return None if prefix is None else PrefixView(prefix)

    @property
    def gpu(self) -> Any:
        return self.device_cache.pool._gpu

    @property
    def tables(self) -> Any:
        assert self.gpu.download(self.device_cache.pool._record)[0] == 0, "a ticket is left over"
        return SimpleNamespace(
            arrays=table_arrays(self.gpu.download(self.device_cache.tables._slab))
        )

    def up(self, values: Any, dtype: np.dtype[Any]) -> Any:
        return None if values is None else self.gpu.upload(np.array(values, dtype))

    def settle(self, call: Callable[[], Any], *results: Any) -> Any:
        """Run a call that does not wait; `results`: the buffers that it fills."""
        made = call()
        try:
            self.device_cache.pool._settled()
        except errors.JitallocError:
            for each in results:
                assert (self.gpu.download(each) == NULL).all(), "results of a failed call"
            raise
        return made

    def allocate(self, seq_id: Any, *args: Any, tokens: Any = None, **options: Any) -> int:
        tokens = self.up(tokens, INT32)
        return self.device_cache.allocate(seq_id, *args, tokens=tokens, **options)

    def plan(self, tokens: Any, indptr: Any, **options: Any) -> Any:
        return self.device_cache.plan(self.up(tokens, INT32), self.integers(indptr), **options)

    def allocate_batch(self, tokens: Any, indptr: Any, **options: Any) -> Any:
        """The bounds from the GPU or the host, in turn."""
        bounds = self.integers(indptr) if len(indptr) % 2 else indptr
        made = self.device_cache.allocate_batch(self.up(tokens, INT32), bounds, **options)
        return made._replace(
            rows=self.gpu.download(made.rows), copies=Moves(*map(self.gpu.download, made.copies))
        )

    def adopt(self, seq_id: Any, tokens: Any, pages: Any, **options: Any) -> None:
        self.device_cache.adopt(seq_id, self.up(tokens, INT32), self.up(pages, INT32), **options)

    def commit(self, seq_id: Any, num_tokens: Any = None, *, tokens: Any = None) -> int:
        return self.device_cache.commit(seq_id, num_tokens, tokens=self.up(tokens, INT32))

    def commit_batch(self, rows: Any, num_tokens: Any = None) -> Any:
        rows = self.up(rows, INT32)
        counts = None if num_tokens is None else self.integers(num_tokens)
        out = self.up(np.zeros(rows.size), INT64)
        call = self.device_cache.commit_batch
        return self.gpu.download(self.settle(lambda: call(rows, counts, out=out), out))

    def number(self, call: Callable[..., Any], *args: Any, **options: Any) -> int:
        """Run a call that leaves a number on the GPU, and waits for nothing."""
        out = self.up([0], INT64)
        self.settle(lambda: call(*args, out=out, **options), out)
        return int(self.gpu.download(out)[0])

    def free_batch(self, rows: Any, **options: Any) -> int:
        return self.number(self.device_cache.free_batch, self.up(rows, INT32), **options)

    def integers(self, values: Any) -> Any:
        """Numbers of rows go up as int32 or int64, whichever; one for all stays a number."""
        dtype = self.dtypes[0]
        self.dtypes.reverse()
        return self.up(values, dtype) if np.ndim(values) else values

    def truncate_batch(self, rows: Any, num_tokens: Any = None, *, drop: Any = None) -> int:
        given = {"num_tokens": num_tokens, "drop": drop}
        numbers = {name: None if n is None else self.integers(n) for name, n in given.items()}
        return self.number(self.device_cache.truncate_batch, self.up(rows, INT32), **numbers)

    def apply_streaming_llm_batch(self, rows: Any, sink: int, window: int) -> Any:
        rows = self.up(rows, INT32)
        out = self.up(np.zeros(rows.size), INT64)
        call = self.device_cache.apply_streaming_llm_batch
        return self.gpu.download(self.settle(lambda: call(rows, sink, window, out=out), out))

    def apply_window_batch(self, rows: Any, window: int) -> Any:
        return self.apply_streaming_llm_batch(rows, 0, window)

    def append(
        self, seq_id: Any, n: Any = None, *, tokens: Any = None, computed: bool = True
    ) -> Appended:
        ids = self.up(tokens, INT32)
        slots, copies = self.device_cache.append(seq_id, n, tokens=ids, computed=computed)
        return Appended(self.gpu.download(slots), Moves(*map(self.gpu.download, copies)))

    def append_batch(
        self, rows: Any, n: Any = 1, *, tokens: Any = None, computed: bool = True
    ) -> Appended:
        """With room made for it, as the CPU does by itself."""
        try:
            return self.append_rows(rows, n, tokens, computed)
        except errors.OutOfPages as error:
            if self.device_cache.prefix_cache is None:
                raise
            self.device_cache._rows.make_room_for(error.requested)
        return self.append_rows(rows, n, tokens, computed)

    def append_rows(self, rows: Any, n: Any, tokens: Any, computed: bool) -> Appended:
        rows = self.up(rows, INT32)
        counts = self.integers(n)
        total = min(int((np.zeros(rows.size) + np.clip(n, 0, 2**20)).sum()), 4096)
        out = self.up(np.zeros(total + SLACK), INT64)
        copied = self.gpu.upload(np.zeros((2, rows.size), np.int32))
        made = self.settle(
            lambda: self.device_cache.append_batch(
                rows,
                counts,
                tokens=self.up(tokens, INT32),
                computed=computed,
                out=out,
                copies=copied,
            ),
            out,
            copied,
        )
        slots, src, dst = map(self.gpu.download, (made.slots, *made.copies))
        count = int((src != NULL).sum())
        assert made.slots is out
        assert (slots[total:] == NULL).all()
        assert (src[count:] == NULL).all()
        assert (dst[count:] == NULL).all()
        return Appended(slots[:total], Moves(src[:count], dst[:count]))

    def room_for(self, rows: Any, n: Any = 1, *, reserve: int = 0) -> int:
        return self.device_cache.room_for(self.up(rows, INT32), self.integers(n), reserve=reserve)

    def layout(self, name: str, rows: Any, *args: Any, **options: Any) -> Any:
        """Run an export, which does not wait where its result has a size known before."""
        call = getattr(self.device_cache, name)
        made = call(self.up(rows, INT32), *args, **options)
        self.device_cache.pool._settled()
        return type(made)(*map(self.gpu.download, made)) if isinstance(made, tuple) else made

    def block_tables(self, rows: Any, **options: Any) -> Any:
        return self.layout("block_tables", rows, **options)

    def page_table_csr(self, rows: Any) -> Any:
        return self.layout("page_table_csr", rows)

    def seq_lens(self, rows: Any) -> Any:
        return self.layout("seq_lens", rows)

    def attention_batch(self, rows: Any, num_new: Any, **options: Any) -> Any:
        return self.layout("attention_batch", rows, self.integers(num_new), **options)

    def slot_mapping(self, rows: Any, positions: Any) -> Any:
        return self.layout("slot_mapping", rows, self.up(positions, INT64))

    def fork_batch(self, src_rows: Any, dst_rows: Any) -> None:
        src, dst = self.up(src_rows, INT32), self.up(dst_rows, INT32)
        self.settle(lambda: self.device_cache.fork_batch(src, dst))

    def reorder(self, rows: Any, parents: Any) -> None:
        rows, parents = self.up(rows, INT32), self.up(parents, INT32)
        self.settle(lambda: self.device_cache.reorder(rows, parents))


def on_gpu(cache: PagedKVCache) -> Any:
    """Return an empty cache on the GPU with the options of one on the CPU, and of what it has."""
    pool, prefix, tables = cache.pool, cache.prefix_cache, cache.tables
    there: Any = PagePool(
        pool.num_pages, pool.page_size, order=pool.order, null_page=pool.null_page, device="cuda"
    )
    return PagedKVCache(
        there,
        tables.max_sequences,
        tables.max_pages_per_sequence,
        eviction=cache.eviction,
        eviction_threshold=cache.eviction_threshold,
        sink_tokens=cache.sink_tokens,
        window_tokens=cache.window_tokens,
        prefix_cache=None if prefix is None else PrefixCache(there, **prefix._options()),
    )


class CudaCachePair(CachePair):
    """A pool and a cache on the GPU, each with its model."""

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        cache = on_gpu(self.cache)
        self.pool: Any = HostView(cache.pool)
        self.cache: Any = HostCache(cache)


def told(call: Callable[[], Any]) -> tuple[Any, ...]:
    """The outcome of a call, and the whole text of what it raised."""
    try:
        return ("returned", plain(call()))
    except errors.JitallocError as error:
        facts = {name: plain(value) for name, value in vars(error).items() if name[0] != "_"}
        return (type(error), str(error), facts)


# Calls on rows whose locks are given back in the order of rows, when the index next follows.
IN_ORDER = (
    "append_batch",
    "commit_batch",
    "free_batch",
    "reorder",
    "truncate_batch",
    "apply_streaming_llm_batch",
)


def in_order(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call, its rows in their order, and what belongs to them along."""
    if name not in IN_ORDER:
        return args
    places = sorted(range(len(args[0])), key=lambda i: args[0][i])
    return tuple(
        [each[i] for i in places] if isinstance(each, list) and len(each) == len(places) else each
        for each in args
    )


class Both:
    """The same calls on a cache of the CPU and on one of the GPU; every word must be equal.

    But those of the index of a prefix cache: the same pages in the same state, in nodes that may be
    split at other places.
    """

    def __init__(
        self,
        pool: dict[str, Any],
        max_sequences: int,
        max_pages: int,
        prefix: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.cpu_pool, self.gpu_pool = PagePool(**pool), PagePool(**pool, device="cuda")
        self.prefix: Any = None
        theirs: Any = None
        if prefix is not None:
            self.prefix = PrefixCache(self.cpu_pool, **prefix)
            theirs = PrefixCache(self.gpu_pool, **prefix)
        sizes = (max_sequences, max_pages)
        self.cpu = PagedKVCache(self.cpu_pool, *sizes, prefix_cache=self.prefix, **options)
        self.device: Any = PagedKVCache(self.gpu_pool, *sizes, prefix_cache=theirs, **options)
        self.gpu: Any = HostCache(self.device)

    def do(self, name: str, *args: Any, **options: Any) -> tuple[Any, ...]:
        """Call both, compare what comes back and all words that are left; return the outcome."""
        if self.prefix is not None:
            args = in_order(name, args)
        expected = told(lambda: getattr(self.cpu, name)(*args, **options))
        got = told(lambda: getattr(self.gpu, name)(*args, **options))
        assert got == expected
        self.agree()
        return got

    def must(self, name: str, *args: Any, **options: Any) -> Any:
        """Call both; the call must succeed."""
        got = self.do(name, *args, **options)
        assert got[0] == "returned", got
        return got[1]

    def agree(self) -> None:
        down = self.gpu.gpu.download
        if self.prefix is not None:
            self.agree_on_prefix()
        assert (down(self.device.pool._slab) == self.cpu_pool._slab).all()
        assert (down(self.device.tables._slab) == self.cpu.tables._slab).all()
        assert self.device._ids.rows == self.cpu._ids.rows
        assert self.device._ids.by_row == self.cpu._ids.by_row

    def agree_on_prefix(self) -> None:
        self.device._follow()
        self.gpu_pool._bring_time()  # type: ignore[attr-defined]
        theirs, view = self.device.prefix_cache, self.gpu.prefix_cache
        assert cached(view) == cached(self.prefix)
        assert theirs.stats() == self.prefix.stats()
        assert (view.arrays.tokens == self.prefix.arrays.tokens).all()
