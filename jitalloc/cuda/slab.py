"""A slab on the GPU with the record of its calls, and how kernels are started on it."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc._cuda import CudaKernel, cuda_twin
from jitalloc._cuda_device import Device, device
from jitalloc._jit import Kernel
from jitalloc.errors import JitallocError
from jitalloc.kernels.cuda.merging import MOST_BLOCKS
from jitalloc.state import FAULT_STATUS, FAULT_WANTED, HEADER_SLOTS, RECORD_SLOTS, RESULT

ITEMS = 4  # elements of a thread before a call takes another block
WARP = 32  # threads of a block come in so many
NUMBERS = (int, np.integer)


def blocks_for(gpu: Device, elements: int) -> int:
    """Return in how many blocks a thread has `ITEMS` of `elements`."""
    return min(-(-elements // (ITEMS * gpu.threads)), MOST_BLOCKS) if elements else 1


class CudaSlab:
    """What owns a slab on the GPU: starts kernels on it, waits for them, raises what failed."""

    __slots__ = ()

    _gpu: Any
    _record: Any
    _slab: Any
    _state: Any
    _words: Any

    def _put(self, slab: NDArray[np.int64], scratch: int = 0) -> None:
        """Make the slab on the GPU, with a new record before it and words of scratch behind."""
        self._gpu = device()
        words = np.zeros(RECORD_SLOTS + slab.size + scratch, np.int64)
        words[RECORD_SLOTS : RECORD_SLOTS + slab.size] = slab
        self._use(self._gpu.upload(words), scratch)

    def _use(self, words: Any, scratch: int = 0) -> None:
        """Take an array of record, slab and scratch on the GPU; kernels see the scratch too."""
        self._words = words
        self._record = words[:RECORD_SLOTS]
        self._slab = words[RECORD_SLOTS : words.size - scratch]
        self._state = (self._gpu.wrap(words[RECORD_SLOTS:]), self._gpu.wrap(self._record))

    @property
    def _calls(self) -> AbstractContextManager[Any]:
        """The lock over what belongs to one call: launches that follow each other, a fetch."""
        return nullcontext()

    @abstractmethod
    def _fault(self, record: NDArray[np.int64]) -> JitallocError:
        """Return what a record with a failure tells of."""

    def _start(self, kernel: CudaKernel, elements: int, *arguments: Any) -> None:
        """Launch `kernel` with a thread for each `ITEMS` of `elements`; 0: in one block."""
        gpu = self._gpu
        blocks = blocks_for(gpu, elements)
        self._tick(kernel)
        gpu.launch(kernel, blocks, gpu.threads, *self._state, *self._wrapped(arguments))

    def _start_block(
        self, kernel: CudaKernel, elements: int, *arguments: Any, blocks: int = 1
    ) -> None:
        """Launch `kernel` in one block, with a thread for each of `elements` as far as they go.

        `blocks`: with so many, of `threads` at least; one of them does what the others do not.
        """
        gpu = self._gpu
        most = gpu.threads * (2 if kernel.wide else 1)
        threads = min(-(-elements // WARP) * WARP or WARP, most)
        if blocks > 1:
            threads = max(threads, gpu.threads)
        self._tick(kernel)
        gpu.launch(kernel, blocks, threads, *self._state, *self._wrapped(arguments))

    def _tick(self, kernel: CudaKernel) -> None:
        """Follow a launch that is about to come, where the host has a clock of its own."""

    def _wrapped(self, arguments: tuple[Any, ...]) -> list[Any]:
        wrap = self._gpu.wrap
        return [int(each) if isinstance(each, NUMBERS) else wrap(each) for each in arguments]

    def _settled(self) -> NDArray[np.int64]:
        """Wait for all calls so far, raise the first failure, or return the record and header."""
        words: NDArray[np.int64] = self._gpu.download(self._words[: RECORD_SLOTS + HEADER_SLOTS])
        if words[FAULT_STATUS]:
            self._gpu.clear(self._record[FAULT_STATUS : FAULT_WANTED + 1])
            raise self._fault(words)
        return words

    def _run(self, kernel: Kernel, *arguments: Any) -> int:
        """Run the twin of a CPU loop, wait for it, and return what the loop returns.

        A failure of an earlier call is raised, and then the loop has not run. Arrays of NumPy go
        up before and come back behind it; those of the GPU are handed over.
        """
        gpu = self._gpu
        host = [type(each) is np.ndarray for each in arguments]
        there = tuple(
            gpu.upload(each) if is_host else each
            for each, is_host in zip(arguments, host, strict=True)
        )
        gpu.launch(cuda_twin(kernel.name), 1, 1, gpu.wrap(self._words), *self._wrapped(there))
        result = int(self._settled()[RESULT])
        for mine, each, is_host in zip(arguments, there, host, strict=True):
            if is_host and mine.flags.writeable and mine.size:
                mine[...] = gpu.download(each)
        return result
