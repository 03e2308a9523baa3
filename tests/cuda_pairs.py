"""A pool on the GPU beside its model; the steps of `twin_steps.py` run on it as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np

from jitalloc import NULL, Moves, PageBatch, PagePool, PoolSnapshot, errors
from jitalloc.cuda import CudaPagePool
from jitalloc.pool.loops.merging_cuda import VERDICT
from jitalloc.pool.state import FREE, HEAD, PoolArrays, pool_arrays
from jitalloc.state import INT32_MAX
from tests import oracle
from tests.pairs import PoolPair

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)


def same_words(theirs: Any, ours: Any) -> bool:
    """Whether two slabs of pools agree in every word that counts.

    Those of a freelist outside of HEAD .. HEAD + FREE do not: nothing reads them, and a free into a
    ring that fails leaves others behind on the CPU than on the GPU.
    """
    theirs, ours = theirs.copy(), ours.copy()
    for slab in (theirs, ours):
        arrays = pool_arrays(slab)
        head, free = arrays.header[[HEAD, FREE]].tolist()
        counts = (np.arange(arrays.free_pages.size) - head) % arrays.free_pages.size < free
        arrays.free_pages[~counts] = NULL
    return bool((theirs == ours).all())


class HostView:
    """Speaks like a pool of the CPU and calls one on the GPU: arrays go up, results come down.

    A call that fails raises what the device kept, after a look that its results are NULL.
    """

    def __init__(self, pool: CudaPagePool) -> None:
        self.device_pool = pool
        self._widths = cycle((INT64, INT32, INT32))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device_pool, name)

    @property
    def arrays(self) -> PoolArrays:
        gpu, pool = self.device_pool._gpu, self.device_pool
        pool._bring_time()
        assert gpu.download(pool._record)[0] == 0, "a ticket is left over"
        slab = gpu.download(pool._slab)
        scratch = gpu.download(pool._words)[pool._record.size + slab.size :]
        assert not scratch[:VERDICT].any(), "parts are left over"
        return pool_arrays(slab)

    def up(self, values: Any, dtype: np.dtype[Any]) -> Any:
        return self.device_pool._gpu.upload(np.array(values, dtype))

    def integers(self, values: Any) -> Any:
        """Lengths or counts on the GPU, now as int32 and now as int64."""
        values = np.array(values, INT64)
        narrow = ((values >= -INT32_MAX) & (values <= INT32_MAX)).all()
        return self.up(values, next(self._widths) if narrow else INT64)

    def settle(self, call: Callable[[], Any]) -> Any:
        """Run a call; its results as NumPy arrays, or what `check` raises."""
        pool = self.device_pool
        results = call()
        parts = results if isinstance(results, tuple) else (results,)
        down = [pool._gpu.download(each) for each in parts if each is not None]
        try:
            pool._settled()
        except errors.JitallocError:
            assert all((each == NULL).all() for each in down), "results of a failed call"
            raise
        if len(down) == 1:
            return down[0]
        return tuple(down) if down else None

    def count(self, call: Callable[[], Any]) -> int:
        (value,) = self.settle(call)
        return int(value)

    def alloc(self, n: int, *, contiguous: bool = False) -> Any:
        return self.settle(lambda: self.device_pool.alloc(n, contiguous=contiguous))

    def alloc_batch(self, counts: Any) -> PageBatch:
        """With a buffer that is a little too long, where that is not known beforehand."""
        counts = np.array(counts, INT64)
        total = min(int(np.clip(counts, 0, None).sum()), self.device_pool.num_pages)
        out = self.up(np.zeros(total + 3), INT32)
        indptr, pages = self.settle(
            lambda: tuple(self.device_pool.alloc_batch(self.integers(counts), out=out))
        )
        assert (pages[total:] == NULL).all()
        return PageBatch(indptr, pages[:total])

    def admit(self, counts: Any) -> int:
        return self.count(lambda: self.device_pool.admit(self.integers(counts)))

    def merge(self) -> int:
        return self.count(self.device_pool.merge)

    def share(self, pages: Any) -> None:
        self.settle(lambda: self.device_pool.share(self.up(pages, INT32)))

    def free(self, pages: Any) -> int:
        return self.count(lambda: self.device_pool.free(self.up(pages, INT32)))

    @contextmanager
    def free_group(self) -> Iterator[Any]:
        """A group of the device; behind it `released` is a number, or its failure is raised."""
        told = SimpleNamespace()
        with self.device_pool.free_group() as group:
            yield told
        told.released = self.count(lambda: group.released)

    def free_slots(self, slots: Any) -> int:
        return self.count(lambda: self.device_pool.free_slots(self.up(slots, INT64)))

    def refcount(self, pages: Any) -> Any:
        return self.settle(lambda: self.device_pool.refcount(self.up(pages, INT32)))

    def alloc_extend(self, prefix_lens: Any, seq_lens: Any, last_slots: Any) -> Any:
        arguments = [np.array(each, INT64) for each in (prefix_lens, seq_lens, last_slots)]
        most = self.device_pool.num_pages * self.device_pool.page_size
        grown = np.where(arguments[1] == NULL, 0, arguments[1] - arguments[0])
        total = int(np.clip(grown, 0, most).sum())
        out = self.up(np.zeros(total + 5), INT64)
        lengths = [self.integers(each) for each in arguments[:2]]
        last = self.up(arguments[2], INT64)
        slots = self.settle(lambda: self.device_pool.alloc_extend(*lengths, last, out=out))
        assert (slots[total:] == NULL).all()
        return slots[:total]

    def alloc_decode(self, seq_lens: Any, last_slots: Any, *, out: Any = None) -> Any:
        seq_lens, last = self.integers(seq_lens), self.up(last_slots, INT64)
        buffer = last if out is last_slots else None
        slots = self.settle(lambda: self.device_pool.alloc_decode(seq_lens, last, out=buffer))
        if out is not None:
            out[:] = slots
        return slots

    def clear(self) -> None:
        self.settle(self.device_pool.clear)

    def resize(self, num_pages: int) -> None:
        self.settle(lambda: self.device_pool.resize(num_pages))

    def defragment(self) -> Moves:
        return Moves(*self.settle(lambda: tuple(self.device_pool.defragment())))

    def snapshot(self) -> PoolSnapshot:
        return self.device_pool.snapshot()


class PaddedPool(oracle.Pool):
    """The model, where a sequence of length NULL is padding as on the GPU."""

    def alloc_extend(
        self, prefix_lens: Sequence[int], seq_lens: Sequence[int], last_slots: Sequence[int]
    ) -> list[int]:
        real = [i for i, seq in enumerate(seq_lens) if seq != NULL]
        with positions_of(real):
            return super().alloc_extend(
                *([each[i] for i in real] for each in (prefix_lens, seq_lens, last_slots))
            )

    def alloc_decode(self, seq_lens: Sequence[int], last_slots: Sequence[int]) -> list[int]:
        real = [i for i, seq in enumerate(seq_lens) if seq != NULL]
        with positions_of(real):
            slots = super().alloc_decode([seq_lens[i] for i in real], [last_slots[i] for i in real])
        padded = [NULL] * len(seq_lens)
        for i, slot in zip(real, slots, strict=True):
            padded[i] = slot
        return padded


@contextmanager
def positions_of(real: list[int]) -> Iterator[None]:
    """Let errors tell the position in the whole batch, of which `real` is asked of the model."""
    try:
        yield
    except errors.InvalidArgument as error:
        error.position = real[error.position or 0]
        raise


class CudaPair(PoolPair):
    """A pool on the GPU and its model."""

    def __init__(
        self, num_pages: int, page_size: int = 4, order: str = "sorted", null_page: bool = False
    ) -> None:
        args = (num_pages, page_size)
        options: Any = {"order": order, "null_page": null_page}
        super().__init__(*args, **options)
        self.model = PaddedPool(num_pages, page_size, order, null_page)
        self.pool: Any = HostView(PagePool(*args, **options, device="cuda"))  # type: ignore[arg-type]
