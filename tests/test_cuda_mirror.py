"""A mirror on the GPU of block tables on the CPU: the same exports, one copy, one launch, no wait.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_mirror.py

Without a GPU and without these two set, the tests are skipped.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    NULL,
    AttentionBatch,
    BlockTableMirror,
    PagedKVCache,
    PagePool,
    PageTableCSR,
)
from jitalloc.cuda import CudaBlockTableMirror
from jitalloc.errors import CorruptState, InvalidArgument, WrongDevice
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda
from jitalloc.sequences.loops.mirror import PART
from jitalloc.sequences.state import LENGTH
from tests.cache_steps import attention_buffers
from tests.cuda_mirror_steps import CUDA_STEPS, MirrorPair, agree, down, up
from tests.gpu import ON_DEVICE, recorded
from tests.recording import RecordingDevice
from tests.test_mirror import OPTIONS

pytestmark = ON_DEVICE
BLOCKS = (4, 32) if _cuda.SIMULATED else (32, 512)
SIMULATOR = pytest.mark.skipif(not _cuda.SIMULATED, reason="stands on the simulator")


def a_cache(num_pages: int = 64, size: int = 4, rows: int = 70, width: int = 8) -> PagedKVCache:
    """Sequences of 5, 0, 8 and 3 tokens in rows 0 to 3."""
    cache = PagedKVCache(PagePool(num_pages, size), rows, width)
    for seq_id, tokens in (("a", 5), ("b", 0), ("c", 8), ("d", 3)):
        cache.allocate(seq_id, tokens)
    return cache


# It follows.


@pytest.mark.parametrize("threads", BLOCKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mirror_follows_whatever_is_called(
    options: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_device.device(), "threads", threads)
    random = Random(f"{options} {threads}")
    pair = MirrorPair(random, 10, **options)
    agree(pair.mirror, pair.cache)
    for _ in range(4 if _cuda.SIMULATED else 20):
        CUDA_STEPS["mirror_apply_cuda"](pair, random)


def test_it_is_made_with_what_is_there_and_tells_what_it_is() -> None:
    cache = a_cache()
    mirror = cache.mirror("cuda")
    assert type(mirror) is CudaBlockTableMirror
    assert isinstance(mirror, BlockTableMirror)
    assert (mirror.device, mirror.refresh()) == ("cuda", 0)
    assert repr(mirror) == f"CudaBlockTableMirror of {cache.tables!r}"
    agree(mirror, cache)
    agree(cache.tables.mirror("cuda"), cache)


def test_a_message_that_outgrows_its_memory() -> None:
    cache = a_cache(5000, 1, 5, 2 * PART)
    mirror = cache.mirror("cuda")
    cache.append_batch([0, 1, 2], [PART + 30, 2 * PART, 3])  # several records of a row
    assert mirror.refresh() == 3
    agree(mirror, cache)
    mirror._anew = True
    assert mirror.refresh() == 5
    agree(mirror, cache)
    cache.free("b")
    cache.append_batch([3], 2 * PART - 3)
    assert mirror.refresh() == 2
    agree(mirror, cache)


@pytest.mark.skipif(_cuda.SIMULATED, reason="takes the simulator half a minute")
def test_a_large_table() -> None:
    """Several blocks, and every word of the bitmap."""
    random, cache = Random(1), PagedKVCache(PagePool(3000, 2), 300, 12)
    mirror = cache.mirror("cuda")
    for turn in range(3):
        for seq_id in random.sample(range(300), 120):
            if seq_id in cache:
                cache.free(seq_id)
            else:
                cache.allocate(seq_id, random.randrange(20))
        rows = cache.rows(cache.ids)
        cache.append_batch(rows, turn)
        mirror.refresh()
        agree(mirror, cache)


# What it costs.


class CopyingDevice(RecordingDevice):
    """Notes copies from pinned memory as well."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[int] = []

    def pinned(self, size: int, dtype: Any) -> Any:
        self.waits.append("pinned")
        return super().pinned(size, dtype)

    def upload_async(self, values: Any, target: Any) -> Any:
        self.copies.append(values.size)
        return super().upload_async(values, target)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CopyingDevice:
    made = CopyingDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: made)
    return made


@recorded
def test_a_refresh_is_one_copy_and_one_launch_and_waits_for_nothing(gpu: CopyingDevice) -> None:
    cache = a_cache()
    mirror = cache.mirror("cuda")
    cache.append_batch([0, 2, 3], 2)
    cache.free("b")
    mirror._copy_of_state()  # the first message has been read: else the second but one waits for it
    for each in (gpu.waits, gpu.starts, gpu.copies):
        each.clear()
    assert mirror.refresh() == 4
    assert (gpu.waits, gpu.starts, gpu.copies) == ([], ["mirror_apply_cuda"], [4 + 4 * 6 + 2])
    assert mirror.refresh() == 0
    assert (gpu.waits, len(gpu.starts), len(gpu.copies)) == ([], 1, 1)


