"""Replays: the built-in traffic, and recorded traces where their folder is there.

The allocator's own cost is the tracked figure; the time of the whole replay also contains the
simulator around it.
"""

from __future__ import annotations

from pathlib import Path

from jitalloc.replay import ReplayOptions, Report, generate, prepare, read_trace, replay

DATA = Path(__file__).parents[2] / "shared" / "data"
MOONCAKE = DATA / "mooncake" / "conversation_trace.jsonl"
AZURE = DATA / "azure" / "AzureLLMInferenceTrace_conv.csv"


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

    params: tuple[tuple[str, ...], ...] = (("mooncake", "azure"), ("serve", "cache"))
    param_names = ("trace", "mode")
    number = 1
    warmup_time = 0.0
    timeout = 120
    limit: int | None = 2_000

    def setup(self, trace: str, mode: str) -> None:
        path = MOONCAKE if trace == "mooncake" else AZURE
        if not path.is_file():
            raise NotImplementedError(f"no recorded trace {path}")
        self.options = ReplayOptions(mode=mode, limit=self.limit)
        self.requests = list(read_trace(path))
        prepare(self.options)

    def time_replay(self, trace: str, mode: str) -> None:
        replay(self.requests, self.options)

    def track_allocator_us_a_step(self, trace: str, mode: str) -> float:
        return _step_us(replay(self.requests, self.options))

    track_allocator_us_a_step.unit = "us"  # type: ignore[attr-defined]


class MooncakeHour(Recorded):
    """The whole hour: 12,031 requests, 144.8 M prompt tokens, 4.12 M decoded tokens."""

    params = (("mooncake",), ("serve",))
    limit = None
    repeat = 2


class Reading:
    """The readers alone: a recorded hour from file to requests."""

    params = ("mooncake", "azure")
    param_names = ("trace",)
    number = 1

    def setup(self, trace: str) -> None:
        self.path = MOONCAKE if trace == "mooncake" else AZURE
        if not self.path.is_file():
            raise NotImplementedError(f"no recorded trace {self.path}")

    def time_read(self, trace: str) -> None:
        for _ in read_trace(self.path):
            pass


def _step_us(report: Report) -> float:
    return report.allocator.seconds * 1e6 / report.allocator.steps
