"""Cache mode: requests one after another in file order, each alone beside what is cached.

A prompt is looked up, cached pages give way as needed, the rest is allocated, and at its end all
of its whole pages stay in the cache. What a prompt has block ids for is taken as whole blocks,
so a block that the prompt fills only partly can be found again: published hit rates count so.
"""

from __future__ import annotations

from collections.abc import Iterable

from jitalloc.replay.meter import Meter
from jitalloc.replay.options import ReplayOptions
from jitalloc.replay.prompts import Prompts
from jitalloc.replay.request import Request


class CacheRun:
    """Takes the prompt of one request after another through the cache.

    Parameters
    ----------
    requests : iterable of Request
    options : ReplayOptions
    meter : Meter
        Holds the pool and the cache; gets the figures. Its clock follows the arrivals.
    """

    def __init__(self, requests: Iterable[Request], options: ReplayOptions, meter: Meter) -> None:
        self.options = options
        self.meter = meter
        self._prompts = Prompts()
        self._requests = iter(requests)

    def step(self) -> bool:
        """Take the next request through the cache; False when there is none."""
        meter, cache = self.meter, self.meter.cache
        request = next(self._requests, None)
        if request is None:
            return False
        key = meter.seen
        meter.seen += 1
        meter.now = request.arrival
        prompt = self._prompts.of(request, key)
        length = prompt.whole_length
        if length > self.options.length_limit:
            meter.rejected += 1
            meter.look_up(request.input_length, length, 0)
            return True
        if meter.prefix is not None and prompt.shared:
            tokens = prompt.whole_tokens()
            with meter.timed:
                cached = cache.allocate(key, tokens=tokens, namespace=prompt.scope, compute=0)
        else:
            with meter.timed:
                cached = cache.allocate(key, length)
        found = min(cached, request.input_length)
        meter.look_up(request.input_length, length, cached)
        meter.cached_tokens += found
        meter.prompt_tokens += request.input_length - found
        meter.count_runs([cache.row(key)])
        meter.hold(meter.finished, 1, 1, 0)
        with meter.timed:
            if meter.prefix is not None and prompt.shared:
                cache.commit(key)  # as if all of it had been computed
                meter.calls += 1
            cache.free(key)
        meter.calls += 2
        meter.finished += 1
        meter.end_step()
        return True