EXPORTS: dict[str, Callable[[Any, Any], Any]] = {
    "block_tables": lambda m, at: m.block_tables(at["rows"], out=at["table"]),
    "slot_mapping": lambda m, at: m.slot_mapping(at["rows"], at["slots"], out=at["slots"]),
    "page_table_csr": lambda m, at: m.page_table_csr(at["rows"], out=at["csr"]),
    "seq_lens": lambda m, at: m.seq_lens(at["rows"], out=at["lengths"]),
    "attention_batch": lambda m, at: m.attention_batch(at["rows"], 1, out=at["attention"]),
}


def buffers() -> dict[str, Any]:
    return {
        "rows": up([2, 0]),
        "table": up(np.zeros((2, 8))),
        "slots": up([1, 2], np.int64),
        "csr": PageTableCSR(up([0] * 3), up([0] * 20), up([0] * 2)),
        "lengths": up([0, 0]),
        "attention": AttentionBatch(
            *(up(each, each.dtype) for each in attention_buffers(2, 3, 20, np.int64))
        ),
    }


@recorded
@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_one_launch_and_waits_for_nothing(gpu: CopyingDevice, name: str) -> None:
    mirror, at = a_cache().mirror("cuda"), buffers()
    gpu.waits.clear()
    gpu.starts.clear()
    EXPORTS[name](mirror, at)
    assert (gpu.waits, len(gpu.starts)) == ([], 1)


# In which order.


