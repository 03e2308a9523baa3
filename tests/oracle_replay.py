"""Serve mode in plain Python: page counts alone, one sequence after the other; small replays."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

from jitalloc.replay import ReplayOptions, Report, Request, replay
from jitalloc.replay.meter import Meter


def requests(*shapes: tuple[float, int, int]) -> list[Request]:
    return [Request(*shape) for shape in shapes]


def small(**changes: object) -> ReplayOptions:
    """Four pages of four tokens; a step takes one second."""
    settings: dict[str, object] = {
        "num_pages": 4,
        "page_size": 4,
        "max_batch": 8,
        "step_tokens": 8,
        "step_ms": 1000.0,
        "token_us": 0.0,
    }
    return ReplayOptions(**(settings | changes))  # type: ignore[arg-type]


def run(trace: list[Request], options: ReplayOptions) -> tuple[Report, Meter]:
    """Replay, and return the meter too: it holds the pool and the cache."""
    seen: list[Meter] = []
    report = replay(trace, options, watch=seen.append)
    return report, seen[0]


def serve(trace: list[Request], options: ReplayOptions) -> SimpleNamespace:
    """Return what serving `trace` must come to."""
    size, free, now = options.page_size, options.num_pages, 0.0
    todo = deque(trace)
    waiting: deque[SimpleNamespace] = deque()
    running: list[SimpleNamespace] = []  # oldest first
    out = SimpleNamespace(steps=0, preempted=0, recomputed=0, decoded=0, rejected=0, peak=0)
    while todo or waiting or running:
        while todo and todo[0].arrival <= now:
            new = todo.popleft()
            total = new.input_length + new.output_length
            if -(-total // size) > options.num_pages:
                out.rejected += 1
            else:
                waiting.append(
                    SimpleNamespace(
                        prompt=new.input_length, left=0, todo=new.output_length, reached=0
                    )
                )
        while waiting and len(running) < options.max_batch:
            one = waiting[0]
            one.pages = -(-one.prompt // size)
            if one.pages + len(running) > free:
                break
            free -= one.pages
            one.left, one.length, one.reading = one.prompt, one.prompt, True
            running.append(waiting.popleft())
        if not running:
            if not todo:
                break
            now = todo[0].arrival
            continue
        out.steps += 1
        while True:
            short = [one for one in running if not one.reading and one.length % size == 0]
            if len(short) <= free:
                break
            one = running.pop()
            free += one.pages
            if not one.reading:
                one.prompt = one.reached = one.length
            waiting.appendleft(one)
            out.preempted += 1
        free -= len(short)
        for one in short:
            one.pages += 1
        decoding = [one for one in running if not one.reading]
        for one in decoding:
            one.length += 1
            one.todo -= 1
        budget = options.step_tokens - len(decoding)
        tokens = len(decoding)
        out.decoded += tokens
        for one in [one for one in running if one.reading]:
            for _ in range(min(budget, one.left)):
                position = one.prompt - one.left
                out.recomputed += position < one.reached
                one.reached = max(one.reached, position + 1)
                one.left -= 1
                budget -= 1
                tokens += 1
            if one.left:
                break
            one.reading = False
        now += options.step_ms / 1e3 + options.token_us / 1e6 * tokens
        out.peak = max(out.peak, options.num_pages - free)
        for one in running:
            if not one.reading and one.todo == 0:
                free += one.pages
        running = [one for one in running if one.reading or one.todo]
    out.now, out.free = now, free
    return out
