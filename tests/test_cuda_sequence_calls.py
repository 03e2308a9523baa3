"""Sequences on the GPU as their callers see them: arrays, late errors, whole states, no waits.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_sequence_calls.py

Skipped without these two, unless there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    NULL,
    CorruptState,
    InvalidArgument,
    OutOfPages,
    PagedKVCache,
    PagePool,
    PrefixCache,
    SequenceTooLong,
    WrongDevice,
)
from jitalloc.cuda import CudaPagedKVCache
from jitalloc.gpu import device as _cuda_device
from jitalloc.sequences.launcher_cuda import SequenceLauncher
from tests.cuda_cache_pairs import Both
from tests.gpu import ON_DEVICE, recorded
from tests.recording import RecordingDevice

pytestmark = ON_DEVICE


def small(prefix: Callable[[Any], Any] = lambda pool: None) -> Any:
    """Sequences "a" with 6 tokens and "b" with 3, on 10 pages of 4."""
    pool = PagePool(10, 4, device="cuda")
    cache = PagedKVCache(pool, 4, 8, prefix_cache=prefix(pool))
    cache.allocate("a", 6)
    cache.allocate("b", 3)
    return cache


def up(values: Any, dtype: Any = np.int64) -> Any:
    return _cuda_device.device().upload(np.array(values, dtype))


def test_the_device_of_the_pool_chooses_the_class() -> None:
    cache = small()
    assert type(cache) is CudaPagedKVCache
    assert isinstance(cache, PagedKVCache)
    assert (cache.device, type(PagedKVCache(PagePool(4), 1, 1))) == ("cuda", PagedKVCache)
    assert "CudaPagedKVCache(max_sequences=4" in repr(cache)


@pytest.mark.parametrize("values", [np.zeros(1, np.int32), [0], (0,), 0, None])
def test_host_memory_is_refused(values: Any) -> None:
    cache = small()
    row, buffer = cache.rows(["a"]), 0 if values is None else values
    for call in (
        lambda: cache.append_batch(values),
        lambda: cache.fork_batch(values, row),
        lambda: cache.fork_batch(row, values),
        lambda: cache.reorder(row, values),
        lambda: cache.free_batch(values),
        lambda: cache.truncate_batch(values, 1),
        lambda: cache.commit_batch(values, 1),
        lambda: cache.commit_batch(row, np.array([1])),
        lambda: cache.commit_batch(row, out=buffer),
        lambda: cache.truncate_batch(row, drop=np.array([1])),
        lambda: cache.apply_window_batch(values, 1),
        lambda: cache.free_batch(row, out=buffer),
        lambda: cache.append_batch(row, 1, tokens=buffer),
        lambda: cache.append_batch(row, out=buffer),
        lambda: cache.append_batch(row, copies=buffer),
        lambda: cache.allocate("x", tokens=buffer),
        lambda: cache.append_batch(row, [1]),
    ):
        with pytest.raises(WrongDevice):
            call()
    assert cache.stats().tokens == 9


def test_dtypes_and_shapes_are_exact() -> None:
    cache = small()
    row = cache.rows(["a"])
    for argument, call in {
        "rows": lambda: cache.append_batch(up([0])),
        "n": lambda: cache.append_batch(row, up([1], np.int16)),
        "tokens": lambda: cache.append_batch(row, 1, tokens=up([1])),
        "out": lambda: cache.append_batch(row, 1, out=up([1], np.int32)),
        "dtype": lambda: cache.append_batch(row, 1, dtype=np.int32),
        "copies": lambda: cache.append_batch(row, 1, copies=up([[1, 1], [1, 1]], np.int32)),
        "parents": lambda: cache.reorder(row, up([[0]], np.int32)),
        "num_tokens": lambda: cache.truncate_batch(row, up([1, 2])),
        "drop": lambda: cache.truncate_batch(row, drop=up([1], np.uint64)),
    }.items():
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert caught.value.argument == argument
    assert cache.stats().tokens == 9


def test_without_a_buffer_results_have_their_size() -> None:
    cache = small()
    rows = cache.rows(["b", "a"])
    slots, copies = cache.append_batch(rows, up([2, 3]))
    assert slots.tolist() == [11, 12, 6, 7, 16]
    assert [each.tolist() for each in copies] == [[NULL, NULL]] * 2
    assert cache.append_batch(rows, 2).slots.tolist() == [13, 14, 17, 18]
    cache.fork("a", "c")
    slots, copies = cache.append("c", 1)
    assert (slots.tolist(), [each.tolist() for each in copies]) == ([23], [[4], [5]])
    assert [each.tolist() for each in cache.append("c").copies] == [[], []]
    with pytest.raises(InvalidArgument):
        cache.append_batch(rows, up([1, -1]))
    assert cache.sequence("c").pages.tolist() == [0, 1, 5, 6]


def test_a_buffer_too_short_is_an_error() -> None:
    prefixes: tuple[Callable[[Any], Any], ...] = (lambda pool: None, PrefixCache)
    for prefix in prefixes:
        cache = small(prefix)
        rows = cache.rows(["a", "b"])
        slots, copies = cache.append_batch(rows, 2, out=up([7, 7, 7]))
        assert slots.tolist() == [NULL] * 3
        assert copies.src.tolist() == [NULL] * 2
        with pytest.raises(InvalidArgument, match=r"out = 3: the call makes 4"):
            cache.check()
        cache.append_batch(rows, up([30, 30]), out=up([7, 7, 7]))  # SequenceTooLong goes first
        cache.append_batch(rows, 2, out=up([7, 7, 7]))
        with pytest.raises(SequenceTooLong):
            cache.check()
        cache.append_batch(rows, up([26, 29]), out=up([7, 7, 7]))  # so does more than all pages
        with pytest.raises(OutOfPages):
            cache.check()
        assert cache.stats().tokens == 9


def test_empty_batches() -> None:
    both = Both({"num_pages": 10, "page_size": 4}, 4, 8)
    both.must("append_batch", [], 1)
    both.must("append_batch", [], [])
    both.must("fork_batch", [], [])
    both.must("reorder", [], [])
    both.must("free_batch", [])
    both.must("truncate_batch", [], [])
    both.must("commit_batch", [], [])
    both.must("commit_batch", [])
    both.must("apply_streaming_llm_batch", [], 1, 1)


WAITING: dict[str, Callable[[Any], Any]] = {
    "allocate": lambda c: c.allocate("x", 1),
    "adopt": lambda c: c.adopt("x", up([], np.int32), up([], np.int32)),
    "free": lambda c: c.free("b"),
    "fork": lambda c: c.fork("a", "x"),
    "append": lambda c: c.append("a"),
    "truncate": lambda c: c.truncate("a", 1),
    "commit": lambda c: c.commit("a", 2),
    "evict": lambda c: c.evict(),
    "evict_to": lambda c: c.evict_to(0.0),
    "select": lambda c: c.select_eviction_target(),
    "window": lambda c: c.apply_window("a", 1),
    "sequence": lambda c: c.sequence("a"),
    "stats": lambda c: c.stats(),
    "make_room": lambda c: c.make_room(1),
    "room_for": lambda c: c.room_for(up([0, 1], np.int32)),
    **{name: attrgetter(name) for name in ("num_free", "num_held", "num_reclaimable")},
    "over_threshold": attrgetter("over_threshold"),
    "plan": lambda c: c.plan(up([1], np.int32), [0, 1]),
    "allocate_batch": lambda c: c.allocate_batch(up([1], np.int32), [0, 1], ids=["x"]),
    "clear": lambda c: c.clear(),
    "check": lambda c: c.check(),
    "snapshot": lambda c: c.snapshot(),
    "restore": lambda c: c.restore(SNAPSHOT[0]),
}
SNAPSHOT: list[Any] = []


@pytest.mark.parametrize("name", WAITING)
def test_every_call_that_waits_raises_what_failed_before(name: str) -> None:
    cache = small()
    SNAPSHOT[:] = [cache.snapshot()]
    cache.append_batch(up([0, 0], np.int32))
    before, ids = cache.pool._gpu.download(cache.tables._slab), list(cache.ids)
    with pytest.raises(InvalidArgument, match="named twice") as caught:
        WAITING[name](cache)
    assert all(each in caught.value.__notes__[0] for each in ("raised late", "append_batch"))
    assert (cache.pool._gpu.download(cache.tables._slab) == before).all()
    assert cache.ids == ids
    cache.check(held=[])
    WAITING[name](cache)
    cache.check(held=[])


def test_ids_follow_the_table_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small()
    ask = SequenceLauncher.ask

    def interrupted(*args: Any, **options: Any) -> Any:
        ask(*args, **options)
        raise KeyboardInterrupt

    for call, ids in ((lambda: cache.allocate("c", 3), "abc"), (lambda: cache.free("a"), "bc")):
        monkeypatch.setattr(SequenceLauncher, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call()
        monkeypatch.setattr(SequenceLauncher, "ask", ask)
        assert cache.ids == list(ids)
        cache.check(held=[])


# Whole states.


def test_a_state_moves_between_devices(tmp_path: Any) -> None:
    both = Both({"num_pages": 30, "page_size": 4, "order": "fifo"}, 5, 9, eviction="lfu")
    for seq_id, tokens in (("a", 6), ("b", 3), (("c", 1), 9)):
        both.must("allocate", seq_id, tokens)
    both.must("fork", "a", "d")
    both.must("free", "b")
    snapshot = both.device.snapshot()
    assert (snapshot.tables == both.cpu.snapshot().tables).all()
    both.must("append_batch", [0, 3], 4)
    both.device.restore(snapshot)
    both.cpu.restore(both.cpu.snapshot())
    both.cpu.restore(snapshot)
    both.agree()
    both.must("append_batch", [3, 0], 4)
    both.device.save(tmp_path / "cache.npz")
    again, on_cpu = (
        CudaPagedKVCache.load(tmp_path / "cache.npz"),
        PagedKVCache.load(tmp_path / "cache.npz"),
    )
    assert (again.eviction, again.device, on_cpu.device) == ("lfu", "cuda", "cpu")
    assert (again.ids, type(on_cpu)) == (on_cpu.ids, PagedKVCache)
    assert again.append("a").slots.tolist() == on_cpu.append("a").slots.tolist()
    again.check()


def test_a_state_that_is_broken_shows() -> None:
    cache = small()
    cache.tables.arrays.pages[0, 1] = 9
    with pytest.raises(CorruptState):
        cache.check()
    cache.tables.arrays.pages[0, 1] = 1
    cache.check(held=[])
    with pytest.raises(CorruptState, match="refcount of page 0"):
        cache.check(held=up([0], np.int32))
    cache._ids.rows["x"] = 3
    with pytest.raises(CorruptState, match="rows of the ids"):
        cache.check()


def test_two_caches_on_one_pool() -> None:
    one = small()
    two = PagedKVCache(one.pool, 3, 2)
    two.allocate("a", 3)
    one.free("a")
    for cache in (one, two):
        cache.check(held=[])
    assert one._held_pages().tolist() == [2]
    assert one._roots_in_use().tolist() == [-2] * 4
    assert not one._holds_locks()


# Waits.

NEVER_WAITS: dict[str, Callable[[Any, Any], Any]] = {
    "append_batch": lambda c, at: c.append_batch(at["rows"]),
    "append_batch of many": lambda c, at: c.append_batch(at["rows"], at["n"], out=at["out"]),
    "append_batch into buffers": lambda c, at: c.append_batch(
        at["rows"], tokens=at["tokens"], out=at["out"], copies=at["copies"]
    ),
    "append_batch that fails": lambda c, at: c.append_batch(at["tokens"]),
    "append_batch that copies": lambda c, at: c.append_batch(at["shared"]),
    "append_batch with a merge": lambda c, at: c.append_batch(at["rows"], 12),
    "fork_batch": lambda c, at: c.fork_batch(at["rows"], at["empty"]),
    "fork_batch that fails": lambda c, at: c.fork_batch(at["empty"], at["rows"]),
    "reorder": lambda c, at: c.reorder(at["rows"], at["shared"]),
    "reorder that fails": lambda c, at: c.reorder(at["tokens"], at["rows"]),
    "truncate_batch": lambda c, at: c.truncate_batch(at["rows"], at["n"]),
    "truncate_batch by one number": lambda c, at: c.truncate_batch(at["rows"], drop=1),
    "truncate_batch that fails": lambda c, at: c.truncate_batch(at["empty"], at["n"]),
    "apply_streaming_llm_batch": lambda c, at: c.apply_streaming_llm_batch(at["rows"], 1, 1),
    "apply_window_batch": lambda c, at: c.apply_window_batch(at["rows"], 1, out=at["out"][:2]),
    "commit_batch": lambda c, at: c.commit_batch(at["shared"]),
    "commit_batch into a buffer": lambda c, at: c.commit_batch(at["rows"], 1, out=at["out"][:2]),
    "commit_batch that fails": lambda c, at: c.commit_batch(at["tokens"]),
    "append_batch ahead": lambda c, at: c.append_batch(at["shared"], computed=False),
    "free_batch": lambda c, at: c.free_batch(at["shared"]),
    "free_batch into a buffer": lambda c, at: c.free_batch(at["shared"], out=at["out"][:1]),
    "free_batch that fails": lambda c, at: c.free_batch(at["tokens"]),
    "pin": lambda c, at: c.pin("a"),
    "unpin": lambda c, at: c.unpin("a"),
    "set_priority": lambda c, at: c.set_priority("a", 3),
}


@recorded
@pytest.mark.parametrize("name", NEVER_WAITS)
def test_a_batch_call_is_one_launch_and_waits_for_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: gpu)
    pool: Any = PagePool(12, 4, device="cuda")
    cache: Any = PagedKVCache(pool, 8, 8)
    for seq_id, tokens in (("a", 5), ("b", 6), ("x", 9), ("c", 0), ("d", 0)):
        cache.allocate(seq_id, tokens)
    cache.free("x")
    cache.fork("a", "e")
    cache.append_batch(cache.rows(["a"]))
    cache.append_batch(cache.rows(["a"]), 12)
    cache.truncate("a", 6)
    cache.truncate_batch(cache.rows(["a"]), drop=1)
    cache.reorder(cache.rows(["c", "d"]), cache.rows(["c", "d"]))
    cache.pin("a")
    at = {
        "rows": cache.rows(["a", "b"]),
        "shared": cache.rows(["b", "e"]),
        "empty": cache.rows(["c", "d"]),
        "n": gpu.upload(np.array([1, 7])),
        "tokens": gpu.upload(np.array([5, 6], np.int32)),
        "out": gpu.upload(np.zeros(16, np.int64)),
        "copies": gpu.upload(np.zeros((2, 2), np.int32)),
    }
    gpu.waits.clear()
    gpu.starts.clear()
    NEVER_WAITS[name](cache, at)
    assert gpu.waits == []
    assert len(gpu.starts) == 1


# What a call by id fetches: its answer; the header and the columns that it looks at or chooses by.
FETCHES = {
    "allocate": 1,
    "free": 1,
    "fork": 1,
    "truncate": 1,
    "commit": 1,
    "window": 1,
    "stats": 3,
    "select": 2,
    "evict": 3,
}


@recorded
@pytest.mark.parametrize("name", FETCHES)
def test_a_call_by_id_is_one_launch_and_few_waits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: gpu)
    cache = small()
    cache.free("b")
    cache.allocate("b", 3)
    gpu.waits.clear()
    gpu.starts.clear()
    WAITING[name](cache)
    assert gpu.waits.count("download") == FETCHES[name]
    assert len(gpu.starts) == (name not in ("stats", "select"))
    assert set(gpu.waits) <= {"download", "upload"}


def test_every_call_is_known_to_wait_or_not() -> None:
    mine = {
        name
        for base in CudaPagedKVCache.__mro__
        for name, each in vars(base).items()
        if name[0] != "_" and (callable(each) or isinstance(each, property))
    }
    layouts = {"block_tables", "slot_mapping", "page_table_csr", "seq_lens", "attention_batch"}
    host = {"ids", "row", "rows", "apply_streaming_llm", "mirror"}
    waiting = {*WAITING, "select_eviction_target", "apply_window", "save"} - {"select", "window"}
    assert mine == {name.split()[0] for name in NEVER_WAITS} | layouts | host | waiting
