"""Serve mode in plain Python: pages counted, one sequence after the other; small replays."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

from jitalloc.replay import ReplayOptions, Report, Request, replay
from jitalloc.replay.meter import Meter
from tests.oracle_cache import PrefixModel, contents


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
    size, now = options.page_size, 0.0
    todo = deque(enumerate(trace))
    waiting: deque[SimpleNamespace] = deque()
    running: list[SimpleNamespace] = []  # oldest first
    cache = PrefixModel(options.policy, int(0.8 * options.num_pages))
    out = SimpleNamespace(
        **dict.fromkeys(
            ("steps", "preempted", "decoded", "rejected", "read", "found", "again", "restored"), 0
        ),
        **dict.fromkeys(("peak", "hit_pages"), 0),
        refused=-1,  # pages that could be had when the first in line was refused
    )

    def free() -> int:
        """Pages that nobody holds: neither a sequence for itself, nor the cache."""
        return options.num_pages - len(cache.place) - sum(one.own for one in running)

    def keep(one: SimpleNamespace, tokens: int) -> None:
        """Let the whole pages of so many tokens enter the cache, and stay locked."""
        if options.policy != "none" and one.request.block_ids is not None:
            pages = contents(one.request, one.number, size, tokens)
            if len(pages) > len(one.locked):
                path = cache.path(pages, one.request.scope)
                cache.insert(path)
                cache.locks.update(path[len(one.locked) :])
                one.own -= len(path) - len(one.locked)
                one.locked = path

    def give_back(one: SimpleNamespace, tokens: int) -> None:
        keep(one, tokens)
        cache.release(one.locked)
        one.locked, one.own = [], 0

    def admit(one: SimpleNamespace) -> bool:
        pages = -(-one.prompt // size)
        before = free() + cache.evictable
        plenty = pages + len(running) <= before
        path, tried = [], options.policy != "none" and one.request.block_ids is not None
        if tried:
            held = contents(one.request, one.number, size, one.prompt)
            path = cache.path(held, one.request.scope)
        if not plenty and before <= out.refused:
            return False
        one.locked = path[: cache.match(path)]
        need = pages - len(one.locked)
        room = free() + cache.evictable
        if need > room or (not plenty and need + len(running) > room):
            if tried and need <= room:  # it was there for a moment
                cache.use(one.locked)
                cache.evict(need - free())
                cache.release(one.locked)
            else:
                cache.unlock(one.locked)
            one.locked = []
            out.refused = before
            return False
        cache.use(one.locked)
        out.refused = -1
        cache.evict(need - free())
        one.own = need
        found = min(len(one.locked) * size, max(0, one.prompt - 1))
        out.restored += min(found, one.reached)
        out.found += max(0, found - one.reached)
        out.hit_pages += 0 if one.back else len(one.locked)
        one.reached = max(one.reached, found)
        one.left, one.length, one.reading = one.prompt - found, one.prompt, True
        return True

    while todo or waiting or running:
        while todo and todo[0][1].arrival <= now:
            number, new = todo.popleft()
            total = new.input_length + new.output_length
            if -(-total // size) > options.num_pages:
                out.rejected += 1
            else:
                waiting.append(
                    SimpleNamespace(
                        number=number,
                        request=new,
                        prompt=new.input_length,
                        todo=new.output_length,
                        reached=0,
                        left=0,
                        back=False,
                    )
                )
        while waiting and len(running) < options.max_batch and admit(waiting[0]):
            running.append(waiting.popleft())
        if not running:
            if not todo:
                break
            now = todo[0][1].arrival
            continue
        out.steps += 1
        while True:
            short = [one for one in running if not one.reading and one.length % size == 0]
            if len(short) <= free() + cache.evictable:
                break
            one = running.pop()
            give_back(one, one.prompt - one.left if one.reading else one.length)
            if not one.reading:
                one.prompt = one.reached = one.length
            one.back = True
            out.refused = -1
            waiting.appendleft(one)
            out.preempted += 1
        cache.evict(len(short) - free())
        for one in short:
            one.own += 1
        decoding = [one for one in running if not one.reading]
        for one in decoding:
            one.length += 1
            one.todo -= 1
        budget = options.step_tokens - len(decoding)
        tokens = len(decoding)
        out.decoded += tokens
        chunked, joining = [], []
        for one in [one for one in running if one.reading]:
            chunked += [one] * (budget > 0 < one.left)
            for _ in range(min(budget, one.left)):
                position = one.prompt - one.left
                out.again += position < one.reached
                out.read += position >= one.reached
                one.reached = max(one.reached, position + 1)
                one.left -= 1
                budget -= 1
                tokens += 1
            if one.left:
                break
            joining.append(one)
        now += options.step_ms / 1e3 + options.token_us / 1e6 * tokens
        out.peak = max(out.peak, options.num_pages - free() - cache.evictable)
        for one in chunked:
            out.refused = -1
            keep(one, one.prompt - one.left)
        for one in joining:
            one.reading = False
        for one in running:
            if not one.reading and one.todo == 0:
                give_back(one, one.length)
        running = [one for one in running if one.reading or one.todo]
    out.now, out.free, out.cached, out.evicted = now, free(), len(cache.place), cache.evicted
    return out
