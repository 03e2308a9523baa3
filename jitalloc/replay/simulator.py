"""Runs a trace through the library and reports what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from time import perf_counter

import numpy as np

from jitalloc.errors import OutOfPages
from jitalloc.pool import PagePool
from jitalloc.prefix import PrefixCache
from jitalloc.replay.cache import CacheRun
from jitalloc.replay.meter import Meter
from jitalloc.replay.options import ReplayOptions
from jitalloc.replay.report import Report, make_report
from jitalloc.replay.request import Request
from jitalloc.replay.serve import Server
from jitalloc.replay.transfers import Transfers
from jitalloc.sequences import PagedKVCache

WATCH_SECONDS = 0.1


def replay(
    requests: Iterable[Request],
    options: ReplayOptions | None = None,
    *,
    trace: str = "requests",
    stop: Callable[[], bool] | None = None,
    watch: Callable[[Meter], None] | None = None,
) -> Report:
    """Serve `requests` from a pool of pages, and report what that took.

    Only public calls of `PagePool`, `PrefixCache` and `PagedKVCache` are made. At the end all
    are checked page by page, so a finished replay also proves that the state held.

    Parameters
    ----------
    requests : iterable of Request
        By arrival, as from `read_traces` or `generate`. Read as the replay gets to them.
    options : ReplayOptions, optional
    trace : str
        Name for the report.
    stop : callable, optional
        Asked after each step; the replay ends early, with a report, when it returns True.
    watch : callable, optional
        Called with the `Meter` about ten times a second.

    Returns
    -------
    Report

    Raises
    ------
    TraceError
        From reading the requests.
    CorruptState
        Where the check at the end finds a broken invariant.
    """
    options = options or ReplayOptions()
    meter = _make_meter(options)
    requests = islice(requests, options.limit)
    begin = due = perf_counter()
    server: Server | CacheRun
    if options.mode == "serve":
        server = Server(requests, options, meter)
    else:
        server = CacheRun(requests, options, meter)
    interrupted = False
    while server.step():
        if stop is not None and stop():
            interrupted = True
            break
        if watch is not None and perf_counter() >= due:
            watch(meter)
            due = perf_counter() + WATCH_SECONDS
    wall = perf_counter() - begin
    meter.timeline.finish()
    meter.cache.check()
    if meter.prefix is not None:
        meter.prefix.check()
    meter.pool.check()
    return make_report(trace, options, meter, wall, interrupted)


def _make_meter(options: ReplayOptions) -> Meter:
    rows = options.max_batch if options.mode == "serve" else 1
    pool = PagePool(
        options.num_pages, options.page_size, order=options.order, device=options.device
    )
    prefix = None if options.policy == "none" else PrefixCache(pool, policy=options.policy)
    return Meter(pool, PagedKVCache(pool, rows, options.row_pages, prefix_cache=prefix), prefix)


def prepare(options: ReplayOptions) -> None:
    """Compile what a replay calls, so that its figures do not contain the compiler.

    Takes a few milliseconds where the kernels lie in the disk cache.
    """
    pool = PagePool(4, 1, order=options.order, device=options.device)
    transfers = Transfers(pool)
    cache = PagedKVCache(pool, 2, 4)
    cache.allocate(0, 1)
    cache.allocate(1, 1)
    rows = cache.rows([0, 1])
    cache.append_batch(rows, 1)
    with suppress(OutOfPages):
        cache.append_batch(rows, 1)
        transfers.settle()
    cache.slot_mapping(rows, transfers.up(np.zeros(2, np.int64)))
    cache.page_table_csr(rows)
    cache.block_tables(rows)
    cache.free(0)
    cache.free_batch(rows[1:])
    cache.allocate(0, 4)  # more than the freelist has: merges
    cache.check()
    cache.stats()
    cache.free(0)
    if options.policy != "none":
        _prepare_prefix(pool, options.policy, transfers)
    pool.check()
    pool.stats()


def _prepare_prefix(pool: PagePool, policy: str, transfers: Transfers) -> None:
    """Compile what caching adds: look-ups, growth, eviction under pressure, refusals."""
    prefix = PrefixCache(pool, policy=policy)
    cache = PagedKVCache(pool, 2, 4, prefix_cache=prefix)
    tokens = transfers.up(np.arange(4, dtype=np.int32))
    cache.allocate(0, tokens=tokens[:2])
    cache.commit(0)
    cache.allocate(1, tokens=tokens[:2])
    rows = cache.rows([0, 1])
    cache.append_batch(rows, 1, tokens=tokens[2:])
    with suppress(OutOfPages):
        cache.append_batch(rows, 1, tokens=tokens[:2])
        transfers.settle()
    cache.truncate(1, 1)
    cache.free(1, commit=False)
    cache.free_batch(rows[:1])
    cache.allocate(1, tokens=tokens[::-1].copy())
    with suppress(OutOfPages):
        cache.allocate(0, tokens=tokens)
    cache.free(1)
    cache.check()
    prefix.check()
    prefix.stats()
