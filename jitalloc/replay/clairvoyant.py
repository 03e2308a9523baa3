"""Clairvoyant eviction: the page whose next use is furthest away goes first.

No policy that must decide without the future finds more, so this bounds them all. It is worked
out from the trace alone, in cache mode's terms: requests one after another, whole blocks, a page
known by the path that leads to it. A page is used next no later than any page behind it, so
leaves go before their parents by themselves. After each request the cache keeps what will be
used soonest; a prompt that is being read takes no room from it, so none is ever too long.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from jitalloc.replay.request import Request

NEVER = 2**62


class PagePaths:
    """The paths of pages that the prompts of a trace take, and when each page is used next.

    Where pages divide the blocks of a trace, a block's pages stay together: they are used at the
    same time. So what follows counts nodes, each of some pages in a row.

    Parameters
    ----------
    requests : iterable of Request
    page_size : int

    Attributes
    ----------
    num_pages : int
        Whole pages of all prompts, as cache mode looks them up.
    num_distinct : int
        Distinct ones among those with block ids: so many pages are never evicted.
    """

    def __init__(self, requests: Iterable[Request], page_size: int) -> None:
        self.num_pages = 0
        self.num_distinct = 0
        self._size = page_size
        self._paths: list[list[int]] = []
        self._weights: list[int] = []  # pages of each node
        numbers: dict[tuple[int, object], int] = {}
        for request in requests:
            blocks = [] if request.block_ids is None else request.block_ids.tolist()
            tokens = max(len(blocks) * request.block_size, request.input_length)
            self.num_pages += tokens // page_size
            parent = -1 - request.scope
            path = []
            weight, held = self._split(blocks, request.block_size)
            for each in held:
                node = numbers.setdefault((parent, each), len(numbers))
                if node == len(self._weights):
                    self._weights.append(weight)
                path.append(node)
                parent = node
            self._paths.append(path)
        self.num_distinct = sum(self._weights)
        self._uses = self._next_uses()

    def _split(self, blocks: list[int], block: int) -> tuple[int, Iterable[object]]:
        """Return pages a node, and what each node of a prompt holds."""
        size = self._size
        if block % size == 0:
            return max(1, block // size), blocks
        ends = range(size, len(blocks) * block + 1, size)
        return 1, [tuple(blocks[(end - size) // block : -(-end // block)]) for end in ends]

    def _next_uses(self) -> list[list[int]]:
        """Return for each node of each path which request takes it next."""
        coming = [NEVER] * len(self._weights)
        found = []
        for number in range(len(self._paths) - 1, -1, -1):
            path = self._paths[number]
            found.append([coming[node] for node in path])
            for node in path:
                coming[node] = number
        found.reverse()
        return found

    def best_hits(self, num_pages: int) -> int:
        """Return how many pages a cache of `num_pages` finds that knows the future."""
        weights = self._weights
        held = [0] * len(weights)  # pages of each node that are cached: its first ones
        due = [NEVER] * len(weights)  # when it is used next
        queue: list[tuple[int, int, int]] = []  # furthest first, deepest first
        hits = used = 0
        for path, uses in zip(self._paths, self._uses, strict=True):
            for node in path:
                hits += held[node]
                if held[node] < weights[node]:
                    break
            for depth, (node, use) in enumerate(zip(path, uses, strict=True)):
                used += weights[node] - held[node]
                held[node] = weights[node]
                due[node] = use
                heapq.heappush(queue, (-use, -depth, node))
            while used > num_pages:
                use, _, node = queue[0]
                if due[node] != -use or not held[node]:
                    heapq.heappop(queue)  # was used since, or is gone
                    continue
                gone = min(held[node], used - num_pages)
                held[node] -= gone
                used -= gone
        return hits
