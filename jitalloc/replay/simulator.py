"""Runs a trace through the library and reports what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from time import perf_counter

from jitalloc.pool import PagePool
from jitalloc.prefix import PrefixCache
from jitalloc.replay.cache import CacheRun
from jitalloc.replay.meter import Meter
from jitalloc.replay.options import ReplayOptions
from jitalloc.replay.report import Report, make_report
from jitalloc.replay.request import Request
from jitalloc.replay.serve import Server
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
    policy = options.prefix_policy
    prefix = None if policy is None else PrefixCache(pool, policy=policy)
    return Meter(pool, PagedKVCache(pool, rows, options.row_pages, prefix_cache=prefix), prefix)
