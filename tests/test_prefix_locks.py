"""Locks of a prefix cache: pins, what is given back, clear, batches, interruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import NotLocked, PagesLocked, PinBudget
from jitalloc.prefix import prefix
from tests.prefix_pairs import PrefixPair, spell, stored
from tests.test_processes import interrupt_often

# Pins.


def test_pinned_pages_stay_until_unpinned() -> None:
    pair = stored(4, "abc", "abx")
    pair.look_up(spell("ab", 4), name="pin")
    assert pair.must("evict", 9) == 2
    pair.look_up(spell("a", 4), name="pin")
    assert pair.cache.num_pinned == 2
    pair.give_back(0)
    assert pair.cache.num_pinned == 1
    assert pair.must("evict", 9) == 1
    pair.give_back()
    assert pair.must("evict", 9) == 1


def test_a_pin_is_no_lookup() -> None:
    pair = stored(4, "ab")
    before = pair.cache.stats()
    pair.look_up(spell("ab", 4), name="pin")
    pair.give_back()
    assert pair.cache.stats() == before


@pytest.mark.parametrize("budget", [0, 1, 3, None])
def test_the_pin_budget(budget: int | None) -> None:
    pair = PrefixPair(8, 4, pin_budget=budget)
    pair.store(spell("abcd", 4))
    pair.store(spell("abxy", 4))
    for text in ("", "a", "abc", "abc", "abcd", "abx"):
        before = pair.cache.num_pinned
        got = pair.look_up(spell(text, 4), name="pin")
        if got[0] is PinBudget:
            assert pair.cache.num_pinned == before
    while pair.matches:
        pair.give_back(0)


# Giving back what is not held.


def test_a_match_is_given_back_once_and_to_its_own_cache() -> None:
    pair, other = stored(4, "ab"), stored(4, "ab")
    match, pin = pair.cache.match(spell("ab", 4)), pair.cache.pin(spell("a", 4))
    before = pair.cache.arrays.slab.copy()
    wrong = [(other.cache.release, match), (other.cache.unpin, match), (other.cache.unpin, pin)]
    for call, each in (*wrong, (pair.cache.release, pin), (pair.cache.unpin, match)):
        with pytest.raises(NotLocked):
            call(each)
    assert np.array_equal(pair.cache.arrays.slab, before)
    other.agree()
    pair.cache.release(match)
    pair.cache.unpin(pin)
    for call, each in ((pair.cache.release, match), (pair.cache.unpin, pin)):
        with pytest.raises(NotLocked):
            call(each)
    assert pair.cache.num_locked == 0
    pair.cache.check()


# Clear and figures.


def test_clear_gives_every_page_back_unless_one_is_locked() -> None:
    pair = stored(4, "abcd", "abxy", "q")
    pair.look_up(spell("ab", 4))
    assert pair.do("clear")[0] is PagesLocked
    pair.give_back()
    pair.must("clear")
    assert (pair.cache.num_cached, pair.pool.num_used) == (0, 0)
    pair.must("clear")
    pair.store(spell("ab", 4))
    assert len(pair.pages_of(spell("abc", 4))) == 2


def test_stats_count_what_happened() -> None:
    pair = stored(4, "abc", "abd")
    for text in ("abc", "ab", "zz", ""):
        pair.look_up([*spell(text, 4), 1, 2])
    pair.must("evict", 1)
    while pair.matches:
        pair.give_back()
    pair.must("evict", 1)
    pair.must("clear")
    stats = pair.cache.stats()
    assert (stats.lookups, stats.tokens, stats.pages) == (4, 36, 7)
    assert (stats.hit_tokens, stats.hit_pages, stats.inserted_pages) == (20, 5, 4)


# Batches.


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("policy", ["lru", "fifo", "mru", "lfu", "slru"])
def test_a_batch_is_its_prompts_one_after_the_other(policy: str, page_size: int) -> None:
    prompts = [spell(text, page_size) for text in ("abcd", "", "abx", "abcd", "zz", "abcq", "q")]
    prompts[4] = prompts[4][:-1]
    spaces = [None, None, None, "other", "other", None, "unknown"]
    one, two = (stored(page_size, "abcd", "abxy", "q", policy=policy) for _ in range(2))
    for pair in (one, two):
        pair.store(spell("abcd", page_size), "other")
    indptr = np.cumsum([0, *map(len, prompts)])
    batch = one.cache.match_batch([token for each in prompts for token in each], indptr, spaces)
    singles = [two.cache.match(*each) for each in zip(prompts, spaces, strict=True)]
    assert (batch.num_tokens.dtype, batch.indptr.dtype) == (np.int64, np.int32)
    for i, single in enumerate(singles):
        assert batch.num_tokens[i] == single.num_tokens
        pages = batch.pages[batch.indptr[i] : batch.indptr[i + 1]]
        assert pages.tolist() == single.pages.tolist()
        partial = (batch.partial_pages[i], batch.partial_tokens[i])
        assert partial == (single.partial_page, single.partial_tokens)
    assert one.cache.stats() == two.cache.stats()
    assert one.cache.num_locked == two.cache.num_locked
    one.cache.check()
    one.cache.release(batch)
    for single in singles:
        two.cache.release(single)
    with pytest.raises(NotLocked):
        one.cache.release(batch)
    while two.cache.num_cached:
        assert one.cache.evict(1) == two.cache.evict(1) == 1
        one.cache.check()
        assert one.pool.arrays.refcount.tolist() == two.pool.arrays.refcount.tolist()


def test_an_empty_batch() -> None:
    cache = stored(4, "ab").cache
    batch = cache.match_batch([], [0])
    assert (batch.num_tokens.size, batch.indptr.tolist(), batch.pages.size) == (0, [0], 0)
    cache.release(batch)
    cache.check()


# Interruptions.


class Interrupted:
    """A kernel behind which Ctrl-C arrives."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def run(self, *args: Any) -> None:
        assert self.kernel.run(*args) >= 0
        raise KeyboardInterrupt


def test_an_interrupted_match_leaves_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = stored(4, "abc")
    for name, call in (
        ("prefix_match_cpu", lambda: pair.cache.match(spell("abc", 4))),
        ("prefix_pin_cpu", lambda: pair.cache.pin(spell("ab", 4))),
        ("prefix_match_batch_cpu", lambda: pair.cache.match_batch(spell("abc", 4), [0, 12])),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(prefix, name, Interrupted(getattr(prefix, name)))
            with pytest.raises(KeyboardInterrupt):
                call()
        assert (pair.cache.num_locked, pair.cache.num_pinned) == (0, 0)
        pair.cache.check()


@pytest.mark.skipif(JIT_DISABLED, reason="a plain Python kernel can be interrupted half-way")
def test_an_interrupted_cache_is_neither_locked_nor_broken(kernels: Path) -> None:
    interrupt_often(
        kernels,
        """
pool = jitalloc.PagePool(64, 4)
cache = jitalloc.PrefixCache(pool, policy="slru")
tokens = list(range(40))
""",
        """
with cache.match(tokens[: random.randrange(40)]):
    pass
with cache.pin(tokens[:9]):
    pass
if pool.available >= 10:
    pages = pool.alloc(10)
    cache.insert(tokens, pages, random.randrange(3))
    pool.free(pages)
cache.evict(random.randrange(9))
""",
        """
cache.check()
pool.check()
if cache.num_locked or pool.num_used > cache.num_cached:
    pool = jitalloc.PagePool(64, 4)
    cache = jitalloc.PrefixCache(pool)
""",
    )
