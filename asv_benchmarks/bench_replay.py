"""Replays: the built-in traffic, and recorded traces where their folder is there.

The allocator's own cost is the tracked figure; the time of the whole replay also contains the
simulator around it.
"""

from __future__ import annotations

from pathlib import Path

from asv_benchmarks.bench_pool import COLD
from jitalloc.replay import (
    ReplayOptions,
    Report,
    Request,
    generate,
    prepare,
    read_trace,
    replay,
)
from jitalloc.replay.clairvoyant import PagePaths
from jitalloc.replay.options import REPLAY_POLICIES

DATA = Path(__file__).parents[2] / "shared" / "data"
MOONCAKE = DATA / "mooncake" / "conversation_trace.jsonl"
AZURE = DATA / "azure" / "AzureLLMInferenceTrace_conv.csv"


QUIETLY = """
import contextlib, io
from jitalloc.cli import main

def quietly(command):
    with contextlib.redirect_stdout(io.StringIO()):  # asv reads what is printed
        main([command], standalone_mode=False)
"""


class FirstRun:
    """The built-in replay on the command line, in a new process.

    `cold`: nothing is compiled yet; `warm`: the kernels lie in the disk cache.
    """

    params = (("cold", "warm"),)
    param_names = ("cache",)
    number = 1
    rounds = 1
    repeat = 3
    min_run_count = 1
    warmup_time = 0
    timeout = 300

    def timeraw_replay(self, cache: str) -> tuple[str, str]:
        return "quietly('replay')", (COLD if cache == "cold" else "") + QUIETLY

    def timeraw_warmup(self, cache: str) -> tuple[str, str]:
        return "quietly('warmup')", (COLD if cache == "cold" else "") + QUIETLY


class BuiltIn:
    """A quarter of an hour of generated chat, by order of the freelist."""

    params = ("sorted", "fifo", "lifo")
    param_names = ("order",)
    number = 1
    warmup_time = 0.0
    timeout = 120

    def setup(self, order: str) -> None:
        self.options = ReplayOptions(order=order)
        self.requests = list(generate())
        prepare(self.options)

    def time_replay(self, order: str) -> None:
        replay(self.requests, self.options)

    def track_allocator_us_a_step(self, order: str) -> float:
        return _step_us(replay(self.requests, self.options))

    track_allocator_us_a_step.unit = "us"  # type: ignore[attr-defined]


class Recorded:
    """The first requests of a recorded hour, by trace and mode; pages of 16 tokens."""

    params = (("mooncake", "azure"), ("serve", "cache"))
    param_names = ("trace", "mode")
    number = 1
    warmup_time = 0.0
    timeout = 120

    def setup(self, trace: str, mode: str) -> None:
        self.options = ReplayOptions(mode=mode, limit=2_000)
        self.requests = recorded(MOONCAKE if trace == "mooncake" else AZURE)
        prepare(self.options)

    def time_replay(self, trace: str, mode: str) -> None:
        replay(self.requests, self.options)

    def track_allocator_us_a_step(self, trace: str, mode: str) -> float:
        return _step_us(replay(self.requests, self.options))

    track_allocator_us_a_step.unit = "us"  # type: ignore[attr-defined]


class MooncakeHour:
    """The whole hour: 12,031 requests, 144.8 M prompt tokens, 4.12 M decoded tokens.

    Serve mode with pages of 16 tokens, and cache mode with those of the trace's blocks.
    """

    params = (("serve", "cache"), ("lru", "none"))
    param_names = ("mode", "policy")
    number = 1
    repeat = 2
    warmup_time = 0.0
    timeout = 300

    def setup(self, mode: str, policy: str) -> None:
        self.requests = recorded(MOONCAKE)
        shape = (65_536, 16) if mode == "serve" else (19_531, 512)
        self.options = ReplayOptions(mode, *shape, policy=policy)
        prepare(self.options)

    def time_replay(self, mode: str, policy: str) -> None:
        replay(self.requests, self.options)

    def track_allocator_us_a_step(self, mode: str, policy: str) -> float:
        return _step_us(replay(self.requests, self.options))

    track_allocator_us_a_step.unit = "us"  # type: ignore[attr-defined]

    def track_hit_rate(self, mode: str, policy: str) -> float:
        return replay(self.requests, self.options).prefix.hit_rate_tokens

    track_hit_rate.unit = "of all prompt tokens"  # type: ignore[attr-defined]


class Policies:
    """The whole hour in cache mode, by policy: what eviction costs where every page gives way."""

    params = REPLAY_POLICIES
    param_names = ("policy",)
    number = 1
    warmup_time = 0.0
    timeout = 120

    def setup(self, policy: str) -> None:
        self.requests = recorded(MOONCAKE)
        self.options = ReplayOptions("cache", 5_859, 512, policy=policy)
        prepare(self.options)

    def time_replay(self, policy: str) -> None:
        replay(self.requests, self.options)


class Clairvoyant:
    """The bound that a sweep shows beside the policies: one size of the hour."""

    number = 1
    warmup_time = 0.0
    timeout = 120

    def setup(self) -> None:
        self.requests = recorded(MOONCAKE)

    def time_one_size(self) -> None:
        PagePaths(self.requests, 512).best_hits(5_859)


class Reading:
    """The readers alone: a recorded hour from file to requests."""

    params = ("mooncake", "azure")
    param_names = ("trace",)
    number = 1

    def setup(self, trace: str) -> None:
        self.path = MOONCAKE if trace == "mooncake" else AZURE
        recorded(self.path)

    def time_read(self, trace: str) -> None:
        for _ in read_trace(self.path):
            pass


def recorded(path: Path) -> list[Request]:
    """The requests of a recorded trace; a benchmark without it is skipped."""
    if not path.is_file():
        raise NotImplementedError(f"no recorded trace {path}")
    return list(read_trace(path))


def _step_us(report: Report) -> float:
    return report.allocator.seconds * 1e6 / report.allocator.steps
