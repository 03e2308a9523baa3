"""Snapshots and files: complete states, taken over or refused as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from jitalloc import PagedKVCache, PagePool, PrefixCache
from jitalloc.errors import InvalidArgument, SnapshotError
from jitalloc.pool.state import FREE, ORDER, PAGE_SIZE, STEP
from jitalloc.sequences.state import MAX_PAGES, NUM_ROWS, ROW_PAGE_SIZE
from jitalloc.snapshot import read_state, write_state
from jitalloc.state import LOCK
from tests import cache_steps
from tests.cache_pairs import CachePair, cache_state
from tests.pairs import PoolPair, pool_state
from tests.twin_steps import BACKGROUND


def used_pool(order: str = "sorted", null_page: bool = True) -> PoolPair:
    random, pair = Random(5), PoolPair(70, 3, order, null_page)
    for _ in range(20):
        random.choice(BACKGROUND)(pair, random)
    while pair.pool.available < 15:  # the tests go on from here
        pair.call("free", pair.held()[:10])
    pair.call("free", pair.result("alloc", 2)[:1])
    return pair


def used_cache(order: str = "sorted", eviction: str = "lfu") -> CachePair:
    random, pair = Random(6), CachePair(30, 3, order, True, max_sequences=70, eviction=eviction)
    for _ in range(30):
        random.choice(cache_steps.BACKGROUND)(pair, random)
    for seq_id in ("a", b"b\0", 1.5, False, -7, ("t", (2, b"x"), ()), "ä\n'\""):
        pair.must("allocate", seq_id, 1, priority=4)
    pair.must("pin", "a")
    pair.call("free", pair.result("alloc", 2)[:1])
    return pair


# In memory.


def test_a_restored_pool_goes_on_as_if_nothing_had_happened(order: str) -> None:
    pair = used_pool(order)
    snapshot = pair.pool.snapshot()
    pair.pool.alloc(3)
    pair.pool.clear()
    pair.pool.resize(90)
    pair.pool.restore(snapshot)
    pair.agree()
    for _ in range(10):
        pair.call("alloc", 1)
    pair.pool.restore(snapshot)  # the snapshot is as it was
    assert pool_state(pair.pool)["step"] == int(snapshot.slab[STEP])


def test_a_snapshot_can_go_to_another_pool(order: str) -> None:
    pair = used_pool(order)
    other = PagePool(2, 16)
    other.alloc(1)
    other.restore(pair.pool.snapshot())
    assert pool_state(other) == pool_state(pair.pool)
    assert (other.num_pages, other.page_size, other.order, other.null_page) == (70, 3, order, True)
    other.check(held=pair.held())
    assert other.alloc(1).tolist() == pair.result("alloc", 1)


def test_a_snapshot_does_not_follow_its_pool(pool: PagePool) -> None:
    snapshot = pool.snapshot()
    pool.alloc(2)
    assert snapshot.slab[FREE] == 8
    with pytest.raises(ValueError, match="read-only"):
        snapshot.slab[0] = 1
    assert (snapshot.num_pages, snapshot.page_size) == (8, 4)


def test_a_pool_with_sequences_is_restored_by_their_cache(pool: PagePool) -> None:
    snapshot = pool.snapshot()
    cache = PagedKVCache(pool, 2, 2)
    cache.allocate("a", 3)
    with pytest.raises(InvalidArgument, match="restore"):
        pool.restore(snapshot)
    cache.check(held=[])
    cache.clear()
    pool.restore(snapshot)


def test_a_cache_keeps_its_page_size(pool: PagePool) -> None:
    cache = PagedKVCache(pool, 2, 2)
    for other in (PagePool(8, 8), PagePool(8, 4, null_page=True)):
        with pytest.raises(InvalidArgument, match="snapshot"):
            pool.restore(other.snapshot())
    pool.restore(PagePool(4, 4).snapshot())
    cache.allocate("a", 5)
    cache.check(held=[])


def test_a_restored_cache_goes_on_as_if_nothing_had_happened(order: str) -> None:
    pair = used_cache(order)
    snapshot = pair.cache.snapshot()
    pair.cache.clear()
    pair.cache.allocate("new", 2)
    pair.cache.restore(snapshot)
    pair.agree()
    pair.must("append", "a", 1)
    pair.must("evict")


def test_a_cache_snapshot_can_go_to_another_cache() -> None:
    pair = used_cache()
    other = PagedKVCache(PagePool(4, 3, null_page=True), 70, 8)
    other.restore(pair.cache.snapshot())
    assert cache_state(other) == cache_state(pair.cache)
    other.check(held=pair.held())


@pytest.mark.parametrize("sizes", [(69, 8, 3, True), (70, 9, 3, True), (70, 8, 4, True)])
def test_a_snapshot_of_other_tables_is_refused(sizes: tuple[int, int, int, bool]) -> None:
    rows, width, page_size, null_page = sizes
    other = PagedKVCache(PagePool(30, page_size, null_page=null_page), rows, width)
    other.allocate("mine", 2)
    with pytest.raises(InvalidArgument, match="snapshot"):
        other.restore(used_cache().cache.snapshot())
    other.check(held=[])
    assert other.ids == ["mine"]


def test_a_snapshot_without_the_null_page_is_refused() -> None:
    cache = PagedKVCache(PagePool(30, 3, null_page=True), 4, 4)
    other = PagedKVCache(PagePool(30, 3), 4, 4)
    other.allocate("a", 4)
    with pytest.raises(InvalidArgument, match="snapshot"):
        cache.restore(other.snapshot())
    cache.check(held=[])
    assert len(cache) == 0


def test_a_cache_does_not_restore_under_the_sequences_of_another(pool: PagePool) -> None:
    one, two = PagedKVCache(pool, 2, 2), PagedKVCache(pool, 2, 2)
    snapshot = one.snapshot()
    two.allocate("a", 3)
    with pytest.raises(InvalidArgument, match="snapshot"):
        one.restore(snapshot)
    two.check(held=[])


# Files.


def test_a_loaded_pool_is_the_one_that_was_saved(tmp_path: Path, order: str) -> None:
    pair = used_pool(order)
    pair.pool.save(tmp_path / "state")
    loaded = PagePool.load(str(tmp_path / "state"))
    assert pool_state(loaded) == pool_state(pair.pool)
    assert repr(loaded) == repr(pair.pool)
    loaded.check(held=pair.held())
    assert loaded.alloc(1).tolist() == pair.result("alloc", 1)
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize("eviction", ["lru", "streaming"])
def test_a_loaded_cache_is_the_one_that_was_saved(tmp_path: Path, eviction: str) -> None:
    pair = used_cache("fifo", eviction)
    path = tmp_path / "cache.npz"
    pair.cache.save(path)
    loaded = PagedKVCache.load(path)
    assert cache_state(loaded) == cache_state(pair.cache)
    assert loaded.ids == pair.cache.ids
    assert [type(seq_id) for seq_id in loaded.ids] == [type(seq_id) for seq_id in pair.cache.ids]
    for name in ("eviction", "eviction_threshold", "sink_tokens", "window_tokens"):
        assert getattr(loaded, name) == getattr(pair.cache, name)
    loaded.check(held=pair.held())
    assert loaded.append("a", 3).slots.tolist() == pair.must("append", "a", 3)[0]
    assert loaded.select_eviction_target() == pair.cache.select_eviction_target()


def test_saving_replaces_the_file(tmp_path: Path, pool: PagePool) -> None:
    path = tmp_path / "state"
    path.write_text("something else")
    pool.save(path)
    pool.alloc(2)
    pool.save(path)
    assert PagePool.load(path).num_used == 2


def test_a_failing_save_leaves_the_old_file(
    tmp_path: Path, pool: PagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    pool.save(path)
    before = path.read_bytes()
    pool.alloc(1)

    def no_space(_handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        pool.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state"]


def test_the_file_can_be_read_by_whom_the_umask_lets(tmp_path: Path, pool: PagePool) -> None:
    before = os.umask(0o027)
    try:
        pool.save(tmp_path / "state")
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o640


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PagePool.load(tmp_path / "nowhere")


def test_a_truncated_file_is_refused(tmp_path: Path, pool: PagePool) -> None:
    path = tmp_path / "state"
    pool.save(path)
    whole = path.read_bytes()
    for length in {0, 1, 4, len(whole) - 1, *range(0, len(whole), 61)}:
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match="state"):
            PagePool.load(path)


def test_a_damaged_file_is_refused_or_harmless(tmp_path: Path) -> None:
    pair, path = used_cache(), tmp_path / "state"
    pair.cache.save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            loaded = PagedKVCache.load(path)
        except SnapshotError:
            refused += 1
        else:  # a time stamp of the archive, or the like
            assert cache_state(loaded) == cache_state(pair.cache)
    assert refused > 100


def savez(path: Path, **arrays: Any) -> None:
    with path.open("wb") as file:
        np.savez(file, **{"digest": np.array("x"), "pool": np.arange(3), **arrays})


def save_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.arange(3))


FOREIGN: dict[str, Any] = {
    "text": lambda path: path.write_text("hello"),
    "npy": lambda path: save_array(path),
    "npz": lambda path: savez(path),
    "pickle": lambda path: savez(path, facts=np.array([{}], object)),
    "no json": lambda path: savez(path, facts=np.array("facts")),
    "a list": lambda path: savez(path, facts=np.array("[1]")),
    "format": lambda path: savez(path, facts=np.array('{"format": "x"}')),
}


@pytest.mark.parametrize("kind", sorted(FOREIGN))
@pytest.mark.parametrize("reader", [PagePool, PagedKVCache])
def test_a_foreign_file_is_refused(tmp_path: Path, kind: str, reader: Any) -> None:
    path = tmp_path / "foreign"
    FOREIGN[kind](path)
    with pytest.raises(SnapshotError, match="foreign"):
        reader.load(path)


def test_a_file_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    pair = used_cache()
    pair.pool.save(tmp_path / "pool")
    pair.cache.save(tmp_path / "cache")
    with pytest.raises(SnapshotError, match="PagedKVCache, not a PagePool"):
        PagePool.load(tmp_path / "cache")
    with pytest.raises(SnapshotError, match="PagePool, not a PagedKVCache"):
        PagedKVCache.load(tmp_path / "pool")


def test_another_version_is_refused(
    tmp_path: Path, pool: PagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jitalloc.snapshot.VERSION", 99)
    pool.save(tmp_path / "state")
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match="version 99"):
        PagePool.load(tmp_path / "state")


def rewrite(pair: CachePair, path: Path, edit: Any) -> None:
    """Save the cache, with `edit(facts, pool slab, table slab)` done and the checksum right."""
    pair.cache.save(path)
    facts, arrays = read_state(path, "PagedKVCache", ("pool", "tables"))
    for name in ("format", "version", "kind"):
        del facts[name]
    arrays = {name: array.copy() for name, array in arrays.items()}
    edit(facts, arrays)
    write_state(path, "PagedKVCache", facts, arrays)


UNSOUND: dict[str, Any] = {
    "a free page held": lambda _facts, arrays: arrays["pool"].view(np.int32).put(-3, 9),
    "a pool too short": lambda _facts, arrays: arrays.update(pool=arrays["pool"][:-1]),
    "a pool of floats": lambda _facts, arrays: arrays.update(pool=arrays["pool"] * 1.0),
    "no header": lambda _facts, arrays: arrays.update(pool=arrays["pool"][:5]),
    "an unknown order": lambda _facts, arrays: arrays["pool"].put(ORDER, 3),
    "no page size": lambda _facts, arrays: arrays["pool"].put(PAGE_SIZE, 0),
    "another page size": lambda _facts, arrays: arrays["tables"].put(ROW_PAGE_SIZE, 4),
    "another width": lambda _facts, arrays: arrays["tables"].put(MAX_PAGES, 7),
    "negative rows": lambda _facts, arrays: arrays["tables"].put(NUM_ROWS, -1),
    "tables too short": lambda _facts, arrays: arrays.update(tables=arrays["tables"][:-1]),
    "no tables": lambda _facts, arrays: arrays.update(tables=arrays["tables"][:1]),
    "an array missing": lambda _facts, arrays: arrays.pop("tables"),
    "ids missing": lambda facts, _arrays: facts.pop("ids"),
    "too few ids": lambda facts, _arrays: facts["ids"].pop(),
    "ids that are code": lambda facts, _arrays: facts["ids"].__setitem__(0, "open('x')"),
    "an id twice": lambda facts, _arrays: facts["ids"].__setitem__(0, facts["ids"][1]),
    "an id unhashable": lambda facts, _arrays: facts["ids"].__setitem__(0, "[]"),
    "an unknown policy": lambda facts, _arrays: facts.update(eviction="magic"),
    "a threshold of text": lambda facts, _arrays: facts.update(eviction_threshold="high"),
}


@pytest.mark.parametrize("kind", sorted(UNSOUND))
def test_a_sound_file_of_an_unsound_state_is_refused(tmp_path: Path, kind: str) -> None:
    pair, path = used_cache(), tmp_path / "unsound"
    rewrite(pair, path, UNSOUND[kind])
    with pytest.raises(SnapshotError, match="unsound"):
        PagedKVCache.load(path)


def test_a_saved_lock_does_not_stop_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "locked"
    rewrite(used_cache(), path, lambda _facts, arrays: arrays["pool"].put(LOCK, 1))
    code = f"import jitalloc; jitalloc.PagedKVCache.load({str(path)!r}).allocate('new', 1)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False, text=True
    )
    assert done.returncode == 0 or "SnapshotError" in done.stderr


@pytest.mark.parametrize("seq_id", [object, float("nan"), np.float64(3), ("a", frozenset()), 1j])
def test_ids_that_a_file_cannot_hold_are_refused(tmp_path: Path, seq_id: Any) -> None:
    cache = PagedKVCache(PagePool(4, 4), 2, 2)
    cache.allocate(seq_id, 1)
    with pytest.raises(SnapshotError, match="cannot be saved"):
        cache.save(tmp_path / "state")
    assert os.listdir(tmp_path) == []
    cache.restore(cache.snapshot())  # in memory they can stay
    assert seq_id in cache


A_UUID = UUID("12345678123456781234567812345678")


@pytest.mark.parametrize(
    "name", [A_UUID, np.int64(3), np.uint8(3), ("a", A_UUID), ((np.int32(-5),), True, "{'uuid'}")]
)
def test_ids_of_requests_and_of_numpy_come_back(tmp_path: Path, name: Any) -> None:
    pool = PagePool(8, 2)
    cache = PagedKVCache(pool, 2, 4, prefix_cache=PrefixCache(pool))
    cache.allocate(name, tokens=[1, 2, 3, 4], namespace=name)
    cache.commit(name)
    cache.save(tmp_path / "state")
    again = PagedKVCache.load(tmp_path / "state")
    assert name in again
    assert again.ids == [name]
    assert again.allocate("b", tokens=[1, 2, 3, 4, 5], namespace=name) == 4
