"""A `PagedKVCache` with a prefix cache beside its model: every call runs on both and must agree."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from jitalloc import PagedKVCache, PrefixCache
from jitalloc.sequences.state import GAP, KNOWN, LOCK_END, LOCKED, NAMESPACE
from tests import oracle_prefix
from tests.cache_pairs import CachePair, cache_model_state, cache_state
from tests.oracle_sharing import SharingCache
from tests.pairs import PoolPair, model_state, pool_state
from tests.prefix_pairs import cached, cached_model

Row = dict[str, Any]


def sharing_state(cache: PagedKVCache) -> dict[str, Any]:
    """What `cache_state` says, and what each row knows and locks."""
    state = cache_state(cache)
    assert cache.prefix_cache is not None
    arrays, size = cache.prefix_cache.arrays, cache.pool.page_size
    names = {number: name for name, number in cache.prefix_cache._namespaces.numbers.items()}
    for row, at in state["rows"].items():
        column = cache.tables.arrays.columns[:, row].tolist()
        tokens = [token for page in at["pages"] for token in arrays.tokens[page].tolist()]
        path, page = [], column[LOCK_END]
        while page >= 0 and column[LOCKED]:
            path.append(page)
            page = int(arrays.previous_pages[page])
        assert len(path) == column[LOCKED]
        assert column[KNOWN] <= min(at["length"], len(at["pages"]) * size)
        at["tokens"] = tokens[: column[KNOWN]]
        at["path"] = path[::-1]
        at["gap"] = column[GAP]
        at["namespace"] = names.get(column[NAMESPACE]) if at["tokens"] or path else None
    return state


def sharing_model_state(model: SharingCache) -> dict[str, Any]:
    """The same of the model."""
    state = cache_model_state(model)
    rows = {}
    for row, at in state["rows"].items():
        path = [node.page for node in at["path"]]
        namespace = at["namespace"] if at["tokens"] or path else None
        rows[row] = {**at, "path": path, "namespace": namespace}
    return {**state, "rows": rows}


class SharingPair(CachePair):
    """A pool, a prefix cache and sequences on both, each with its model."""

    cache_model: SharingCache

    def __init__(
        self,
        num_pages: int = 16,
        page_size: int = 4,
        order: str = "sorted",
        null_page: bool = False,
        max_sequences: int = 6,
        max_pages: int = 8,
        eviction: str = "lru",
        threshold: float = 0.9,
        sink: int = 4,
        window: int = 8,
        **options: Any,
    ) -> None:
        PoolPair.__init__(self, num_pages, page_size, order, null_page)
        self.prefix = PrefixCache(self.pool, **options)
        self.prefix_model = oracle_prefix.Prefixes(self.model, **options)
        self.cache = PagedKVCache(
            self.pool,
            max_sequences,
            max_pages,
            eviction=eviction,
            eviction_threshold=threshold,
            sink_tokens=sink,
            window_tokens=window,
            prefix_cache=self.prefix,
        )
        self.cache_model = SharingCache(
            self.model,
            self.prefix_model,
            max_sequences,
            max_pages,
            eviction,
            threshold,
            sink,
            window,
        )
        self.sides = [(self.cache, self.cache_model)]

    def agree(self) -> None:
        assert pool_state(self.pool) == model_state(self.model)
        assert cached(self.prefix) == cached_model(self.prefix_model)
        told, asked = self.prefix.stats(), self.prefix_model
        assert (told.lookups, told.tokens, told.pages) == (asked.lookups, asked.tokens, asked.pages)
        assert told.hit_pages == asked.hit_pages
        assert told.inserted_pages == asked.inserted
        assert told.evicted_pressure == asked.evicted["pressure"]
        self.agree_on_sequences(self.cache, self.cache_model)
        self.prefix.check()
        self.cache.check(held=self.held())

    def agree_on_sequences(self, cache: PagedKVCache, model: SharingCache) -> None:
        assert sharing_state(cache) == sharing_model_state(model)
        assert list(cache.ids) == list(model.ids)
        stats, pages = cache.stats(), (self.model.available, model.reclaimable, model.held)
        assert (cache.num_free, cache.num_reclaimable, cache.num_held) == pages
        assert (stats.free_pages, stats.reclaimable_pages, stats.held_pages) == pages
        assert self.unlocked(model) == []

    def unlocked(self, model: SharingCache) -> list[int]:
        """Cached pages that sequences hold without a lock: they would give way for nothing."""
        locks = {node.page: node.locks for node in self.prefix_model.nodes.values()}
        return [p for at in model.rows.values() for p in at.pages if locks.get(p) == 0]

    def use(self, side: int) -> None:
        """Let the calls that follow be those of one cache, where there are several."""
        self.cache, self.cache_model = self.sides[side]


def prompt(pair: SharingPair, random: Random, most: int = 20) -> list[int]:
    """Tokens that often begin like others: pages of one letter each, with now and then a slip."""
    size = pair.pool.page_size
    letters = random.choices("aab", k=1 + most // size)
    tokens = [ord(letter) * 100 + i for letter in letters for i in range(size)]
    tokens = tokens[: random.randrange(min(most, len(tokens)) + 1)]
    if tokens and random.random() < 0.2:
        tokens[random.randrange(len(tokens))] += 1
    return tokens


def an_id(pair: SharingPair, random: Random) -> int:
    return random.choice([*pair.cache_model.ids, random.randrange(12)])


def some_rows(pair: SharingPair, random: Random) -> list[int]:
    live = sorted(pair.cache_model.rows)
    return random.sample(live, min(random.choice((1, 1, 2, 4)), len(live)))


def allocate(pair: SharingPair, random: Random) -> None:
    namespace = random.choice((None, None, None, "other"))
    if random.random() < 0.2:
        pair.do("allocate", random.randrange(12), random.randrange(12), namespace=namespace)
    else:
        tokens = prompt(pair, random)
        pair.do("allocate", random.randrange(12), tokens=tokens, namespace=namespace)


def allocate_batch(pair: SharingPair, random: Random) -> None:
    """Prompts are planned, and then so many of them begin, or one more."""
    prompts = [prompt(pair, random) for _ in range(random.choice((0, 1, 2, 2, 3, 5)))]
    indptr = np.cumsum([0, *map(len, prompts)]).tolist()
    tokens = [token for each in prompts for token in each]
    names = random.choices((None, None, None, "other"), k=len(prompts))
    options = {"namespaces": random.choice((None, names)), "compute": random.choice((1, 1, 0, 5))}
    reserve = random.choice((0, 0, 1, 4))
    plan = pair.must("plan", tokens, indptr, reserve=reserve, **options)
    k = min(plan[0] + random.choice((0, 0, 1)), len(prompts))
    if options["namespaces"] is not None:
        options["namespaces"] = names[:k]
    free = [seq_id for seq_id in range(12) if seq_id not in pair.cache_model.ids]
    ids = random.sample(free, min(k, len(free))) if random.random() < 0.9 else [0] * k
    if len(ids) == k:
        end = indptr[k]
        pair.do("allocate_batch", tokens[:end], indptr[: k + 1], ids=ids, **options)


def append(pair: SharingPair, random: Random) -> None:
    rows = some_rows(pair, random)
    counts = [random.choice((0, 1, 1, 2, pair.pool.page_size + 1)) for _ in rows]
    tokens = None
    if random.random() < 0.8:
        tokens = [random.choice((9700, 9800)) for _ in range(sum(counts))]
    pair.do("append_batch", rows, counts, tokens=tokens, computed=random.random() < 0.7)


def commit_batch(pair: SharingPair, random: Random) -> None:
    rows = some_rows(pair, random)
    lengths = [pair.cache_model.rows[row].length for row in rows]
    numbers = [random.randrange(length + 1) for length in lengths]
    pair.do("commit_batch", rows, random.choice((None, min(lengths, default=0), numbers, numbers)))


def commit(pair: SharingPair, random: Random) -> None:
    seq_id = an_id(pair, random)
    tokens = None
    rows = pair.cache_model.rows
    row = pair.cache_model.ids.get(seq_id)
    mine = set(rows[row].pages) if row is not None else set()
    forks = [at for other, at in rows.items() if other != row and mine.intersection(at.pages)]
    if random.random() < 0.3 and not forks:  # who tells forks apart contradicts himself
        known = rows[row].tokens if row is not None else []
        more = prompt(pair, random)[len(known) :]
        tokens = [*known, *more]
        if tokens and random.random() < 0.2:
            tokens[random.randrange(len(tokens))] += 1
    length = 0 if row is None else rows[row].length
    num_tokens = random.choice((None, None, random.randrange(length + 2)))
    pair.do("commit", seq_id, num_tokens, tokens=tokens)


def free(pair: SharingPair, random: Random) -> None:
    """Half of the time all of it has been computed."""
    rows, commit = some_rows(pair, random)[:2], random.random() < 0.8
    if random.random() < 0.5:
        pair.do("commit_batch", rows)
    if random.random() < 0.5:
        pair.do("free_batch", rows, commit=commit)
    else:
        ids = [seq_id for seq_id, row in pair.cache_model.ids.items() if row in rows[:1]]
        pair.do("free", random.choice([*ids, an_id(pair, random)]), commit=commit)


def adopt(pair: SharingPair, random: Random) -> None:
    """Pages of another engine; or cached ones, which the user holds too."""
    tokens, size = prompt(pair, random), pair.pool.page_size
    got = pair.call("alloc", min(-(-len(tokens) // size), pair.model.available))
    pages = list(got[1])
    if random.random() < 0.2 and pages:
        cached = [node.page for node in pair.prefix_model.nodes.values()]
        pages[random.randrange(len(pages))] = random.choice([-1, *pages, *cached])
    computed = random.choice((None, None, random.randrange(20)))
    space = random.choice((None, None, "other"))
    pair.do("adopt", random.randrange(12), tokens, pages, namespace=space, computed=computed)
    mine = pair.held()
    pair.call("free", [page for page in got[1] if page in mine])


def fork(pair: SharingPair, random: Random) -> None:
    at = random.choice((None, random.randrange(14)))
    pair.do("fork", an_id(pair, random), random.randrange(12), at)


def reorder(pair: SharingPair, random: Random) -> None:
    rows = some_rows(pair, random)
    pair.do("reorder", rows, random.choices(sorted(pair.cache_model.rows) or [0], k=len(rows)))


def fork_batch(pair: SharingPair, random: Random) -> None:
    pair.do("allocate", random.randrange(12), 0)
    empty = [row for row, at in pair.cache_model.rows.items() if not at.length]
    rows = sorted(pair.cache_model.rows)
    pair.do("fork_batch", random.choices(rows or [0], k=len(empty)), empty)


def truncate(pair: SharingPair, random: Random) -> None:
    pair.do("truncate", an_id(pair, random), random.randrange(16))


def cut(pair: SharingPair, random: Random) -> None:
    pair.do("apply_streaming_llm", an_id(pair, random), random.randrange(8), random.randrange(9))


def evict(pair: SharingPair, random: Random) -> None:
    if random.random() < 0.5:
        pair.do("evict")
    else:
        pair.do("evict_to", random.choice((0.2, 0.5, 0.8)))


def reclaim(pair: SharingPair, random: Random) -> None:
    n = random.randrange(4)
    pair.compare(lambda: pair.prefix.evict(n), lambda: pair.prefix_model.evict(n))


def look(pair: SharingPair, random: Random) -> None:
    tokens = prompt(pair, random)
    pair.compare(lambda: pair.prefix.lookup(tokens), lambda: pair.prefix_model.lookup(tokens))


def touch(pair: SharingPair, random: Random) -> None:
    tokens = prompt(pair, random)
    pair.compare(lambda: pair.prefix.touch(tokens), lambda: pair.prefix_model.touch(tokens))


def invalidate(pair: SharingPair, random: Random) -> None:
    """By tokens, from somewhere on, or by the pages of a running sequence, or any."""
    dice, rows = random.random(), pair.cache_model.rows
    asked: dict[str, Any] = {"tokens": prompt(pair, random), "start": random.randrange(9)}
    if dice < 0.7:
        pages = range(pair.model.first, pair.model.num_pages)
        if dice < 0.4 and rows:
            pages = rows[random.choice(sorted(rows))].pages or pages
        asked = {"pages": random.choices(pages, k=random.randrange(3))}
    pair.compare(
        lambda: pair.prefix.invalidate(**asked), lambda: pair.prefix_model.invalidate(**asked)
    )


def own(pair: SharingPair, random: Random) -> None:
    """The user becomes owner of cached pages too, or of those that it lets the cache adopt."""
    if random.random() < 0.5:
        cached = [node.page for node in pair.prefix_model.nodes.values()]
        pair.call("share", random.sample(cached, min(len(cached), random.randrange(1, 4))))
        return
    size = pair.pool.page_size
    tokens = prompt(pair, random, 3 * size)
    got = pair.call("alloc", min(len(tokens) // size, pair.model.available))
    if got[0] == "returned":
        own = got[1], tokens[: len(got[1]) * size]
        pair.compare(
            lambda: pair.prefix.insert(own[1], own[0]),
            lambda: pair.prefix_model.insert(own[1], own[0]),
        )


def disown(pair: SharingPair, random: Random) -> None:
    held = pair.held()
    pair.call("free", random.sample(held, random.randrange(len(held) + 1)))


def room(pair: SharingPair, random: Random) -> None:
    """How much there is, and then it is made."""
    live = sorted(pair.cache_model.rows)
    rows = random.sample(live, random.randrange(len(live) + 1))
    pair.do("room_for", rows, random.randrange(12), reserve=random.choice((0, 0, 1, 3)))
    pair.do("make_room", random.randrange(-1, pair.pool.num_pages + 2))


def look_up(pair: SharingPair, random: Random) -> None:
    """A user's own match, given back at once."""
    tokens = prompt(pair, random)
    match, model = pair.prefix.match(tokens), pair.prefix_model.match(tokens)
    assert match.pages.tolist() == model.pages
    assert (match.partial_page, match.partial_tokens) == model.partial
    pair.agree()
    pair.compare(lambda: pair.prefix.release(match), lambda: pair.prefix_model.release(model))


def defragment(pair: SharingPair, random: Random) -> None:
    pair.call("defragment")


STEPS = {
    allocate: 5,
    allocate_batch: 2,
    append: 6,
    commit: 4,
    commit_batch: 2,
    free: 4,
    adopt: 1,
    fork: 2,
    fork_batch: 1,
    reorder: 1,
    truncate: 2,
    cut: 1,
    evict: 1,
    reclaim: 1,
    look: 0.3,
    touch: 0.5,
    invalidate: 0.2,
    own: 0.3,
    disown: 1,
    room: 0.5,
    look_up: 1,
    defragment: 0.3,
}


def random_turn(pair: SharingPair, random: Random) -> None:
    """One call, most of them right."""
    (step,) = random.choices(list(STEPS), weights=list(STEPS.values()))
    step(pair, random)
