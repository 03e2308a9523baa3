"""Cache mode: requests one after another in file order, each alone in the pool."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter_ns

from jitalloc.replay.meter import Meter
from jitalloc.replay.options import ReplayOptions
from jitalloc.replay.request import Request


class Sweep:
    """Allocates the prompt of one request after another and frees it again.

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
        if request.input_length > self.options.length_limit:
            meter.rejected += 1
            return True
        start = perf_counter_ns()
        cached = cache.allocate(key, request.input_length)
        meter.spent += perf_counter_ns() - start
        meter.prompt_tokens += request.input_length - cached
        meter.count_runs(cache.rows([key]))
        meter.hold(meter.finished, 1, 1, 0)
        start = perf_counter_ns()
        cache.free(key)
        meter.spent += perf_counter_ns() - start
        meter.calls += 2
        meter.finished += 1
        meter.end_step()
        return True
