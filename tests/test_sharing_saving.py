"""Snapshots and files of sequences with a prefix cache: taken over or refused as a whole."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from jitalloc import PagedKVCache, PagePool, PrefixCache
from jitalloc.errors import InvalidArgument, NotLocked, SnapshotError
from jitalloc.prefix.state import HASH_MASK, NUM_CACHED, PAGES, POLICY
from jitalloc.sequences import state
from jitalloc.snapshot import read_state, write_state
from tests.oracle_prefix import PREFIX_POLICIES
from tests.prefix_pairs import cached
from tests.sharing_pairs import SharingPair, random_turn, sharing_state

NAMES = ("ä\n'\"", b"b\0", -1.5, ("t", (2, b"x"), ()), -7)


def used(policy: str = "lru", **options: Any) -> SharingPair:
    """Sequences that share and lock pages, namespaces of all kinds, and pages that nobody locks."""
    if policy == "slru":  # what is locked must not be demoted: see test_sharing_locks.py
        options["protected_share"] = 1.0
    pair = SharingPair(policy=policy, num_pages=40, max_sequences=16, order="fifo", **options)
    random = Random(policy)
    for _ in range(60):
        random_turn(pair, random)
    pair.call("free", pair.held())
    for seq_id in list(pair.cache_model.ids):
        pair.must("free", seq_id)
    for i, name in enumerate(NAMES):
        pair.must("allocate", name, tokens=range(i, i + 6), namespace=name)
        pair.must("commit", name)
    pair.must("fork", NAMES[0], "fork")
    pair.must("append", "fork", tokens=[7, 8, 9])
    pair.must("free", NAMES[1])
    pair.must("apply_window", NAMES[2], 1)
    return pair


def take(pair: SharingPair, cache: PagedKVCache) -> None:
    """Let the pair go on with another cache."""
    assert cache.prefix_cache is not None
    pair.cache, pair.prefix, pair.pool = cache, cache.prefix_cache, cache.pool
    pair.sides = [(cache, pair.cache_model)]
    pair.agree()


@pytest.mark.parametrize("policy", PREFIX_POLICIES)
def test_a_loaded_cache_goes_on_as_the_saved_one(tmp_path: Path, policy: str) -> None:
    pair = used(policy, eviction="longest")
    locked = pair.prefix.num_locked
    assert locked
    pair.cache.save(tmp_path / "state")
    loaded = PagedKVCache.load(tmp_path / "state")
    assert loaded.prefix_cache is not None
    assert loaded.prefix_cache.policy == policy
    assert loaded.prefix_cache._options() == pair.prefix._options()
    assert loaded.prefix_cache.num_locked == locked
    names = loaded.prefix_cache._namespaces.numbers
    assert names == pair.prefix._namespaces.numbers
    assert [*map(type, names)] == [*map(type, pair.prefix._namespaces.numbers)]
    take(pair, loaded)
    for i, name in enumerate(NAMES):
        assert pair.must("allocate", (name, 2), tokens=range(i, i + 6), namespace=name) == 4
    random = Random(3)
    for _ in range(100):
        random_turn(pair, random)
    pair.call("free", pair.held())
    pair.do("clear")
    pair.compare(pair.prefix.clear, pair.prefix_model.clear)
    assert pair.pool.num_used == 0


@pytest.mark.parametrize("policy", PREFIX_POLICIES)
def test_matches_and_pins_are_void_in_what_was_restored(policy: str) -> None:
    pair = used(policy)
    state = sharing_state(pair.cache), {key: at[:2] for key, at in cached(pair.prefix).items()}
    tokens = range(3, 9)
    match, pinned = pair.prefix.match(tokens, NAMES[3]), pair.prefix.pin(tokens, NAMES[3])
    snapshot = pair.cache.snapshot()
    pair.prefix.unpin(pinned)
    pair.cache.clear()
    pair.prefix.release(match)
    late = pair.prefix.match(tokens, NAMES[3])
    pair.prefix.evict(40)
    pair.cache.restore(snapshot)
    assert state == (
        sharing_state(pair.cache),
        {key: at[:2] for key, at in cached(pair.prefix).items()},
    )
    assert pair.prefix.num_pinned == 0
    with pytest.raises(NotLocked):
        pair.prefix.release(late)
    pair.cache.check()
    pair.cache.clear()
    pair.prefix.clear()
    assert pair.pool.num_used == 0


def test_a_snapshot_goes_to_another_cache_of_the_same_sizes() -> None:
    pair = used()
    pool = PagePool(40, 4, order="fifo")
    other = PagedKVCache(pool, 16, 8, prefix_cache=PrefixCache(pool))
    other.allocate("own", tokens=range(20))
    other.commit("own")
    other.restore(pair.cache.snapshot())
    take(pair, other)


def test_a_snapshot_fits_caches_of_its_kind_only() -> None:
    pair, plain = used(), PagedKVCache(PagePool(40, 4, order="fifo"), 16, 8)
    plain.allocate("own", 4)
    before = sharing_state(pair.cache), cached(pair.prefix)
    with pytest.raises(InvalidArgument, match="no prefix cache"):
        plain.restore(pair.cache.snapshot())
    with pytest.raises(InvalidArgument, match="no prefix cache"):
        pair.cache.restore(plain.snapshot())
    pool = PagePool(40, 4, order="fifo")
    other = PagedKVCache(pool, 16, 8, prefix_cache=PrefixCache(pool, policy="lfu"))
    with pytest.raises(InvalidArgument, match="snapshot"):
        other.restore(pair.cache.snapshot())
    with pytest.raises(InvalidArgument, match="lock"):
        pair.prefix.restore(pair.prefix.snapshot())
    assert (sharing_state(pair.cache), cached(pair.prefix)) == before
    plain.check(held=[])
    other.check(held=[])


def test_a_prefix_cache_is_restored_once_nobody_locks_it() -> None:
    pair = used()
    pair.must("clear")
    pair.prefix.restore(pair.prefix.snapshot())
    pair.agree()
    pair.must("allocate", "a", tokens=range(3, 9), namespace=NAMES[3])
    assert pair.prefix.num_locked


@pytest.mark.parametrize("namespace", [object(), float("nan"), ("a", frozenset())])
def test_namespaces_that_a_file_cannot_hold_are_refused(tmp_path: Path, namespace: Any) -> None:
    pair = used()
    pair.must("allocate", "odd", tokens=range(4), namespace=namespace)
    with pytest.raises(SnapshotError, match="cannot be saved"):
        pair.cache.save(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_truncated_and_damaged_files_are_refused_or_harmless(tmp_path: Path) -> None:
    pair, path = used(), tmp_path / "state"
    pair.cache.save(path)
    whole, before = path.read_bytes(), (sharing_state(pair.cache), cached(pair.prefix))
    for length in {0, 1, len(whole) - 1, *range(0, len(whole), len(whole) // 40)}:
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match="state"):
            PagedKVCache.load(path)
    refused = 0
    for place in range(7, len(whole), len(whole) // 150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            loaded = PagedKVCache.load(path)
        except SnapshotError:
            refused += 1
        else:  # a time stamp of the archive, or the like
            assert loaded.prefix_cache is not None
            assert (sharing_state(loaded), cached(loaded.prefix_cache)) == before
    assert refused > 100


def test_a_file_without_a_prefix_cache_is_read_as_before(tmp_path: Path) -> None:
    cache = PagedKVCache(PagePool(8, 4), 2, 4)
    cache.allocate("a", tokens=range(6), namespace="n")
    cache.save(tmp_path / "state")
    loaded = PagedKVCache.load(tmp_path / "state")
    assert loaded.prefix_cache is None
    assert loaded.append("a", tokens=[1]).slots.tolist() == [6]


# Files whose checksum is right and whose contents are not.


def rewrite(pair: SharingPair, path: Path, edit: Any) -> None:
    pair.cache.save(path)
    facts, arrays = read_state(path, "PagedKVCache", ("pool", "tables"), ("prefix",))
    for name in ("format", "version", "kind"):
        del facts[name]
    arrays = {name: array.copy() for name, array in arrays.items()}
    edit(facts, arrays)
    write_state(path, "PagedKVCache", facts, arrays)


def no_prefix(facts: Any, arrays: Any) -> None:
    del facts["prefix"], arrays["prefix"]


def option(name: str, value: Any) -> Any:
    return lambda facts, _arrays: facts["prefix"].update({name: value})


def header(slot: int, change: int) -> Any:
    def edit(_facts: Any, arrays: Any) -> None:
        arrays["prefix"][slot] += change

    return edit


def column(number: int, value: int) -> Any:
    """Another number in a column of the first row that locks anything."""

    def edit(_facts: Any, arrays: Any) -> None:
        columns = state.table_arrays(arrays["tables"]).columns
        columns[number, columns[state.LOCKED].argmax()] = value

    return edit


UNSOUND: dict[str, Any] = {
    "locks and no prefix cache": no_prefix,
    "an array too short": lambda _facts, arrays: arrays.update(prefix=arrays["prefix"][:-1]),
    "an array of floats": lambda _facts, arrays: arrays.update(prefix=arrays["prefix"] * 1.0),
    "an empty array": lambda _facts, arrays: arrays.update(prefix=arrays["prefix"][:0]),
    "an array missing": lambda _facts, arrays: arrays.pop("prefix"),
    "facts missing": lambda facts, _arrays: facts.pop("prefix"),
    "no facts": lambda facts, _arrays: facts.update(prefix={}),
    "facts of text": lambda facts, _arrays: facts.update(prefix="lru"),
    "an unknown policy": option("policy", "best"),
    "another policy": option("policy", "lfu"),
    "an unknown option": option("magic", 1),
    "a share of text": option("protected_share", "x"),
    "namespaces of text": option("namespaces", "x"),
    "a namespace that is code": option("namespaces", [["open('x')", 3]]),
    "a namespace unhashable": option("namespaces", [["[]", 3]]),
    "other sizes": header(PAGES, 1),
    "another policy in the array": header(POLICY, 1),
    "more pages than there are": header(NUM_CACHED, 1),
    "another mask": header(HASH_MASK, -1),
    "a path that ends outside": column(state.LOCK_END, 10**6),
    "a path that ends below": column(state.LOCK_END, -5),
    "a path that ends nowhere": column(state.LOCK_END, 39),
    "a path too long": column(state.LOCKED, 7),
    "a path too short": column(state.LOCKED, 2**40),
    "a path of less than nothing": column(state.LOCKED, -1),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_a_sound_file_of_an_unsound_state_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "unsound"
    rewrite(used(), path, UNSOUND[kind])
    with pytest.raises(SnapshotError, match="unsound"):
        PagedKVCache.load(path)
