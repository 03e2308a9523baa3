"""The figures of a replay: for people as a table, for programs as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from jitalloc.replay.meter import Meter
from jitalloc.replay.options import ReplayOptions
from jitalloc.replay.timeline import Sample

SCHEMA: Final = "jitalloc-replay/2"


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """Requests by what became of them; `unfinished` only where the replay was interrupted."""

    seen: int
    finished: int
    rejected: int
    unfinished: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """Tokens by what became of them.

    `prompt` were computed, `cached` found in the cache instead; `decode` are those of responses.
    After a preemption, `recomputed` were computed again and `restored` were still cached.
    """

    prompt: int
    cached: int
    decode: int
    recomputed: int
    restored: int


@dataclass(frozen=True, slots=True)
class PrefixFigures:
    """What the cache of prefixes found, and what gave way.

    The hit rates are shares of all prompts that were looked up, by tokens and by whole pages.
    Requests that can never fit count as looked up in vain; a look-up after a preemption does not
    count. A prompt found to its end is a hit as a whole, though its last token is computed. In
    cache mode the last block of a prompt is a whole one among the pages, not among the tokens.
    `evicted` tells why pages gave way; without a cache of prefixes it is empty.
    """

    lookup_tokens: int
    hit_tokens: int
    hit_rate_tokens: float
    lookup_pages: int
    hit_pages: int
    hit_rate_pages: float
    pages_inserted: int
    pages_cached: int
    evicted: dict[str, int]


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """How full the pool was and in how many pieces.

    Means are over virtual time in serve mode, over the requests in cache mode. `held` is the
    share of the pool that sequences hold, `cached` what only the cache of prefixes holds and
    gives back when pages run short, `free` the rest; `pages_peak` counts held and cached ones.
    `fragmentation` is 1 - longest run of consecutive free pages / free pages, over `samples`;
    `runs_per_sequence` counts runs of consecutive page ids in a finished sequence.
    """

    held_mean: float
    held_peak: float
    cached_mean: float
    cached_peak: float
    free_mean: float
    pages_peak: int
    pages_allocated: int
    pages_copied: int
    fragmentation_mean: float
    fragmentation_peak: float
    runs_per_sequence: float


@dataclass(frozen=True, slots=True)
class AllocatorFigures:
    """Wall time inside the allocator: all of its calls in one step make up the step's time."""

    steps: int
    calls: int
    calls_per_second: float
    seconds: float
    step_us_median: float
    step_us_p99: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a replay found.

    Attributes
    ----------
    trace : str
    options : ReplayOptions
    interrupted : bool
        Ended early: the figures hold up to that point.
    requests, tokens, prefix, pool, allocator
        The figures, by what they are about.
    virtual_seconds, wall_seconds : float
        Time on the clock of the trace, and real time of the replay.
    samples : list of Sample
        The pool over virtual time (over requests in cache mode), in intervals of equal length.
    """

    trace: str
    options: ReplayOptions
    interrupted: bool
    requests: RequestFigures
    tokens: TokenFigures
    prefix: PrefixFigures
    pool: PoolFigures
    allocator: AllocatorFigures
    virtual_seconds: float
    wall_seconds: float
    samples: list[Sample]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as nested dicts and lists, `schema` first; samples by column."""
        figures = asdict(self)
        figures["samples"] = {
            name: [sample[column] for sample in self.samples]
            for column, name in enumerate(Sample._fields)
        }
        return {"schema": SCHEMA, **figures}

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON; a file of that name is replaced in one step."""
        write_atomically(Path(path), self.to_json().encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees either what was there before or all of `data`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def describe(report: Report) -> str:
    """Return trace, mode and pool in one line."""
    options = report.options
    return (
        f"{report.trace} · {options.mode} mode · {options.num_pages:,} pages of "
        f"{options.page_size} tokens, {options.order} · "
        + ("no prefix cache" if options.policy == "none" else f"{options.policy} eviction")
    )


def make_report(
    trace: str, options: ReplayOptions, meter: Meter, wall: float, interrupted: bool
) -> Report:
    """Put the figures of a meter together."""
    pool, cache = meter.pool.stats(), meter.cache.stats()
    times = np.frombuffer(meter.steps, np.int64) if meter.steps else np.zeros(1, np.int64)
    median, p99 = (float(np.percentile(times, q)) / 1e3 for q in (50, 99))
    seconds = float(times.sum()) / 1e9
    pages = options.num_pages
    held, cached = (
        sum_ / meter.time / pages if meter.time else 0.0
        for sum_ in (meter.held_time, meter.cached_time)
    )
    fragmentation = [sample.fragmentation for sample in meter.timeline.samples]
    return Report(
        trace=trace,
        options=options,
        interrupted=interrupted,
        requests=RequestFigures(
            seen=meter.seen,
            finished=meter.finished,
            rejected=meter.rejected,
            unfinished=meter.seen - meter.finished - meter.rejected,
            preemptions=meter.preemptions,
        ),
        tokens=TokenFigures(
            prompt=meter.prompt_tokens,
            cached=meter.cached_tokens,
            decode=meter.decode_tokens,
            recomputed=meter.recomputed_tokens,
            restored=meter.restored_tokens,
        ),
        prefix=_prefix_figures(meter),
        pool=PoolFigures(
            held_mean=held,
            held_peak=meter.held_peak / pages,
            cached_mean=cached,
            cached_peak=meter.cached_peak / pages,
            free_mean=1 - held - cached,
            pages_peak=pool.peak_used,
            pages_allocated=pool.allocated,
            pages_copied=cache.copies,
            fragmentation_mean=float(np.mean(fragmentation)),
            fragmentation_peak=max(fragmentation),
            runs_per_sequence=meter.page_runs / max(1, meter.page_runs_of),
        ),
        allocator=AllocatorFigures(
            steps=len(meter.steps),
            calls=meter.calls,
            calls_per_second=meter.calls / seconds if seconds else 0.0,
            seconds=seconds,
            step_us_median=median,
            step_us_p99=p99,
        ),
        virtual_seconds=meter.now,
        wall_seconds=wall,
        samples=meter.timeline.samples,
    )


def _prefix_figures(meter: Meter) -> PrefixFigures:
    stats = None if meter.prefix is None else meter.prefix.stats()
    return PrefixFigures(
        lookup_tokens=meter.lookup_tokens,
        hit_tokens=meter.lookup_hit_tokens,
        hit_rate_tokens=meter.lookup_hit_tokens / max(1, meter.lookup_tokens),
        lookup_pages=meter.lookup_pages,
        hit_pages=meter.lookup_hit_pages,
        hit_rate_pages=meter.lookup_hit_pages / max(1, meter.lookup_pages),
        pages_inserted=stats.inserted_pages if stats else 0,
        pages_cached=meter.prefix.num_cached if meter.prefix is not None else 0,
        evicted={
            "pressure": stats.evicted_pressure,
            "requested": stats.evicted_requested,
            "cleared": stats.evicted_cleared,
        }
        if stats
        else {},
    )