class LateDevice(_cuda_device.SimulatedDevice):
    """Does copies and launches in their order, but as late as a GPU may."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Callable[[], Any]] = []
        self.done = 0
        self.waited: list[int] = []

    def upload_async(self, values: Any, target: Any) -> Any:
        copy = super().upload_async
        self.work.append(lambda: copy(values, target))
        return len(self.work)

    def launch(self, *arguments: Any) -> None:
        start = super().launch
        self.work.append(lambda: start(*arguments))

    def wait_for(self, event: Any) -> None:
        self.waited.append(event)
        while self.done < event:
            self.work[self.done]()
            self.done += 1

    def download(self, values: Any) -> Any:
        self.wait_for(len(self.work))
        return super().download(values)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateDevice:
    made = LateDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: made)
    return made


@SIMULATOR
def test_pinned_memory_stays_as_it_is_until_it_was_read(late: LateDevice) -> None:
    cache = a_cache()
    mirror: Any = cache.mirror("cuda")
    read: list[Any] = []
    for turn in range(6):
        cache.append_batch([turn % 4], 3)
        mirror.refresh()
        read.append((mirror.seq_lens(up([0, 1, 2, 3])), cache.seq_lens([0, 1, 2, 3])))
        cache.truncate("c", 1)  # the host is ahead
    assert late.done < len(late.work)
    late.wait_for(len(late.work))
    assert [there.tolist() for there, _ in read] == [here.tolist() for _, here in read]
    mirror.refresh()
    agree(mirror, cache)


@SIMULATOR
def test_two_messages_are_under_way_before_one_waits(late: LateDevice) -> None:
    cache = a_cache()
    mirror = cache.mirror("cuda")
    late.download(up([0]))
    late.waited.clear()
    for _ in range(2):
        cache.append_batch([0])
        mirror.refresh()
    assert max(late.waited) < len(late.work) - 1, "for the copy of one that is under way"
    cache.append_batch([0])
    mirror.refresh()
    assert late.waited[-1] == len(late.work) - 5


@SIMULATOR
def test_a_mirror_that_goes_leaves_no_copy_behind(late: LateDevice) -> None:
    mirror = a_cache().mirror("cuda")
    assert late.done == 0
    del mirror
    assert late.done == 1, "the copy; the launch may come"


def test_the_tables_are_read_under_the_lock_of_the_cache() -> None:
    cache = a_cache()
    mirror: Any = cache.mirror("cuda")
    done = threading.Event()

    def refresh() -> None:
        mirror.refresh()
        done.set()

    with cache.lock:
        threading.Thread(target=refresh, daemon=True).start()
        assert not done.wait(0.2)
    assert done.wait(20)


# What goes wrong.


@pytest.mark.parametrize("failing", ["upload_async", "launch", "empty"])
def test_what_a_call_that_fails_had_to_bring_the_next_one_brings(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = a_cache(5000, 1, 5, 600)
    mirror: Any = cache.mirror("cuda")

    def fails(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    cache.append_batch([0, 3], [1, 500])
    cache.free("c")
    with monkeypatch.context() as patched:
        patched.setattr(_cuda_device.device(), failing, fails)
        with pytest.raises(KeyboardInterrupt):
            mirror.refresh()
    cache.free("a")
    assert mirror.refresh() == 5
    agree(mirror, cache)
    cache.append_batch([3])
    assert mirror.refresh() == 1
    agree(mirror, cache)


def test_the_first_export_that_fails_is_kept_until_somebody_waits() -> None:
    cache = a_cache()
    mirror = cache.mirror("cuda")
    mirror.seq_lens(up([0]))
    assert down(mirror.seq_lens(up([0, 9]))).tolist() == [-1, -1]
    assert down(mirror.seq_lens(up([3, 0]))).tolist() == [3, 5]
    with pytest.raises(InvalidArgument) as caught:
        mirror.check()
    assert (caught.value.argument, caught.value.value, caught.value.position) == ("rows", 9, 1)
    assert caught.value.__notes__ == ["raised late: it is export 1 of the mirror (seq_lens)"]
    mirror.check()


def test_arrays_of_the_host_are_refused() -> None:
    mirror = a_cache().mirror("cuda")
    with pytest.raises(WrongDevice, match="rows"):
        mirror.seq_lens([0])
    with pytest.raises(WrongDevice, match="positions"):
        mirror.slot_mapping(up([0]), np.zeros(1, np.int64))


def test_a_cache_on_the_gpu_needs_no_mirror() -> None:
    cache = PagedKVCache(PagePool(8, device="cuda"), 4, 4)
    for owner in (cache, cache.tables):
        with pytest.raises(WrongDevice, match="live on the GPU themselves"):
            owner.mirror("cuda")


@pytest.mark.parametrize("what", ["taken", "length", "page", "page behind the last"])
def test_check_finds_what_is_broken(what: str) -> None:
    mirror: Any = a_cache().mirror("cuda")
    arrays = mirror._there.arrays
    if what == "taken":
        arrays.taken[1] = 4
        row = 66
    elif what == "length":
        arrays.columns[LENGTH, 2] = 7
        row = 2
    else:
        arrays.pages[0, 1 if what == "page" else 5] = 3
        row = 0
    with pytest.raises(CorruptState, match=f"row {row} of the mirror"):
        mirror.check()


# Graphs.


@pytest.mark.skipif(_cuda.SIMULATED, reason="the simulator has no streams")
def test_exports_in_a_graph_read_what_the_last_refresh_brought() -> None:
    cupy: Any = importlib.import_module("cupy")
    cache, at = a_cache(), buffers()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        mirror = cache.mirror("cuda")
        for export in EXPORTS.values():
            export(mirror, at)
        stream.begin_capture()
        try:
            cache.append_batch([0])
            with pytest.raises(InvalidArgument, match="captured"):
                mirror.refresh()
            mirror.block_tables(at["rows"], out=at["table"])
            mirror.seq_lens(at["rows"], out=at["lengths"])
            mirror.attention_batch(at["rows"], 1, out=at["attention"])
        finally:
            graph = stream.end_capture()
        for turn in range(20):
            cache.append_batch([0])
            cache.free("c")
            cache.allocate("c", turn + 1)  # into the same row
            mirror.refresh()
            graph.launch()
            assert down(at["table"]).tolist() == cache.block_tables([2, 0], width=8).tolist()
            assert down(at["lengths"]).tolist() == cache.seq_lens([2, 0]).tolist()
            expected = cache.attention_batch([2, 0], 1)
            assert down(at["attention"].slots).tolist() == [*expected.slots.tolist(), NULL]
        agree(mirror, cache)


class StreamDevice(CopyingDevice):
    """Notes what goes to which stream."""

    def __init__(self, stream: Any = None) -> None:
        super().__init__()
        self.stream = stream

    def on(self, stream: Any) -> StreamDevice:
        return StreamDevice(stream)


@SIMULATOR
def test_all_calls_go_to_the_stream_of_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cache = StreamDevice(), a_cache()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: plain)
    mirror: Any = cache.mirror("cuda", stream="one")
    assert mirror.stream == "one"
    first = mirror._record._gpu
    for export in EXPORTS.values():
        export(mirror, buffers())
    assert (len(first.copies), len(first.starts)) == (1, 1 + len(EXPORTS))
    mirror.stream = "two"
    cache.append_batch([0])
    mirror.refresh()
    second = mirror._record._gpu
    assert (mirror.stream, len(second.copies), len(second.starts)) == ("two", 1, 1)
    assert (len(first.copies), plain.copies, plain.starts) == (1, [], [])
