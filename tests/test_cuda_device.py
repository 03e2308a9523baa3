"""How kernels reach a GPU, without one: words of a launch, arrays of others, several GPUs.

CuPy is a stand-in here, and what would be compiled is text. `test_cupy_stand_in.py` holds it to
CuPy.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import jitalloc
from jitalloc import InvalidArgument, PagedKVCache, PagePool, WrongDevice, cli
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu import kernel as _cuda
from jitalloc.gpu.record import RECORD_SLOTS
from jitalloc.pool.loops.owners import owners_free_cpu
from jitalloc.pool.loops.pool import pool_alloc_cpu
from jitalloc.pool.loops.tokens import tokens_decode_cpu
from tests.cupy_stand_in import Cupy, compile_to_text, install

pytestmark = pytest.mark.skipif(_cuda.SIMULATED, reason="the simulator takes the place of CuPy")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was compiled: kernels as text, in a folder of the test's own."""
    return compile_to_text(monkeypatch, tmp_path / "cache")


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Cupy:
    return install(monkeypatch)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Cupy:
    return install(monkeypatch, gpus=2)


def up(cupy: Cupy, values: Any, dtype: Any = np.int64) -> Any:
    return cupy.asarray(np.array(values, dtype))


# Launches.


def test_a_launch_hands_over_its_arrays_in_order(cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    seq, last, out = up(cupy, [1, 2, 5]), up(cupy, [-1, 0, 3]), up(cupy, [7, 7, 7])
    cupy.stream.ptr = 3
    assert pool.alloc_decode(seq, last, out=out) is out
    (launch,) = cupy.launches
    assert launch[:4] == ("tokens_decode_cuda", (1, 1, 1), (32, 1, 1), 3)
    wanted = [pool._words[RECORD_SLOTS:], pool._record, seq, last, out]
    arrays = launch.arguments[:-1]
    assert [each.ctypes.data for each in arrays] == [each.data.ptr for each in wanted]
    assert [each.nbytes for each in arrays] == [each.nbytes for each in wanted]
    assert launch.arguments[-1] == 1, "lengths of 64 bits"


def test_the_pool_works_where_launches_run(cupy: Cupy) -> None:
    cupy.runs = {
        "pool_alloc_cuda": lambda slab, record, out: pool_alloc_cpu.run(slab, out),
        "owners_free_cuda": lambda slab, record, pages, out, group: out.fill(
            owners_free_cpu.run(slab, pages)
        ),
        "tokens_decode_cuda": lambda slab, record, lengths, last, out, wide: tokens_decode_cpu.run(
            slab, lengths.view(np.int64), last, out
        ),
    }
    pool, cpu = PagePool(8, 4, device="cuda"), PagePool(8, 4)
    pages: Any = pool.alloc(5)
    assert pages.tolist() == cpu.alloc(5).tolist()
    assert pool.free(pages[1:3]).tolist() == [cpu.free(np.array([1, 2], np.int32))]  # type: ignore[attr-defined]
    slots = pool.alloc_decode(up(cupy, [2, 5]), up(cupy, [0, 15]))
    assert slots.tolist() == cpu.alloc_decode([2, 5], [0, 15]).tolist()
    assert (pool._slab.host == cpu._slab).all()
    pool.check([0, 3, 4, 5])


def test_numbers_are_words_as_well(cupy: Cupy) -> None:
    @_cuda.cuda_kernel("void(int64, int32[::1], int64)", twin=None)
    def numbers_cuda(first, array, last):  # type: ignore[no-untyped-def]
        pass

    try:
        gpu: Any = _cuda_device.device()
        array = up(cupy, [5, 6, 7], np.int32)
        gpu.launch(numbers_cuda, 3, 64, -(2**62), gpu.wrap(array), 9)
    finally:
        del _cuda._kernels["numbers_cuda"]
    (launch,) = cupy.launches
    assert (launch.grid, launch.block) == ((3, 1, 1), (64, 1, 1))
    assert (launch.arguments[0], launch.arguments[2]) == (-(2**62), 9)
    assert launch.arguments[1].tolist() == [5, 6, 7]


def test_too_many_or_too_few_words_are_refused(cupy: Cupy) -> None:
    gpu: Any = _cuda_device.device()
    share = _cuda.cuda_kernels()["owners_share_cuda"]
    with pytest.raises(TypeError, match="takes 168 bytes of parameters, not 112"):
        gpu.launch(share, 1, 1, gpu.wrap(gpu.empty(1, np.int64)), gpu.wrap(gpu.empty(1, np.int64)))
    assert cupy.launches == []


def test_many_elements_take_many_blocks(cupy: Cupy) -> None:
    pool: Any = PagePool(1_000_000, order="fifo", device="cuda")
    for n, blocks in ((0, 1), (1, 1), (2_048, 1), (2_049, 2), (1_000_000, 489)):
        pool.alloc(n)
        assert cupy.launches[-1].grid == (blocks, 1, 1)
    big: Any = PagePool(2_000_000, order="fifo", device="cuda")
    big.alloc(2_000_000)
    assert cupy.launches[-1].grid == (512, 1, 1)


def test_arrays_without_elements_are_handed_over(cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    assert pool.alloc_decode(up(cupy, []), up(cupy, [])).size == 0
    assert [each.size for each in cupy.launches[0].arguments[2:5]] == [0, 0, 0]


def test_parameters_of_a_launch_within_a_launch_are_kept_apart(cupy: Cupy) -> None:
    """Python may run a finalizer between any two steps, and that may free pages on the GPU."""
    pool: Any = PagePool(8, 4, device="cuda")
    first, second = up(cupy, [0], np.int32), up(cupy, [1], np.int32)
    stream, within = cupy.cuda.get_current_stream, []

    def free_another(number: int) -> Any:
        if not within:
            within.append(True)
            pool.free(second)
        return stream(number)

    pool.free(first)
    pool._gpu._current_stream = free_another
    pool.free(first)
    assert [each.arguments[2].tolist() for each in cupy.launches] == [[0], [1], [0]]


def test_each_thread_gets_a_context_once(cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda")

    def merge_twice() -> None:
        pool.merge()
        pool.merge()

    for _ in range(2):
        thread = threading.Thread(target=merge_twice)
        thread.start()
        thread.join()
    assert (cupy.bound, len(cupy.launches)) == (2, 4)


def test_threads_that_start_together_load_a_kernel_once(
    cupy: Cupy, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    at_once = threading.Barrier(8)
    quick = _cuda_images._compile

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return quick(*arguments)

    monkeypatch.setattr(_cuda_images, "_compile", slow)

    def merge() -> None:
        at_once.wait()
        pool.merge()

    threads = [threading.Thread(target=merge) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (len(cupy.launches), cupy.loads) == (8, [("pool_merge_cuda", 0)])
    assert compiled == ["pool_merge_cuda"]


# Arrays of others.


class Foreign:
    """An array on a GPU, of a library that speaks the CUDA array interface."""

    def __init__(self, host: Any, gpu: int = 0, stream: int | None = None) -> None:
        self.host, self.gpu = host, gpu
        data = (host.ctypes.data, False)
        self.__cuda_array_interface__ = {"data": data, "version": 3, "stream": stream}


class Tensor:
    """An array that speaks DLPack."""

    def __init__(self, host: Any, kind: int = 2, gpu: int = 0) -> None:
        self.host, self._where = host, (kind, gpu)

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("the library that takes it calls this")

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._where


@pytest.mark.parametrize("make", [Foreign, Tensor, lambda host: Tensor(host, kind=13)])
def test_arrays_of_other_libraries_are_taken_without_a_copy(cupy: Cupy, make: Any) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    pages = np.array([1, 2], np.int32)
    cupy.memory.append(pages)
    pool.share(make(pages))
    assert cupy.launches[0].arguments[2].ctypes.data == pages.ctypes.data


@pytest.mark.parametrize(("theirs", "ours", "waits"), [(5, 0, 1), (1, 0, 0), (5, 5, 0), (2, 5, 1)])
def test_a_stream_is_waited_for_on_the_gpu(cupy: Cupy, theirs: int, ours: int, waits: int) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    pages = np.array([1, 2], np.int32)
    cupy.memory.append(pages)
    cupy.stream.ptr = ours
    pool.share(Foreign(pages, stream=theirs))
    assert cupy.stream.waits == [f"event of stream {theirs}"] * waits
    assert cupy.launches[0].arguments[2].ctypes.data == pages.ctypes.data


@pytest.mark.parametrize("wrong", [np.zeros(1, np.int32), np.int32(0), [0], 0, None])
def test_host_memory_is_refused(cupy: Cupy, wrong: Any) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    with pytest.raises(WrongDevice, match="pages"):
        pool.share(wrong)
    with pytest.raises(WrongDevice, match="pages"):
        pool.share(Tensor(np.zeros(1, np.int32), kind=1))


def test_dtypes_are_exact(cupy: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    with pytest.raises(InvalidArgument, match="must be int32"):
        pool.share(up(cupy, [0]))


# Several GPUs.


def test_a_pool_stays_on_the_gpu_that_was_current(two: Cupy) -> None:
    pools = {}
    for two.current in (0, 1):
        pools[two.current] = PagePool(8, 4, device="cuda")
        pools[two.current].merge()
    assert two.loads == [("pool_merge_cuda", 0), ("pool_merge_cuda", 1)]
    assert [pools[number]._gpu.number for number in (0, 1)] == [0, 1]  # type: ignore[attr-defined]
    for call in (pools[0].merge, lambda: pools[0].num_free, pools[0].check, pools[0].clear):
        with pytest.raises(WrongDevice, match=r"within cupy.cuda.Device\(0\)"):
            call()
    two.current = 0
    pools[0].merge()
    assert len(two.launches) == 3


def test_an_array_of_another_gpu_is_refused(two: Cupy) -> None:
    pool: Any = PagePool(8, 4, device="cuda")
    two.current = 1
    theirs = up(two, [0], np.int32)
    two.current = 0
    for wrong in (theirs, Foreign(theirs.host, gpu=1), Tensor(theirs.host, gpu=1)):
        with pytest.raises(WrongDevice, match="array of GPU 1"):
            pool.share(wrong)


def test_images_are_for_the_gpu_that_they_are_loaded_on(two: Cupy) -> None:
    for two.current in (0, 1):
        pool: Any = PagePool(8, 4, device="cuda")
        pool.merge()
    folders = sorted(path.name for path in Path(_cuda_images.cache_folder()).iterdir())
    assert ["-sm_120-" in folders[0], "-sm_90-" in folders[1]] == [True, True]


# Where no GPU can be used.


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(WrongDevice, match=r"jitalloc\[cuda12\] or jitalloc\[cuda13\]"):
        PagePool(8, device="cuda")
    with pytest.raises(WrongDevice, match=r"jitalloc\[cuda12\]"):
        jitalloc.warmup("cuda")


def test_without_the_compiler(cupy: Cupy, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise importlib.metadata.PackageNotFoundError("numba-cuda")

    monkeypatch.setattr(_cuda_device, "compiler_versions", missing)
    with pytest.raises(WrongDevice, match=r"jitalloc\[cuda12\].*numba-cuda"):
        PagePool(8, device="cuda")


@pytest.mark.parametrize(
    ("driver", "advice"),
    [
        (0, "no driver of NVIDIA is installed"),
        (11_080, "the driver supports CUDA 11.8; 12.0 is the least"),
        (12_040, r"CUDA 12.4; jitalloc\[cuda12\] fits it"),
        (13_010, r"CUDA 13.1; jitalloc\[cuda13\] fits it"),
        (14_000, r"CUDA 14.0; jitalloc\[cuda13\] fits it"),
    ],
)
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, driver: int, advice: str) -> None:
    install(monkeypatch, gpus=0, driver=driver)
    with pytest.raises(WrongDevice, match=f"cudaErrorNoDevice.*{advice}"):
        PagePool(8, device="cuda")


def test_a_driver_that_does_not_load_the_kernel(cupy: Cupy, compiled: list[str]) -> None:
    pool: Any = PagePool(8, device="cuda")
    cupy.refused = {"pool_merge_cuda"}
    with pytest.raises(WrongDevice, match=r"UNSUPPORTED_PTX_VERSION.*CUDA 12.9.*cuda12"):
        pool.merge()
    cupy.refused = set()
    pool.merge()
    assert len(cupy.launches) == 1


# All kernels at once.


def test_warmup_compiles_and_loads_all(cupy: Cupy, compiled: list[str]) -> None:
    names = sorted(_cuda.cuda_kernels())
    assert jitalloc.warmup(device="cuda") == len(names)
    assert sorted(compiled) == names
    assert sorted(name for name, _gpu in cupy.loads) == names
    assert jitalloc.warmup("cuda") == len(names) == len(cupy.loads)
    with pytest.raises(WrongDevice, match="'cpu' or 'cuda'"):
        jitalloc.warmup("tpu")
    with pytest.raises(WrongDevice, match="'cpu' or 'cuda'"):
        jitalloc.warmup(0)  # type: ignore[arg-type]


def test_warmup_of_the_command_line(cupy: Cupy) -> None:
    run = partial(CliRunner().invoke, cli.main)
    done = run(["warmup", "--device", "cuda"])
    assert done.stdout.startswith(f"{len(_cuda.cuda_kernels())} kernels ready")
    cupy.gpus = 0
    done = run(["warmup", "--device", "cuda"])
    assert (done.exit_code, "no GPU can be used" in done.stderr) == (1, True)


# What the host need not do again.


def test_views_of_a_buffer_of_copies_are_made_once(cupy: Cupy) -> None:
    cache: Any = PagedKVCache(PagePool(8, 4, device="cuda"), 4, 4)
    rows, one = up(cupy, [0, 1], np.int32), up(cupy, [0], np.int32)
    buffers = [cupy.kept(np.zeros((2, 2), np.int32)) for _ in range(2)]
    seen = [cache.append_batch(rows, copies=buffers[i]).copies for i in (0, 0, 1, 0)]
    assert [each is seen[0] for each in seen] == [True, True, False, False]
    for each, i in zip(seen, (0, 0, 1, 0), strict=True):
        first = buffers[i].data.ptr
        assert (each.src.data.ptr, each.dst.data.ptr) == (first, first + 8)
        assert each.src.size == each.dst.size == 2
    assert [each.arguments[-1].size for each in cupy.launches] == [4] * 4
    with pytest.raises(InvalidArgument, match=r"copies.*int32\[2, 1\]"):
        cache.append_batch(one, copies=buffers[0])
