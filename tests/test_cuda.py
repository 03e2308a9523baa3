"""The pool on the GPU as its callers see it: arrays, late errors, and nothing that waits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import jitalloc
from jitalloc import NULL, DoubleFree, InvalidArgument, OutOfPages, PagePool, WrongDevice, _cuda
from jitalloc.cuda import CudaPagePool
from tests.pairs import pool_state

# Set NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 to run them.
pytestmark = pytest.mark.skipif(not _cuda.SIMULATED, reason="NUMBA_ENABLE_CUDASIM is not set")


@pytest.fixture(autouse=True)
def threads_take_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def pool() -> Any:
    """Eight pages of four tokens on the GPU."""
    return PagePool(8, 4, device="cuda")


def up(values: Any, dtype: Any = np.int64) -> Any:
    return _cuda.device().upload(np.array(values, dtype))


def ids(*pages: int) -> Any:
    return up(pages, np.int32)


# The class.


def test_the_device_chooses_the_class(pool: Any) -> None:
    assert type(pool) is CudaPagePool
    assert isinstance(pool, PagePool)
    assert (pool.device, PagePool(4).device, type(PagePool(4))) == ("cuda", "cpu", PagePool)
    assert "device='cuda'" in repr(pool)


def test_a_class_of_the_callers_own_stays_on_its_device() -> None:
    class Mine(PagePool):
        pass

    assert type(Mine(4)) is Mine
    with pytest.raises(WrongDevice, match="'cpu' only"):
        Mine(4, device="cuda")
    with pytest.raises(WrongDevice, match="'cuda' only"):
        CudaPagePool(4)


@pytest.mark.parametrize("call", [lambda p: p.resize(9), lambda p: p.defragment()])
def test_what_a_gpu_does_not_do_is_refused(pool: Any, call: Callable[[Any], Any]) -> None:
    with pytest.raises(WrongDevice, match="needs a pool on the 'cpu'"):
        call(pool)
    with pytest.raises(WrongDevice, match="free_group"):
        pool.free_group()


def test_caches_stay_on_the_cpu(pool: Any) -> None:
    with pytest.raises(WrongDevice, match="PagedKVCache"):
        jitalloc.PagedKVCache(pool, 4, 4)
    with pytest.raises(WrongDevice, match="PrefixCache"):
        jitalloc.PrefixCache(pool)


# Arrays.


@pytest.mark.parametrize("values", [np.zeros(1, np.int32), [0], (0,), 0, None])
def test_host_memory_is_refused(pool: Any, values: Any) -> None:
    pool.alloc(1)
    for call in (pool.free, pool.share, pool.refcount, pool.free_slots, pool.admit):
        with pytest.raises(WrongDevice):
            call(values)
    if values is not None:
        with pytest.raises(WrongDevice):
            pool.alloc(1, out=values)
    assert pool.num_used == 1


def test_dtypes_and_shapes_are_exact(pool: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be int32"):
        pool.free(up([0]))
    with pytest.raises(InvalidArgument, match="one dimension"):
        pool.free(up([[0]], np.int32))
    with pytest.raises(InvalidArgument, match="exactly 2"):
        pool.alloc(2, out=ids(0, 0, 0))
    with pytest.raises(InvalidArgument, match="one-dimensional array of int32"):
        pool.alloc(1, out=up([0]))
    with pytest.raises(InvalidArgument, match="2 elements"):
        pool.alloc_decode(up([1, 1]), up([-1]))


def test_arrays_that_are_not_contiguous_are_read(pool: Any) -> None:
    pool.alloc(6)
    assert pool.free(ids(0, 7, 2, 7, 4)[::2]).tolist() == [3]
    pool.check(held=[1, 3, 5])


def test_results_go_into_buffers_of_the_caller(pool: Any) -> None:
    out = ids(5, 5, 5)
    assert pool.alloc(3, out=out) is out
    indptr, pages = pool.alloc_batch(up([1, 2]), indptr=ids(9, 9, 9), out=ids(7, 7, 7, 7))
    assert (out.tolist(), indptr.tolist(), pages.tolist()) == ([0, 1, 2], [0, 1, 3], [3, 4, 5, -1])
    slots = pool.alloc_extend(up([0]), up([3]), up([-1]), out=up([7] * 5))
    assert slots.tolist() == [24, 25, 26, -1, -1]
    assert pool.alloc_decode(up([4]), slots[2:3], out=slots[2:3]).tolist() == [27]


def test_without_a_buffer_results_have_their_size(pool: Any) -> None:
    assert pool.alloc_batch(up([1, 2])).pages.tolist() == [0, 1, 2]
    slots = pool.alloc_extend(up([0, 0]), up([5, 1]), up([-1, -1]))
    assert slots.tolist() == [12, 13, 14, 15, 16, 20]
    assert pool.try_alloc(3) is None
    assert pool.try_alloc(2).tolist() == [6, 7]


# Errors come late.


def test_a_buffer_too_short_is_an_error(pool: Any) -> None:
    pool.alloc_extend(up([0]), up([3]), up([-1]), out=up([7, 7]))
    with pytest.raises(InvalidArgument, match=r"out = 2: the call makes 3"):
        pool.check()
    _indptr, pages = pool.alloc_batch(up([3]), out=ids(7, 7))
    assert pages.tolist() == [NULL, NULL]
    with pytest.raises(InvalidArgument, match=r"out = 2: the call makes 3"):
        pool.check()
    assert pool.num_used == 0


def test_the_first_failure_is_kept_until_somebody_waits(pool: Any) -> None:
    pages = pool.alloc(3)
    assert pool.free(ids(0, 1, 0)).tolist() == [NULL]
    assert pool.alloc(6).tolist() == [NULL] * 6
    assert pool.alloc(1).tolist() == [3]  # calls go on
    with pytest.raises(DoubleFree) as caught:
        _ = pool.num_free
    assert (caught.value.position, caught.value.value) == (2, 0)
    assert caught.value.__notes__ == ["raised late: it is call 1 of the pool (free)"]
    assert pool.num_free == 4
    pool.check(held=[*pages.tolist(), 3])


@pytest.mark.parametrize(
    "wait",
    [
        lambda p: p.num_free,
        lambda p: p.num_released,
        lambda p: p.num_used,
        lambda p: p.available,
        lambda p: p.utilization,
        lambda p: p.step,
        lambda p: p.stats(),
        lambda p: p.check(),
        lambda p: p.snapshot(),
        lambda p: p.try_alloc(1),
        lambda p: repr(p),
    ],
)
def test_every_call_that_waits_raises_it(pool: Any, wait: Callable[[Any], Any]) -> None:
    pool.alloc(7)
    pool.alloc(2)
    with pytest.raises(OutOfPages) as caught:
        wait(pool)
    assert (caught.value.requested, caught.value.available) == (2, 1)
    wait(pool)


def test_more_pages_than_the_pool_has_are_refused_at_once(pool: Any) -> None:
    with pytest.raises(OutOfPages):
        pool.alloc(9)
    with pytest.raises(InvalidArgument):
        pool.alloc(-1)


def test_a_batch_that_names_a_page_often(pool: Any) -> None:
    """Across tiles of a block, and within one: the last mention counts for the order."""
    for order in ("fifo", "lifo", "sorted"):
        gpu, cpu = (PagePool(40, 4, order=order, device=where) for where in ("cuda", "cpu"))
        gpu.alloc(30)
        cpu.alloc(30)
        for _ in range(2):
            gpu.share(up(np.arange(30), np.int32))
            cpu.share(np.arange(30, dtype=np.int32))
        pages = np.random.default_rng(5).permutation(np.repeat(np.arange(30), 3)).astype(np.int32)
        for wrong in (np.append(pages, pages[3]), np.insert(pages, 61, pages[0])):
            with pytest.raises(DoubleFree) as right:
                cpu.free(wrong)
            assert gpu.free(up(wrong, np.int32)).tolist() == [NULL]
            with pytest.raises(DoubleFree) as caught:
                gpu.check()
            assert (caught.value.position, caught.value.value) == (
                right.value.position,
                right.value.value,
            )
        assert gpu.free(up(pages, np.int32)).tolist() == [cpu.free(pages)]
        assert gpu.alloc(35).tolist() == cpu.alloc(35).tolist()


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
@pytest.mark.parametrize("wrong", [[4, 2], [2], [6], [4, 6, 4], [4, 8], [-1, 4], [4, 4], [2, 2, 4]])
def test_a_free_that_fails_leaves_everything(order: str, wrong: list[int]) -> None:
    """With pages that are released, free, held once, held twice, and none of the pool."""
    gpu, cpu = (PagePool(8, 4, order=order, device=where) for where in ("cuda", "cpu"))
    for each, array in ((gpu, ids), (cpu, lambda *pages: np.array(pages, np.int32))):
        each.alloc(6)
        each.share(array(5))
        each.free(array(1, 2))
    assert gpu.free(ids(0, 5, *wrong)).tolist() == [NULL]
    with pytest.raises(DoubleFree if 8 not in wrong and -1 not in wrong else jitalloc.InvalidPage):
        gpu.check()
    gpu.check(held=[0, 3, 4, 5, 5])
    assert gpu.alloc(4).tolist() == cpu.alloc(4).tolist()


def test_a_count_of_owners_that_would_overflow(pool: Any) -> None:
    pool.alloc(1)
    pool.arrays.refcount[0] = 2**31 - 3
    pool.share(ids(0, 0, 0))
    with pytest.raises(jitalloc.InvalidPage) as caught:
        pool.check()
    assert caught.value.position == 2
    assert pool.refcount(ids(0)).tolist() == [2**31 - 3]


# Whole states.


def test_a_state_moves_between_devices(pool: Any, tmp_path: Any) -> None:
    pool.free(pool.alloc(5)[1:3])
    cpu = PagePool(2)
    cpu.restore(pool.snapshot())
    assert pool_state(cpu)["released"] == [1, 2]
    pool.save(tmp_path / "pool.npz")
    again = CudaPagePool.load(tmp_path / "pool.npz")
    assert again.alloc(5).tolist() == cpu.alloc(5).tolist() == [1, 2, 5, 6, 7]
    pool.restore(cpu.snapshot())
    assert (pool.num_free, pool.stats()) == (0, cpu.stats())


def test_a_state_that_is_broken_shows(pool: Any) -> None:
    pool.alloc(2)
    pool.arrays.refcount[1] = 0
    with pytest.raises(jitalloc.CorruptState, match="page 1"):
        pool.check()
    pool.arrays.refcount[1] = 1
    with pytest.raises(jitalloc.CorruptState, match="refcount of page 0"):
        pool.check(held=ids(1))


# Nothing waits.


class Recorded(_cuda.SimulatedArray):
    """An array that tells when its contents are asked for."""

    seen: list[str] = []  # noqa: RUF012

    def _note(self, what: str) -> None:
        self.seen.append(what)

    def __int__(self) -> int:
        self._note("int")
        return int(np.asarray(self).item())

    __index__ = __int__

    def __bool__(self) -> bool:
        self._note("bool")
        return bool(np.asarray(self))

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if not isinstance(found, np.ndarray):
            self._note("getitem")
        return found

    def __iter__(self) -> Any:
        self._note("iter")
        return iter(np.asarray(self))

    def item(self, *args: Any) -> Any:
        self._note("item")
        return super().item(*args)

    def tolist(self) -> Any:
        self._note("tolist")
        return super().tolist()

    def get(self) -> Any:
        self._note("get")
        return np.asarray(self)


class RecordingDevice(_cuda.SimulatedDevice):
    """Notes what waits for the device, and how often kernels start."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.starts: list[str] = []
        Recorded.seen = self.waits

    def empty(self, size: int, dtype: Any) -> Any:
        return super().empty(size, dtype).view(Recorded)

    def upload(self, values: Any) -> Any:
        self.waits.append("upload")  # from memory that is not pinned
        return super().upload(values).view(Recorded)

    def download(self, values: Any) -> Any:
        self.waits.append("download")
        return super().download(values)

    def wrap(self, values: Any) -> Any:
        return super().wrap(values.view(_cuda.SimulatedArray))

    def launch(self, kernel: Any, blocks: int, threads: int, *arrays: Any) -> None:
        self.starts.append(kernel.name)
        super().launch(kernel, blocks, threads, *arrays)


