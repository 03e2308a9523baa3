"""A sweep: the hit rate against the size of the cache, by policy, in cache mode."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from jitalloc.errors import InvalidArgument
from jitalloc.replay.clairvoyant import PagePaths
from jitalloc.replay.meter import Meter
from jitalloc.replay.options import REPLAY_POLICIES, ReplayOptions
from jitalloc.replay.report import write_atomically
from jitalloc.replay.request import Request
from jitalloc.replay.simulator import replay

SCHEMA: Final = "jitalloc-sweep/1"
CLAIRVOYANT: Final = "clairvoyant"
SIZES: Final = 8
PAGE_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """What one policy finds in a cache of one size.

    `hit_rate` is a share of the whole pages of all prompts. Requests longer than the cache are
    `rejected` and count as looked up in vain; `seconds` is how long the replay took.
    """

    policy: str
    num_pages: int
    hit_rate: float
    hit_pages: int
    rejected: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found.

    Attributes
    ----------
    trace : str
    page_size : int
    sizes : list of int
        Pages of the caches, ascending.
    policies : list of str
        The last one is `clairvoyant`, which bounds the others.
    requests, lookup_pages, distinct_pages : int
        Of the trace: so many requests have so many whole pages, of which so many differ.
    unlimited : float
        Hit rate of a cache that never evicts.
    interrupted : bool
        Ended early: some points are missing.
    points : list of SweepPoint
        By policy, then by size.
    """

    trace: str
    page_size: int
    sizes: list[int]
    policies: list[str]
    requests: int
    lookup_pages: int
    distinct_pages: int
    unlimited: float
    interrupted: bool
    points: list[SweepPoint] = field(default_factory=list)

    def curve(self, policy: str) -> list[SweepPoint]:
        """Return the points of one policy, by size."""
        return [point for point in self.points if point.policy == policy]

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as nested dicts and lists, `schema` first; points by column."""
        points = [asdict(point) for point in self.points]
        columns = {name: [each[name] for each in points] for name in SweepPoint.__slots__}
        return {"schema": SCHEMA, **asdict(self), "points": columns}

    def to_json(self) -> str:
        """Return the sweep as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sweep as JSON; a file of that name is replaced in one step."""
        write_atomically(Path(path), self.to_json().encode())


def run_sweep(
    requests: Iterable[Request],
    sizes: Sequence[int] | None = None,
    policies: Sequence[str] = REPLAY_POLICIES,
    *,
    page_size: int | None = None,
    trace: str = "requests",
    stop: Callable[[], bool] | None = None,
    watch: Callable[[str, float], None] | None = None,
) -> Sweep:
    """Replay `requests` in cache mode for every policy and size, and clairvoyantly.

    Parameters
    ----------
    requests : iterable of Request
        Kept in memory: they are replayed again and again.
    sizes : sequence of int, optional
        Pages of the caches. Without it eight sizes, each double the one before, up to one that
        holds every distinct page of the trace, or its longest prompt.
    policies : sequence of str
        As for `ReplayOptions.policy`, without `none`.
    page_size : int, optional
        Without it the smallest block size of the trace; 16 where nothing has block ids.
    trace : str
        Name for the report.
    stop : callable, optional
        Asked after each request; the sweep ends early, without the point under way, when it
        returns True.
    watch : callable, optional
        Called with what goes on and the share that is done, about ten times a second.

    Returns
    -------
    Sweep

    Raises
    ------
    InvalidArgument
        A size or a policy is unknown or named twice, or there is none.
    TraceError
        From reading the requests.
    """
    _check_names(policies)
    requests = list(requests)
    longest = max((_whole_length(each) for each in requests), default=1)
    if page_size is None:
        blocks = (each.block_size for each in requests if each.block_ids is not None)
        page_size = min(blocks, default=PAGE_SIZE)
    shape = ReplayOptions("cache", page_size=page_size, max_length=max(1, longest))
    if sizes is not None:
        sizes = sorted(_check_sizes(sizes, shape))
    paths = PagePaths(requests, page_size)
    if sizes is None:
        top = max(paths.num_distinct, -(-longest // page_size), 1)
        sizes = sorted({max(1, top >> halvings) for halvings in range(SIZES)})

    points: list[SweepPoint] = []
    pages = max(1, paths.num_pages)
    runs = [(policy, size) for policy in policies for size in sizes]
    interrupted = False
    for done, (policy, size) in enumerate(runs):

        def show(meter: Meter, done: int = done, now: str = f"{policy}, {size:,} pages") -> None:
            if watch is not None:
                share = (meter.finished + meter.rejected) / max(1, len(requests))
                watch(now, (done + share) / len(runs))

        options = replace(shape, num_pages=size, policy=policy)
        report = replay(requests, options, stop=stop, watch=show)
        interrupted = report.interrupted
        if interrupted:
            break
        hits, rejected = report.prefix.hit_pages, report.requests.rejected
        points.append(SweepPoint(policy, size, hits / pages, hits, rejected, report.wall_seconds))
    if not interrupted:
        for size in sizes:
            start = perf_counter()
            hits = paths.best_hits(size)
            taken = perf_counter() - start
            points.append(SweepPoint(CLAIRVOYANT, size, hits / pages, hits, 0, taken))
    return Sweep(
        trace=trace,
        page_size=page_size,
        sizes=list(sizes),
        policies=[*policies, CLAIRVOYANT],
        requests=len(requests),
        lookup_pages=paths.num_pages,
        distinct_pages=paths.num_distinct,
        unlimited=paths.best_hits(paths.num_distinct) / pages,
        interrupted=interrupted,
        points=points,
    )


def _whole_length(request: Request) -> int:
    blocks = 0 if request.block_ids is None else len(request.block_ids)
    return max(blocks * request.block_size, request.input_length)


def _check_sizes(sizes: Sequence[int], shape: ReplayOptions) -> Sequence[int]:
    for size in sizes:
        replace(shape, num_pages=size)
    _check_distinct("sizes", sizes)
    return sizes


def _check_names(policies: Sequence[str]) -> None:
    for position, policy in enumerate(policies):
        if policy not in REPLAY_POLICIES:
            raise InvalidArgument(
                "policies", policy, f"one of {', '.join(REPLAY_POLICIES)}", position
            )
    _check_distinct("policies", policies)


def _check_distinct(name: str, values: Sequence[object]) -> None:
    if not values:
        raise InvalidArgument(name, "()", "must name one at least")
    for position, value in enumerate(values):
        if value in values[:position]:
            raise InvalidArgument(name, value, "is named twice", position)


def describe_sweep(sweep: Sweep) -> str:
    """Return trace, pages and what there is to find in one line."""
    return (
        f"{sweep.trace} · hit rate over {sweep.lookup_pages:,} pages of {sweep.page_size} tokens, "
        f"{sweep.distinct_pages:,} distinct · {sweep.unlimited:.2%} in a cache without end"
    )
