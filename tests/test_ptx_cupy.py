"""The stand-in for CuPy on the PTX machine: memory that has to live, streams that work late."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jitalloc.gpu import kernel as _cuda
from tests.ptx import cupy, streams
from tests.ptx.faults import MachineError
from tests.ptx.machine import Program
from tests.ptx.settings import settings
from tests.ptx.streams import CUDARuntimeError
from tests.ptx_texts import text

pytestmark = pytest.mark.skipif(_cuda.SIMULATED, reason="the machine is compiled by Numba")

WORDS_OF_AN_ARRAY = 7
# Adds the scalar to each of 32 numbers.
ADD = """
    ld.param.u64 %d1, [scalar];
    mad.wide.u32 %d2, %r0, 8, %d0;
    ld.global.u64 %d3, [%d2];
    add.s64 %d3, %d3, %d1;
    st.global.u64 [%d2], %d3;
"""


@pytest.fixture(params=["order", "random"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each way in which streams do their work."""
    monkeypatch.setattr(settings, "mode", request.param)
    monkeypatch.setattr(settings, "watch", ())
    yield str(request.param)
    streams.finish()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Streams do nothing before they have to."""
    monkeypatch.setattr(settings, "mode", "random")
    monkeypatch.setattr(streams._random, "random", lambda: 1.0)
    yield
    streams.finish()


def start(array: Any, number: int = 1, stream: Any = None, size: int | None = None) -> None:
    """Launch a kernel that adds a number to each element, as `CupyDevice` would."""
    kernel = text(ADD).replace(".param .u64 array", array_parameters())
    function = cupy._Function(Program("add", kernel), [True, False])
    cupy._functions.append(function)
    count = array.size if size is None else size
    words = [0, 0, count, 8, array.data.ptr, count, 8, number]
    room = (ctypes.c_int64 * len(words))(*words)
    first = ctypes.addressof(room)
    table = (ctypes.c_void_p * len(words))(*(first + 8 * n for n in range(len(words))))
    handle = cupy.FIRST_HANDLE + len(cupy._functions) - 1
    where = (stream or cupy.cuda.get_current_stream()).ptr
    cupy.cuda.driver.launchKernel(handle, 1, 1, 1, 32, 1, 1, 0, where, ctypes.addressof(table), 0)


def array_parameters() -> str:
    names = [f"a{n}" for n in range(WORDS_OF_AN_ARRAY)]
    names[4] = "array"
    return ", ".join(f".param .u64 {name}" for name in names)


# Memory.


def test_new_memory_is_garbage() -> None:
    found = cupy.empty(4096, np.uint8).get()
    assert len(set(found.tolist())) == 256


def test_a_kernel_changes_an_array(mode: str) -> None:
    array = cupy.asarray(np.arange(32))
    start(array, 5)
    assert array.tolist() == list(range(5, 37))


@pytest.mark.parametrize("size", [33, 1 << 40])
def test_an_array_that_lies_in_no_memory(size: int) -> None:
    array = cupy.zeros(32, np.int64)
    with pytest.raises(cupy.CUDADriverError, match="ILLEGAL_ADDRESS"):
        start(array, size=size)
    with pytest.raises(cupy.CUDADriverError, match="ILLEGAL_ADDRESS"):
        start(cupy.ndarray(np.zeros(32, np.int64), None))  # of the host


def test_an_array_shorter_than_what_is_touched() -> None:
    array = cupy.zeros(40, np.int64)
    start(array[:32])

    def wrong() -> None:
        start(array[:31])
        streams.finish()

    with pytest.raises(MachineError, match="out of bounds"):
        wrong()


def test_numpy_does_not_see_through() -> None:
    array = cupy.zeros(3, np.int64)
    for wrong in (
        lambda: np.asarray(array),
        lambda: array + np.zeros(3),
        lambda: array.__setitem__(slice(None), np.zeros(3)),
    ):
        with pytest.raises((TypeError, ValueError), match=r"Implicit|Unsupported|non-scalar"):
            wrong()


def test_arrays_behave_like_those_of_numpy() -> None:
    host = np.arange(12).reshape(3, 4)
    array = cupy.asarray(host)
    assert array[1].tolist() == host[1].tolist()
    assert int(array[2, 3]) == 11
    assert array[:, 1:3].tolist() == host[:, 1:3].tolist()
    assert bool((array[1:] == array[1:].copy()).all())
    assert (5 - array).tolist() == (5 - host).tolist()
    assert array.view(np.int32).shape == (3, 8)
    first = array[0, 0]
    array[0, 0] = 7
    assert int(first) == 7  # a view, as CuPy's
    array += 1
    assert int(first) == 8
    assert cupy.concatenate([array[0], array[1]]).tolist() == [8, 2, 3, 4, 5, 6, 7, 8]
    assert cupy.ascontiguousarray(array[:, 0]).tolist() == [8, 5, 9]
    assert (str(array[1]), len(array)) == ("[5 6 7 8]", 3)
    chosen = cupy.asarray(np.array([2, 0]))
    assert array[chosen].tolist() == [[9, 10, 11, 12], [8, 2, 3, 4]]


def test_an_array_of_another_library_shares_its_memory(mode: str) -> None:
    class Other:
        def __init__(self, values: Any) -> None:
            self.values = values
            self.__cuda_array_interface__ = values.__cuda_array_interface__

    array = cupy.asarray(np.arange(40))
    other = cupy.asarray(Other(array[4:36]))
    start(other, 10)
    assert array.tolist() == [*range(4), *range(14, 46), *range(36, 40)]
    assert cupy.from_dlpack(array) is array
    strided = cupy.asarray(Other(array[::2]))
    assert strided.tolist() == array.tolist()[::2]
    assert cupy.asarray(Other(array[:0])).size == 0


# Streams.


def test_a_stream_does_its_work_when_somebody_waits(late: None) -> None:
    array = cupy.zeros(32, np.int64)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        start(array)
    assert array.tolist() == [0] * 32  # of the default stream, which waits for nothing
    stream.synchronize()
    assert array.tolist() == [1] * 32
    with stream:
        start(array)
        assert array.tolist() == [2] * 32  # the same stream: in order
        start(array)
    cupy.cuda.Device().synchronize()
    assert array.tolist() == [3] * 32


def test_blocking_streams_are_ordered_with_the_default_one(late: None) -> None:
    array = cupy.zeros(32, np.int64)
    with cupy.cuda.Stream():
        array += 1
    array *= 2
    with cupy.cuda.Stream():
        array += 5
        assert array.tolist() == [7] * 32


def test_an_event_orders_two_streams(late: None) -> None:
    array = cupy.zeros(32, np.int64)
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    with first:
        array += 1
        event = first.record()
        array += 10
    with second:
        second.wait_event(event)
        array *= 5
        assert array.tolist() == [5] * 32
    assert event.done
    first.synchronize()
    assert array.tolist() == [15] * 32


def test_an_event_is_done_at_last(late: None) -> None:
    array = cupy.zeros(32, np.int64)
    stream = cupy.cuda.Stream(non_blocking=True)
    event = cupy.cuda.Event(disable_timing=True)
    with stream:
        array += 1
        array += 1
        event.record()
    looks = 0
    while not event.done:
        looks += 1
    assert 0 < looks < 3
    with pytest.raises(CUDARuntimeError, match="never recorded"):
        cupy.cuda.Event().synchronize()


def test_pinned_memory_is_read_when_the_stream_comes_to_it(late: None) -> None:
    pinned = cupy.cuda.alloc_pinned_memory(16)
    host = np.frombuffer(pinned, np.int64, 2)
    array, other = cupy.zeros(2, np.int64), cupy.zeros(2, np.int64)
    host[:] = [1, 2]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        array.data.copy_from_host_async(host.ctypes.data, host.nbytes)
    runtime = cupy.cuda.runtime
    kind = runtime.memcpyHostToDevice
    runtime.memcpyAsync(other.data.ptr, pinned.ptr, 16, kind, stream.ptr)
    host[:] = [3, 4]  # too early
    stream.synchronize()
    assert (array.tolist(), other.tolist()) == ([3, 4], [3, 4])


def test_work_keeps_its_memory(late: None) -> None:
    """A temporary array may go before the stream has come to the launch that reads it."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        array = cupy.zeros(32, np.int64)
        start(array)
        start(cupy.zeros(32, np.int64))
        gc.collect()
        assert array.tolist() == [1] * 32


