"""A cache of prefixes in plain Python, page by page: a dictionary, and a list of what was pushed.

A page is known by the page before it and by what it holds, so a number stands for a whole path.
What a page holds is told by block ids, never by tokens.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable
from types import SimpleNamespace

from jitalloc.replay import Request


def contents(request: Request, number: int, size: int, length: int) -> list[Hashable]:
    """Return what each whole page of a sequence holds that grew to `length` tokens.

    The prompt holds its blocks as far as the ids and `input_length` go; what follows is the
    request's own, known by its `number`.
    """
    ids = [] if request.block_ids is None else request.block_ids.tolist()
    known = min(len(ids) * request.block_size, request.input_length)
    return _pages(ids, request.block_size, known, number, size, length)


def whole_blocks(request: Request, number: int, size: int) -> tuple[list[Hashable], int]:
    """Return the same for cache mode, where the last block is whole, and the tokens that takes."""
    ids = [] if request.block_ids is None else request.block_ids.tolist()
    known = len(ids) * request.block_size
    length = max(known, request.input_length)
    return _pages(ids, request.block_size, known, number, size, length), length


def _pages(
    ids: list[int], block: int, known: int, number: int, size: int, length: int
) -> list[Hashable]:
    found: list[Hashable] = []
    for start in range(0, length - size + 1, size):
        end = start + size
        until = min(end, known)
        held = tuple(ids[start // block : -(-until // block)]) if start < known else ()
        own = end - max(start, known)
        found.append((held, own, number) if own > 0 else held)
    return found


class PrefixModel:
    """Which pages are cached, how often each is locked, and which one goes next."""

    def __init__(self, policy: str = "lru", protected: int = 0) -> None:
        self.policy = policy
        self.protected = protected  # slru: most unlocked pages that were used again
        self.place: dict[int, tuple[int, int]] = {}  # cached page: class and position
        self.locks: Counter[int] = Counter()
        self.uses: Counter[int] = Counter()
        self.children: Counter[int] = Counter()
        self.evicted = 0
        self._numbers: dict[tuple[int, Hashable, Hashable], int] = {}
        self._parents: list[int] = []
        self._pushed: list[tuple[int, int, int]] = []  # a heap; out of date unless as in `place`
        self._clock = 0

    def path(self, pages: Iterable[Hashable], namespace: Hashable = None) -> list[int]:
        """Return the number of each page of a path."""
        parent, found = -1, []
        for page in pages:
            number = self._numbers.setdefault((parent, page, namespace), len(self._parents))
            if number == len(self._parents):
                self._parents.append(parent)
            found.append(number)
            parent = number
        return found

    @property
    def evictable(self) -> int:
        return len(self.place) - len(self.locks)

    def match(self, path: list[int]) -> int:
        """Lock what is cached of `path`; return how many pages that is."""
        count = next((i for i, each in enumerate(path) if each not in self.place), len(path))
        self.locks.update(path[:count])
        return count

    def use(self, path: list[int]) -> None:
        """Count one use of what was matched."""
        for each in path:
            self.uses[each] = min(self.uses[each] + 1, 255)

    def unlock(self, path: list[int]) -> None:
        self.locks.subtract(path)
        for each in path:
            if not self.locks[each]:
                del self.locks[each]

    def release(self, path: list[int]) -> None:
        self.unlock(path)
        if self.policy != "fifo":
            self._touch(path)
        self._demote()

    def insert(self, path: list[int]) -> list[int]:
        """Adopt what is not cached of `path`; return those pages."""
        new = [each for each in path if each not in self.place]
        for each in new:
            self.place[each] = (0, 0)
            self.uses[each] = 0
            self.children[self._parents[each]] += 1
        self._touch(new if self.policy == "fifo" else path)
        self._demote()
        return new

    def evict(self, count: int) -> None:
        passed: dict[int, tuple[int, int, int]] = {}  # locked, or with pages that follow
        while count > 0 and self._pushed:
            entry = heapq.heappop(self._pushed)
            each = entry[2]
            if self.place.get(each) != (entry[0], abs(entry[1])):
                continue
            if self.locks[each] or self.children[each]:
                passed[each] = entry
                continue
            del self.place[each]
            parent = self._parents[each]
            self.children[parent] -= 1
            if parent in passed:  # a leaf now, perhaps
                heapq.heappush(self._pushed, passed.pop(parent))
            self.evicted += 1
            count -= 1
        for entry in passed.values():
            heapq.heappush(self._pushed, entry)

    def _touch(self, path: list[int]) -> None:
        for each in reversed(path):
            self._push(each)

    def _push(self, each: int) -> None:
        self._clock += 1
        of = {"lfu": self.uses[each], "slru": int(self.uses[each] > 0)}.get(self.policy, 0)
        self.place[each] = (of, self._clock)
        position = -self._clock if self.policy == "mru" else self._clock
        heapq.heappush(self._pushed, (of, position, each))

    def _demote(self) -> None:
        if self.policy == "slru":
            held = sorted(
                (place[1], each)
                for each, place in self.place.items()
                if place[0] == 1 and each not in self.locks
            )
            for _, each in held[: max(0, len(held) - self.protected)]:
                self.uses[each] = 0
                self._push(each)


def one_after_another(
    trace: Iterable[Request], num_pages: int, size: int, policy: str = "lru"
) -> SimpleNamespace:
    """Return what cache mode must come to: pages looked up, found, evicted, distinct."""
    model = PrefixModel(policy, int(0.8 * num_pages))
    out = SimpleNamespace(pages=0, hits=0, rejected=0)
    for number, request in enumerate(trace):
        pages, tokens = whole_blocks(request, number, size)
        out.pages += len(pages)
        if -(-tokens // size) > num_pages:
            out.rejected += 1
            continue
        if request.block_ids is None:
            pages = []  # shares nothing, and is not kept
        path = model.path(pages, request.scope)
        found = model.match(path)
        model.use(path[:found])
        out.hits += found
        model.evict(len(model.place) + -(-tokens // size) - found - num_pages)
        model.insert(path)
        model.release(path[:found])
    out.evicted, out.cached = model.evicted, len(model.place)
    return out
