"""Which cached pages sequences lock, by hand: forks, windows, duplicates, restores, threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from random import Random

import numpy as np
import pytest

from jitalloc import PagedKVCache, PagePool, PrefixCache
from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import InvalidArgument
from tests.prefix_pairs import cached
from tests.sharing_pairs import SharingPair

TEXT = list(range(24))  # six pages of four tokens


@pytest.fixture
def cache() -> PagedKVCache:
    """Sixteen pages of four tokens, six rows of eight pages, nothing cached."""
    pool = PagePool(16, 4)
    return PagedKVCache(pool, 6, 8, prefix_cache=PrefixCache(pool))


def free_up(cache: PagedKVCache) -> None:
    """What is said to be reclaimable must be: evicting it frees as many pages."""
    assert cache.prefix_cache is not None
    cache.check()
    promised = cache.num_free + cache.num_reclaimable
    cache.prefix_cache.evict(cache.pool.num_pages)
    assert cache.num_free == promised


@pytest.mark.parametrize("commit_first", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("kept", [24, 20, 18, 5, 4, 1, 0])
def test_a_shorter_fork_locks_what_it_holds(
    cache: PagedKVCache, kept: int, at_once: bool, commit_first: bool
) -> None:
    cache.allocate("a", tokens=TEXT)
    cache.append("a", tokens=[9])  # all before it is computed
    if commit_first:
        cache.commit("a")
    if at_once:
        cache.fork("a", "b", kept)
    else:
        cache.fork("a", "b")
        cache.truncate("b", kept)
    cache.free("a")
    assert cache.prefix_cache is not None
    assert cache.prefix_cache.num_locked == -(-kept // 4)
    free_up(cache)


@pytest.mark.parametrize("commit_first", [False, True])
def test_forks_of_a_fork_lock_what_each_holds(cache: PagedKVCache, commit_first: bool) -> None:
    cache.allocate("a", tokens=TEXT[:10])
    if commit_first:
        cache.commit("a")
    cache.fork("a", "b")
    cache.append("b", tokens=TEXT[10:17])
    cache.fork("b", "c")
    cache.append("c", tokens=TEXT[17:])
    cache.append("c", tokens=[9])
    for seq_id in "cab":
        cache.free(seq_id)
        free_up(cache)


@pytest.mark.parametrize("commit_first", [False, True])
def test_a_fork_cut_by_a_window_locks_what_it_holds(
    cache: PagedKVCache, commit_first: bool
) -> None:
    cache.allocate("a", tokens=TEXT[:8])
    if commit_first:
        cache.commit("a")
    cache.append("a", tokens=TEXT[8:])
    cache.append("a", tokens=[9])
    cache.fork("a", "b")
    cache.apply_streaming_llm("b", 4, 8)
    cache.free("a")
    free_up(cache)


def test_a_fork_of_what_met_a_duplicate_locks_what_it_holds(cache: PagedKVCache) -> None:
    cache.allocate("a", tokens=TEXT[:12])
    cache.append("a", tokens=[9])
    cache.fork("a", "b")
    cache.allocate("first", tokens=TEXT[:4])
    cache.commit("first")
    cache.free("first")
    cache.free("a")
    free_up(cache)


def test_a_namespace_holds_for_tokens_told_later() -> None:
    both = SharingPair()
    both.must("allocate", "a", 8, namespace="one")
    both.must("commit", "a", tokens=TEXT[:8])
    both.must("free", "a")
    assert both.must("allocate", "b", tokens=TEXT[:8]) == 0
    assert both.must("allocate", "c", tokens=TEXT[:8], namespace="one", compute=0) == 8


def test_a_namespace_must_be_hashable_even_if_nothing_is_cached() -> None:
    cache = PagedKVCache(PagePool(4, 4), 2, 4)
    with pytest.raises(InvalidArgument, match="namespace"):
        cache.allocate("a", 1, namespace=[])  # type: ignore[arg-type]
    assert len(cache) == 0


def test_locks_of_protected_pages_survive_a_restore() -> None:
    pool = PagePool(10, 1)
    prefix = PrefixCache(pool, policy="slru", protected_share=0.2)
    cache = PagedKVCache(pool, 4, 8, prefix_cache=prefix)
    cache.allocate("a", tokens=range(5))
    cache.commit("a")
    cache.free("a")
    cache.allocate("a", tokens=range(5))
    prefix.release(prefix.match(range(5)))
    before = cached(prefix)
    cache.restore(cache.snapshot())
    assert cached(prefix) == before


PROTECTED = """
import jitalloc
pool = jitalloc.PagePool(4, 1)
prefix = jitalloc.PrefixCache(pool, policy="slru", protected_share=0.0)
for tokens in ([1, 2], [9]):
    pages = pool.alloc(len(tokens))
    prefix.insert(tokens, pages)
    pool.free(pages)
match = prefix.match([1])
prefix.release(prefix.match([1]))
prefix.release(prefix.match([9]))
prefix.restore(prefix.snapshot())
prefix.check()
"""


def test_a_protected_page_is_restored_unlocked() -> None:
    subprocess.run([sys.executable, "-c", PROTECTED], check=True, timeout=120)


def test_what_stands_in_a_cached_page_is_known_to_forks_too() -> None:
    both = SharingPair()
    both.must("allocate", "a", 10)
    both.must("fork", "a", "b")
    both.must("commit", "a", tokens=TEXT[:8])
    assert both.do("commit", "b", tokens=[0, 1, 9]) == (InvalidArgument, "tokens", 9, 2)
    assert both.must("commit", "b", tokens=TEXT[:4]) == 8


def test_what_a_window_has_cut_is_told_nothing_more() -> None:
    both = SharingPair()
    both.must("allocate", "a", tokens=TEXT)
    both.must("commit", "a")
    both.must("apply_streaming_llm", "a", 4, 4)
    assert both.must("commit", "a", tokens=[*TEXT[:4], *TEXT[20:]]) == 4
    both.must("append", "a", tokens=[1, 2, 3, 4, 5])
    both.must("free", "a")
    assert both.prefix.num_cached == 6


def test_threads_share_one_prefix_cache() -> None:
    pool = PagePool(600, 4)
    prefix = PrefixCache(pool)
    caches = [PagedKVCache(pool, 8, 32, prefix_cache=prefix) for _ in range(2)]
    failures: list[BaseException] = []

    def serve(cache: PagedKVCache, seed: int) -> None:
        random = Random(seed)
        try:
            for i in range(20 if JIT_DISABLED else 400):
                tokens = np.repeat(random.choices(range(3), k=12), 4)[: random.randrange(49)]
                cache.allocate(i, tokens=tokens)
                cache.commit(i)
                cache.append(i, tokens=[5])
                cache.free(i)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=serve, args=(each, i)) for i, each in enumerate(caches)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    for cache in caches:
        cache.check()
    prefix.check()
    pool.check(held=[])
