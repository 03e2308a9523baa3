"""Streams of a pool on the GPU: its own one, captures, calls that overlap.

CuPy is a stand-in, which notes what goes to which stream.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
    SlotAllocator,
    WrongDevice,
    warmup,
)
from jitalloc.errors import OUT_OF_PAGES, pack_status
from jitalloc.gpu import kernel as _cuda
from jitalloc.gpu.record import FAULT_CALL, FAULT_STATUS, FAULT_WANTED, LOWEST, TICKET
from jitalloc.pool.state import NUM_PAGES
from tests.cupy_stand_in import Cupy, compile_to_text, install

pytestmark = pytest.mark.skipif(_cuda.SIMULATED, reason="the simulator takes the place of CuPy")

ELSEWHERE = 9  # CuPy's current stream, where the pool has one of its own


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cupy:
    compile_to_text(monkeypatch, tmp_path / "cache")
    return install(monkeypatch, gpus=2)


def up(cupy: Cupy, values: Any, dtype: Any = np.int64) -> Any:
    return cupy.kept(np.array(values, dtype))


class Buffers:
    """What calls take and fill."""

    def __init__(self, cupy: Cupy) -> None:
        self.pages, self.strided = up(cupy, [0, 1], np.int32), up(cupy, [0, 9, 1, 9], np.int32)[::2]
        self.lengths, self.slots = up(cupy, [1, 1]), up(cupy, [NULL, NULL])
        self.count, self.starts = up(cupy, [0]), up(cupy, [0, 0, 0], np.int32)


# Each with `out` or without, and the argument that it lacks while a stream is captured.
CALLS: dict[
    str, tuple[Callable[[Any, Buffers], Any], Callable[[Any, Buffers], Any] | None, str]
] = {
    "alloc": (lambda p, b: p.alloc(2, out=b.pages), lambda p, b: p.alloc(2), "out"),
    "alloc_batch": (
        lambda p, b: p.alloc_batch(b.lengths, indptr=b.starts, out=b.pages),
        lambda p, b: p.alloc_batch(b.lengths, out=b.pages),
        "indptr",
    ),
    "alloc_extend": (
        lambda p, b: p.alloc_extend(b.lengths, b.lengths, b.slots, out=b.slots),
        lambda p, b: p.alloc_extend(b.lengths, b.lengths, b.slots),
        "stream",
    ),
    "alloc_decode": (
        lambda p, b: p.alloc_decode(b.lengths, b.slots, out=b.slots),
        lambda p, b: p.alloc_decode(b.lengths, b.slots),
        "out",
    ),
    "free": (lambda p, b: p.free(b.pages, out=b.count), lambda p, b: p.free(b.pages), "out"),
    "free_slots": (
        lambda p, b: p.free_slots(b.slots, out=b.count),
        lambda p, b: p.free_slots(b.slots),
        "out",
    ),
    "merge": (lambda p, b: p.merge(out=b.count), lambda p, b: p.merge(), "out"),
    "admit": (lambda p, b: p.admit(b.lengths, out=b.count), lambda p, b: p.admit(b.lengths), "out"),
    "refcount": (
        lambda p, b: p.refcount(b.pages, out=b.pages),
        lambda p, b: p.refcount(b.pages),
        "out",
    ),
    "share": (lambda p, b: p.share(b.pages), lambda p, b: p.share(b.strided), "pages"),
    "defragment": (
        lambda p, b: p.defragment(src=b.pages, dst=b.pages, out=b.count),
        lambda p, b: p.defragment(src=b.pages, dst=b.pages),
        "out",
    ),
    "clear": (lambda p, b: p.clear(), lambda p, b: p.free_group(), "free_group"),
}
WAITS: dict[str, Callable[[Any], Any]] = {
    "num_free": lambda p: p.num_free,
    "stats": lambda p: p.stats(),
    "check": lambda p: p.check(),
    "resize": lambda p: p.resize(16),
    "try_alloc": lambda p: p.try_alloc(1),
}


def resize(_slab: Any, _record: Any, new: Any) -> None:
    """Do what a kernel does to a pool of which nothing is known."""
    slab = PagePool(int(new[NUM_PAGES]), 4)._slab
    new[: slab.size] = slab


# Captures.


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_captured_call_makes_no_array(name: str, own: bool, cupy: Cupy) -> None:
    """CuPy would take its memory back, and the graph would go on writing there."""
    cupy.stream.ptr = 0 if own else 5
    pool: Any = PagePool(8, 4, device="cuda", stream=5 if own else None)
    buffers = Buffers(cupy)
    warmup("cuda")
    given, makes, argument = CALLS[name]
    cupy.captured = {5}
    cupy.notes.clear()
    given(pool, buffers)
    assert {stream for _what, stream in cupy.notes} == {5}
    assert not {what for what, _stream in cupy.notes} & {"empty", "copy", "upload", "download"}
    cupy.notes.clear()
    with pytest.raises(InvalidArgument, match="captured") as caught:
        makes(pool, buffers)
    assert (caught.value.argument, cupy.notes) == (argument, [])
    cupy.captured = set()
    makes(pool, buffers)


def test_a_group_of_frees_copies_nothing_in_a_capture(cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda", stream=5)
    buffers = Buffers(cupy)
    with pool.free_group():
        cupy.captured = {5}
        with pytest.raises(InvalidArgument, match="pages = 2: cannot be copied while a stream"):
            pool.free(buffers.pages, out=buffers.count)
    assert cupy.launches == []
    cupy.captured = set()
    group = pool.free_group().__enter__()
    pool.free(buffers.pages, out=buffers.count)
    cupy.captured = {5}
    with pytest.raises(InvalidArgument, match="free_group = None: needed while a stream"):
        group.__exit__(None, None, None)


@pytest.mark.parametrize("name", WAITS)
def test_a_captured_stream_is_not_waited_for(name: str, cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda", stream=5)
    words, saved = pool._words, PagePool(4, 2, order="fifo").snapshot()
    warmup("cuda")
    cupy.captured = {5}
    cupy.notes.clear()
    for call in (WAITS[name], lambda pool: pool.restore(saved)):
        with pytest.raises(InvalidArgument, match="stream = 5: captured"):
            call(pool)
    assert cupy.notes == []
    assert pool._words is words
    assert (pool.page_size, pool.order, pool.num_pages) == (4, "sorted", 8), "nothing has changed"


def test_no_kernel_is_loaded_in_a_capture(cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda", stream=5)
    cupy.captured = {5}
    expected = r"stream = 5: captured, and upkeep_clear_cuda is not loaded: call jitalloc.warmup\("
    with pytest.raises(InvalidArgument, match=expected):
        pool.clear()
    assert (cupy.loads, cupy.launches) == ([], [])
    cupy.captured = set()
    warmup(device="cuda")
    cupy.captured = {5}
    pool.clear()
    assert len(cupy.launches) == 1


def test_the_default_stream_is_not_asked(cupy: Cupy) -> None:
    """It cannot be captured, and asking is an error while another stream is. The stand-in says so.

    What a capture of another stream needs, it does not.
    """
    cupy.captured = {5}
    for cupy.stream.ptr in (0, 1):
        pool: Any = PagePool(8, 4, device="cuda")
        assert pool.alloc(2).size == 2
        assert pool.num_free == 8


# A stream of the pool's own.


@pytest.mark.parametrize(
    "given",
    [
        5,
        SimpleNamespace(ptr=5, device_id=0),  # CuPy's
        SimpleNamespace(cuda_stream=5, device_index=0),  # torch's
        SimpleNamespace(__cuda_stream__=lambda: (0, 5)),  # cuda.core's
    ],
)
def test_all_that_a_pool_does_goes_to_its_stream(given: Any, cupy: Cupy) -> None:
    cupy.stream.ptr = ELSEWHERE
    pool: Any = PagePool(8, 4, device="cuda", stream=given)
    assert pool.stream is given
    cupy.runs["upkeep_resize_cuda"] = resize
    buffers = Buffers(cupy)
    for call, makes, _argument in CALLS.values():
        call(pool, buffers)
        makes(pool, buffers)
    with pool.free_group():
        pool.free(buffers.pages)
        pool.free(buffers.pages, out=buffers.count)
    pool.resize(16)
    pool.restore(pool.snapshot())
    for call_that_waits in WAITS.values():
        call_that_waits(pool)
    pool._record[FAULT_STATUS:].host[0] = pack_status(OUT_OF_PAGES, 0)
    with pytest.raises(OutOfPages):
        pool.check()
    wanted = {"empty", "copy", "upload", "download", "memset", "assignment", "wait"}
    assert wanted <= {what for what, _stream in cupy.notes}
    assert {stream for _what, stream in cupy.notes} == {5}


def test_caches_on_a_pool_go_along(cupy: Cupy) -> None:
    cupy.stream.ptr = ELSEWHERE
    pool: Any = PagePool(8, 4, device="cuda", stream=5)
    cache: Any = PagedKVCache(pool, 4, 4)
    rows = up(cupy, [0, 1], np.int32)
    cache.seq_lens(rows)
    cache.append_batch(rows)
    assert {stream for _what, stream in cupy.notes} == {5}


def test_a_stream_can_be_changed(cupy: Cupy) -> None:
    cupy.stream.ptr = ELSEWHERE
    pool: Any = PagePool(8, 4, device="cuda")
    slots: Any = SlotAllocator(64, device="cuda")
    assert pool.stream is slots.stream is None
    for there, ptr in ((5, 5), (6, 6), (None, ELSEWHERE)):
        pool.stream = slots.stream = there
        assert pool.stream is slots.stream is there
        for call in (pool.clear, slots.clear):
            cupy.notes.clear()
            call()
            assert [stream for _what, stream in cupy.notes] == [ptr]
    assert len(cupy.loads) == 2, "kernels are loaded once for all streams"


def test_arrays_of_others_are_waited_for_by_the_pools_stream(cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda", stream=5)
    pages = np.array([1, 2], np.int32)
    cupy.memory.append(pages)
    shown = {"data": (pages.ctypes.data, False), "version": 3, "stream": 7}
    theirs = SimpleNamespace(host=pages, gpu=0, __cuda_array_interface__=shown)
    pool.share(theirs)
    assert pool._gpu._current.waits == ["event of stream 7"]
    cupy.notes.clear()
    pool.share(SimpleNamespace(host=pages, __dlpack_device__=lambda: (2, 0)))
    assert cupy.notes == [("from_dlpack", 5), ("owners_share_cuda", 5)]


def test_no_warning_of_cupy_reaches_the_caller(cupy: Cupy) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        PagePool(8, 4, device="cuda", stream=5).clear()
    assert seen == []


@pytest.mark.parametrize("wrong", [False, -1, 1.5, "5", object(), SimpleNamespace(ptr=None)])
def test_what_is_no_stream_is_refused(wrong: Any, cupy: Cupy) -> None:
    with pytest.raises(InvalidArgument, match="must be a stream of CuPy or torch, its address"):
        PagePool(8, 4, device="cuda", stream=wrong)
    pool: Any = PagePool(8, 4, device="cuda", stream=5)
    with pytest.raises(InvalidArgument, match="stream"):
        pool.stream = wrong
    assert pool.stream == 5


def test_a_stream_of_another_gpu_is_refused(cupy: Cupy) -> None:
    for theirs in (
        SimpleNamespace(ptr=5, device_id=1),
        SimpleNamespace(cuda_stream=5, device_index=1),
    ):
        with pytest.raises(WrongDevice, match="stream of GPU 1"):
            PagePool(8, 4, device="cuda", stream=theirs)
    PagePool(8, 4, device="cuda", stream=SimpleNamespace(ptr=5, device_id=-1))


def test_a_pool_on_the_cpu_has_no_stream() -> None:
    with pytest.raises(InvalidArgument, match="stream = 5: a pool on the 'cpu' has no stream"):
        PagePool(8, stream=5)
    PagePool(8, stream=None)


def test_a_new_pool_is_there_for_every_stream(cupy: Cupy) -> None:
    """All that goes up is waited for: uploads by CuPy are under way when they return."""
    cupy.stream.ptr = 7
    pool: Any = PagePool(8, 4, device="cuda")
    SlotAllocator(64, device="cuda")
    pool.resize(16)
    pool.restore(pool.snapshot())
    cache: Any = PagedKVCache(pool, 4, 4)
    assert cache.tables.max_sequences == 4
    at = [i for i, (what, _stream) in enumerate(cupy.notes) if what == "upload"]
    assert len(at) == 7
    assert [cupy.notes[i + 1] for i in at] == [("wait", 7)] * 7
    assert cupy.notes[-1] == ("wait", 7), "also for memory that is new, and was another's before"


# Calls that overlap.


@pytest.mark.parametrize("word", [TICKET, LOWEST])
def test_calls_that_have_overlapped_are_found(word: int, cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    saved = pool.snapshot()
    pool._record.host[word] = 3
    for look in (lambda: pool.num_free, pool.check, pool.stats, pool.snapshot):
        with pytest.raises(CorruptState, match="overlapped on several streams"):
            look()
    pool.restore(saved)
    pool.check()
    slots: Any = SlotAllocator(64, device="cuda")
    slots._record.host[word] = 3
    with pytest.raises(CorruptState, match="overlapped"):
        slots.check()


def test_a_call_under_way_on_another_stream_is_not_taken_for_that(cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    pool._record.host[TICKET] = 3

    def end() -> None:
        pool._record.host[TICKET] = 0

    cupy.quiet = end
    assert pool.num_free == 8


# The failure, for what runs on the GPU.


def test_the_failure_lies_on_the_gpu(cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    fault = pool.fault
    assert (fault.dtype, fault.shape, fault.tolist()) == (np.int64, (5,), [0] * 5)
    status = pack_status(OUT_OF_PAGES, 3)

    def fail(slab: Any, record: Any, out: Any) -> None:
        record[FAULT_STATUS], record[FAULT_CALL], record[FAULT_WANTED] = status, 7, 8

    cupy.runs["pool_alloc_cuda"] = fail
    cupy.notes.clear()
    pool.alloc(8)
    assert fault.tolist() == pool.fault.tolist() == [status, 7, 0, 0, 8]
    assert "download" not in {what for what, _stream in cupy.notes}
    with pytest.raises(OutOfPages, match="8 pages requested, 3 available") as caught:
        pool.check()
    assert "call 7 of the pool (alloc)" in caught.value.__notes__[0]
    assert fault.tolist() == [0] * 5
    pool.resize(16)
    assert pool.fault.data.ptr == pool._record.data.ptr + 8 * FAULT_STATUS != fault.data.ptr
    slots: Any = SlotAllocator(64, device="cuda")
    assert slots.fault.tolist() == [0] * 5