# Graphs.


def test_a_capture_runs_nothing_and_its_graph_all(mode: str) -> None:
    array, stream = cupy.zeros(32, np.int64), cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        assert stream.is_capturing()
        start(array, 2)
        array += 1
        array[0] = 100
        array[1:2].data.memset_async(0, 8)
        graph = stream.end_capture()
        assert array.tolist() == [0] * 32
        for _ in range(2):
            graph.launch(stream)
        assert array.tolist() == [100, 0, *[6] * 30]


def test_memory_of_a_capture_that_is_gone_when_the_graph_runs(mode: str) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        kept = cupy.zeros(32, np.int64)
        stream.begin_capture()
        start(kept)
        start(cupy.empty(32, np.int64))
        graph = stream.end_capture()
        gc.collect()
        again = [cupy.zeros(32, np.int64) for _ in range(4)]  # maybe at the same address
        assert len(again) == 4

        def launch() -> None:
            graph.launch(stream)
            stream.synchronize()

        with pytest.raises(CUDARuntimeError, match="freed after its capture"):
            launch()


def test_what_waits_is_refused_in_a_capture() -> None:
    array, stream = cupy.zeros(4, np.int64), cupy.cuda.Stream(non_blocking=True)
    waits = [
        array.get,
        array.tolist,
        lambda: cupy.asarray([1]),
        lambda: array.set(np.zeros(4)),
        stream.synchronize,
        lambda: cupy.cuda.Device().synchronize(),
        lambda: cupy.cuda.function.Module().load(b""),
        lambda: array + 1,
        stream.begin_capture,
    ]
    with stream:
        stream.begin_capture()
        for each in waits:
            with pytest.raises(CUDARuntimeError):
                each()
        stream.end_capture()
        with pytest.raises(CUDARuntimeError, match="not captured"):
            stream.end_capture()
    with pytest.raises(CUDARuntimeError):
        cupy.cuda.Stream(null=True).begin_capture()


def test_a_launch_that_the_driver_refuses() -> None:
    array = cupy.zeros(32, np.int64)
    start(array)
    call = cupy.cuda.driver.launchKernel
    handle = cupy.FIRST_HANDLE + len(cupy._functions) - 1
    with pytest.raises(cupy.CUDADriverError, match="one dimension"):
        call(handle, 1, 2, 1, 32, 1, 1, 0, 0, 0, 0)
    module = cupy.cuda.function.Module()
    module.load(b".visible .entry other()\0")
    with pytest.raises(cupy.CUDADriverError, match="NOT_FOUND"):
        module.get_function("test")
    with pytest.raises(CUDARuntimeError):
        cupy.cuda.Device(1)
