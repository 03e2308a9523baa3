"""A prefix cache of the library beside its model: every call runs on both and must agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import Any

import numpy as np

from jitalloc import PagePool, PrefixCache
from jitalloc.pool import state
from jitalloc.prefix.matches import PrefixMatch
from jitalloc.prefix.state import (
    HASH_MASK,
    HIDDEN,
    MOST_USES,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    PINS_SHIFT,
    UNCACHED,
    USES_SHIFT,
)
from tests import oracle_nodes, oracle_prefix
from tests.pairs import PoolPair

Both = tuple[PrefixMatch, oracle_nodes.Match]


def spell(text: str, page_size: int) -> list[int]:
    """Tokens of `text`, a page for each letter; no two pages of different letters agree."""
    return [ord(letter) * 1000 + i for letter in text for i in range(page_size)]


def facts(match: PrefixMatch | oracle_nodes.Match) -> tuple[Any, ...]:
    """What a match says, of either side."""
    if isinstance(match, PrefixMatch):
        assert match.pages.dtype == np.int32
        assert match.num_pages == match.pages.size
        partial = (match.partial_page, match.partial_tokens)
        return match.pages.tolist(), match.num_tokens, partial, match.locked, match.pinned
    tokens = len(match.pages) * match.cache.pool.page_size
    return match.pages, tokens, match.partial, match.locked, match.pinned


def cached(cache: PrefixCache) -> dict[int, tuple[Any, ...]]:
    """Every cached page: its namespace and tokens up to its end, and all that is known of it."""
    arrays, names = cache.arrays, {each: name for name, each in cache._namespaces.numbers.items()}
    names[0] = None
    following, previous, nodes = (
        each.tolist() for each in (arrays.following_pages, arrays.previous_pages, arrays.nodes)
    )
    found: dict[int, tuple[Any, ...]] = {}
    keys: dict[int, Any] = {}

    def key(page: int) -> Any:
        path = []
        while page >= 0 and page not in keys:
            path.append(page)
            page = previous[page]
        at = keys[page] if page >= 0 else (names[-2 - page], ())
        for each in reversed(path):
            at = keys[each] = (at[0], at[1] + tuple(arrays.tokens[each].tolist()))
        return at

    for first in {~each for each in following if UNCACHED < each < 0}:
        record, page = nodes[first], first
        state, stamp = record[NODE_STATE], int(arrays.stamps[first])
        uses, pins = state >> USES_SHIFT & MOST_USES, state >> PINS_SHIFT
        for i in range(record[NODE_LENGTH]):
            known = key(page), record[NODE_LOCKS], pins, uses, state & 255, stamp - i
            found[page] = (*known, i == 0 and state & HIDDEN != 0)
            page = following[page]
        assert page == ~first
    assert len(found) == sum(each != UNCACHED for each in following)
    return found


def cached_model(model: oracle_prefix.Prefixes) -> dict[int, tuple[Any, ...]]:
    """The same of the model."""
    found: dict[int, tuple[Any, ...]] = {}
    for (namespace, tokens), node in model.nodes.items():
        known = node.locks, node.pins, node.uses, node.cls, node.pos
        hidden = isinstance(tokens[-model.pool.page_size], oracle_nodes.Hidden)
        found[node.page] = ((namespace, node.tokens), *known, hidden)
    return found


class PrefixPair(PoolPair):
    """A `PrefixCache` on a pool, and the models of both; `matches` are those not released."""

    def __init__(
        self,
        num_pages: int = 16,
        page_size: int = 4,
        order: str = "fifo",  # its freelist shows in which order pages came back
        null_page: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_pages, page_size, order, null_page)
        self.cache = PrefixCache(self.pool, **options)
        self.cache_model = oracle_prefix.Prefixes(self.model, **options)
        self.matches: list[Both] = []

    # Calls.

    def do(self, name: str, *args: Any, **options: Any) -> tuple[Any, ...]:
        """Call both caches, compare what comes back and what is left; return the outcome."""
        return self.compare(
            lambda: getattr(self.cache, name)(*args, **options),
            lambda: getattr(self.cache_model, name)(*args, **options),
        )

    def must(self, name: str, *args: Any, **options: Any) -> Any:
        """Call both caches; the call must succeed."""
        got = self.do(name, *args, **options)
        assert got[0] == "returned", got
        return got[1]

    def look_up(
        self, tokens: Any, namespace: Hashable = None, name: str = "match", **options: Any
    ) -> tuple[Any, ...]:
        """`match` or `pin` on both sides; what was found joins `matches`."""
        found: list[Any] = []

        def call(cache: Any) -> Callable[[], tuple[Any, ...]]:
            def run() -> tuple[Any, ...]:
                found.append(getattr(cache, name)(tokens, namespace, **options))
                return facts(found[-1])

            return run

        got = self.compare(call(self.cache), call(self.cache_model))
        if got[0] == "returned":
            model, library = found
            self.matches.append((library, model))
        return got

    def pages_of(self, tokens: Any, namespace: Hashable = None, name: str = "match") -> Any:
        """The pages that a look-up finds; it must succeed."""
        got = self.look_up(tokens, namespace, name)
        assert got[0] == "returned", got
        return got[1][0]

    def give_back(self, i: int = -1) -> None:
        """Release or unpin one of `matches`."""
        library, model = self.matches.pop(i)
        name = "unpin" if model.pinned else "release"
        got = self.compare(
            lambda: getattr(self.cache, name)(library), lambda: self.cache_model.release(model)
        )
        assert got == ("returned", None)
        assert (library.locked, model.locked) == (False, False)

    def store(self, tokens: Sequence[int], namespace: Hashable = None, **options: Any) -> Any:
        """Allocate, insert, and give up the own references, as a sequence that ends does.

        Pages that are short are evicted first; nothing is stored where that is not enough.
        """
        need = len(tokens) // self.pool.page_size
        if need > self.pool.available:
            self.do("evict", need - self.pool.available)
        got = self.call("alloc", need)
        if got[0] != "returned":
            return None
        result = self.must("insert", tokens, got[1], namespace, **options)
        self.call("free", got[1])
        return result

    def force_collisions(self, mask: int) -> None:
        """Leave so little of every hash that most pages share one (while nothing is cached)."""
        self.cache.arrays.header[HASH_MASK] = mask

    # What both sides hold.

    def agree(self) -> None:
        super().agree()
        assert cached(self.cache) == cached_model(self.cache_model)
        model, cache = self.cache_model, self.cache
        locked = model.count("locks")
        assert len(cache) == cache.num_cached == len(model.nodes)
        assert (cache.num_locked, cache.num_pinned) == (locked, model.count("pins"))
        assert cache.num_evictable == len(model.nodes) - locked
        assert dataclasses.asdict(cache.stats()) == model.stats()
        cache.check()

    def drain(self) -> list[int]:
        """Give every match back and evict page by page; return the pages in that order."""
        while self.matches:
            self.give_back()
        pages = []
        while self.cache.num_cached:
            pages.append(self.cache_model.victims()[0].page)
            assert self.must("evict", 1) == 1
        return pages


def random_turn(pair: PrefixPair, random: Random, letters: str = "ab", longest: int = 6) -> None:
    """One random call, mostly a right one, on prompts that share beginnings."""
    size = pair.pool.page_size
    text = "".join(random.choices(letters, k=random.randrange(longest)))
    tokens = spell(text, size) + spell(random.choice(letters), size)[: random.randrange(size)]
    if tokens and random.random() < 0.3:
        tokens[random.randrange(len(tokens))] += 1
    namespace = random.choice((None, None, "other", 7))
    dice = random.random()
    if dice < 0.35:
        options: dict[str, Any] = {}
        if pair.cache_model.policy == "priority":
            options["priority"] = random.choice((None, 0, 35, 35, 80))
            options["lifetime"] = random.choice((None, 1, 6, 15))
        pair.store(tokens, namespace, **options)
    elif dice < 0.55:
        pair.look_up(tokens, namespace)
    elif dice < 0.65:
        pair.look_up(tokens, namespace, "pin")
    elif dice < 0.9 and pair.matches:
        pair.give_back(random.randrange(len(pair.matches)))
    else:
        pair.do("evict", random.randrange(4))


def stored(page_size: int, *texts: str, **options: Any) -> PrefixPair:
    """A pair of 64 pages in which these prompts are cached."""
    pair = PrefixPair(64, page_size, **options)
    for text in texts:
        pair.store(spell(text, page_size))
    return pair


def freed(pool: PagePool, n: int) -> list[int]:
    """The pages that came back last, in order (fifo)."""
    header = pool.arrays.header
    end = int(header[state.HEAD] + header[state.FREE])
    return pool.arrays.free_pages[np.arange(end - n, end) % pool.num_pages].tolist()