# What waits by its docstring: the calls that return numbers, or results of a size not yet known.
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "alloc": lambda p, at: p.alloc(2),
    "alloc, contiguous": lambda p, at: p.alloc(2, contiguous=True),
    "alloc with a merge": lambda p, at: p.alloc(6),
    "alloc that fails": lambda p, at: p.alloc(8),
    "alloc_batch": lambda p, at: p.alloc_batch(at["counts"], out=at["pages"]),
    "admit": lambda p, at: p.admit(at["counts"]),
    "merge": lambda p, at: p.merge(),
    "share": lambda p, at: p.share(at["held"]),
    "free": lambda p, at: p.free(at["held"]),
    "free that fails": lambda p, at: p.free(at["pages"]),
    "free_slots": lambda p, at: p.free_slots(at["slots"]),
    "refcount": lambda p, at: p.refcount(at["held"]),
    "alloc_extend": lambda p, at: p.alloc_extend(
        at["zero"], at["slots"], at["null"], out=at["out"]
    ),
    "alloc_decode": lambda p, at: p.alloc_decode(at["one"], at["null"]),
    "clear": lambda p, at: p.clear(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_one_launch_and_waits_for_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.cuda.pool.device", lambda: gpu)
    pool: Any = PagePool(8, 4, device="cuda")
    pool.free(pool.alloc(5)[3:])
    at = {
        "counts": gpu.upload(np.array([1, 0, 2])),
        "pages": gpu.upload(np.array([7, 7, 7], np.int32)),
        "held": gpu.upload(np.array([0, 2], np.int32)),
        "slots": gpu.upload(np.array([3, 5, 4])),
        "zero": gpu.upload(np.zeros(3, np.int64)),
        "one": gpu.upload(np.ones(3, np.int64)),
        "null": gpu.upload(np.full(3, -1)),
        "out": gpu.upload(np.zeros(16, np.int64)),
    }
    gpu.waits.clear()
    gpu.starts.clear()
    CALLS[name](pool, at)
    assert gpu.waits == []
    assert len(gpu.starts) == 1


def test_the_recorder_sees_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.cuda.pool.device", lambda: gpu)
    pool: Any = PagePool(8, 4, device="cuda")
    for look in (lambda: pool.num_free, pool.stats, lambda: int(pool.alloc(1)[0])):
        gpu.waits.clear()
        look()
        assert gpu.waits


def test_every_call_that_starts_a_kernel_is_recorded() -> None:
    launched = {name.partition(",")[0].partition(" ")[0] for name in CALLS}
    mine = {name for name, each in vars(CudaPagePool).items() if callable(each) and name[0] != "_"}
    waits = {"try_alloc", "stats", "check", "snapshot", "load"}
    assert mine - waits - {"resize", "defragment", "free_group"} == launched
