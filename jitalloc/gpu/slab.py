"""A slab on the GPU with the record of its calls, and how kernels are started on it."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import CorruptState, JitallocError
from jitalloc.gpu.device import Device, device
from jitalloc.gpu.kernel import CudaKernel
from jitalloc.gpu.record import FAULT_STATUS, FAULT_WANTED, LOWEST, RECORD_SLOTS, TICKET
from jitalloc.snapshot import uncopied
from jitalloc.state import HEADER_SLOTS

ITEMS = 4  # elements of a thread before a call takes another block
WARP = 32  # threads of a block come in so many
NUMBERS = (int, np.integer)


def blocks_for(gpu: Device, elements: int) -> int:
    """Return in how many blocks a thread has `ITEMS` of `elements`."""
    return min(-(-elements // (ITEMS * gpu.threads)), MOST_BLOCKS) if elements else 1


class CudaSlab:
    """What owns a slab on the GPU: starts kernels on it, waits for them, raises what failed.

    Calls of several threads are serialised by a lock of the host, held over the launches of a call
    and over what it then fetches. Locks of caches on a pool are taken before it. Who only looks
    waits without it, so that others go on launching meanwhile.
    """

    __reduce_ex__ = uncopied("it lives on the GPU")

    __slots__ = ()

    _gpu: Any
    _lock: Any
    _record: Any
    _slab: Any
    _state: Any
    _words: Any

    def _choose(self, stream: Any) -> None:
        self._gpu = device().on(stream)

    def _put(self, slab: NDArray[np.int64], scratch: int = 0) -> None:
        """Make the slab on the GPU, with a new record before it and words of scratch behind.

        It is there for every stream: that is waited for.
        """
        if not hasattr(self, "_lock"):
            self._lock = threading.RLock()
        if not hasattr(self, "_gpu"):
            self._choose(None)
        words = np.zeros(RECORD_SLOTS + slab.size + scratch, np.int64)
        words[RECORD_SLOTS : RECORD_SLOTS + slab.size] = slab
        self._use(self._gpu.keep(words), scratch)

    def _use(self, words: Any, scratch: int = 0) -> None:
        """Take an array of record, slab and scratch on the GPU; kernels see the scratch too."""
        wrap = self._gpu.wrap
        with self._calls:
            self._words = words
            self._record = words[:RECORD_SLOTS]
            self._slab = words[RECORD_SLOTS : words.size - scratch]
            self._state = (wrap(words[RECORD_SLOTS:]), wrap(self._record))

    @property
    def _calls(self) -> Any:
        """The lock over what belongs to one call: launches that follow each other, a fetch.

        A launch by itself takes it too. Whoever holds it must not run work by `uninterrupted`,
        which may need it in another thread.
        """
        self._gpu.threads  # noqa: B018  (in a child process it refuses; the lock may be held there)
        return self._lock

    @property
    def stream(self) -> Any:
        """The stream that all calls go to, as it was given; None: CuPy's current one at each call.

        A stream of CuPy, one of torch (`torch.cuda.current_stream()`), or the address of one as an
        int. It may be set at any time. What the old stream has still to do, the new one does not
        wait for: that is up to the caller, by an event, as between any two streams.
        """
        return self._gpu.stream

    @stream.setter
    def stream(self, stream: Any) -> None:
        with self._calls:
            self._gpu = self._gpu.on(stream)

    @property
    def fault(self) -> Any:
        """The failure that nobody has raised yet, as `int64[5]` on the GPU: nothing is copied.

        `[status, call, kind, value, wanted]`; all of it is zero while no call has failed. So a loop
        on the GPU that reads `fault[0]` can stop itself, and a kernel of a captured graph can skip
        its work. `status` is the negative status word of the first call that failed
        (`jitalloc.errors`), `call` how many calls came before it, `kind` its place in
        `jitalloc.gpu.record.CALL_KINDS` (of slots: `jitalloc.slots.state.SLOT_CALL_KINDS`),
        `value` the offending element, `wanted` how much the call needed. The next call that waits
        raises it and sets it to zero. A view of the state: `restore` and `resize` make it anew.
        Read it only.
        """
        return self._record[FAULT_STATUS : FAULT_WANTED + 1]

    @abstractmethod
    def _fault(self, record: NDArray[np.int64]) -> JitallocError:
        """Return what a record with a failure tells of."""

    def _start(self, kernel: CudaKernel, elements: int, *arguments: Any, blocks: int = 1) -> None:
        """Launch `kernel` with a thread for each `ITEMS` of `elements`, in `blocks` at least."""
        gpu = self._gpu
        blocks = max(blocks_for(gpu, elements), min(blocks, MOST_BLOCKS))
        wrapped = self._wrapped(arguments)
        with self._lock:
            self._tick(kernel)
            gpu.launch(kernel, blocks, gpu.threads, *self._state, *wrapped)

    def _start_block(
        self, kernel: CudaKernel, elements: int, *arguments: Any, blocks: int = 1
    ) -> None:
        """Launch `kernel` with a block that has a thread for each of `elements`, if they go.

        `blocks`: how many are there, the others to help; then none has few threads.
        """
        gpu = self._gpu
        most = gpu.threads * (2 if kernel.wide else 1)
        threads = min(-(-elements // WARP) * WARP or WARP, most)
        wrapped, blocks = self._wrapped(arguments), min(blocks, MOST_BLOCKS)
        if blocks > 1:
            threads = max(threads, gpu.threads)
        with self._lock:
            self._tick(kernel)
            gpu.launch(kernel, blocks, threads, *self._state, *wrapped)

    def _tick(self, kernel: CudaKernel) -> None:
        """Follow a launch that is about to come, where the host has a clock of its own."""

    def _wrapped(self, arguments: tuple[Any, ...]) -> list[Any]:
        wrap, pack = self._gpu.wrap, self._gpu.pack
        return [pack(each) if isinstance(each, NUMBERS) else wrap(each) for each in arguments]

    def _settled(self) -> NDArray[np.int64]:
        """Wait for all calls so far, raise the first failure, or return the record and header.

        Of a call whose thread waits for it, the failure is left to that thread.
        """
        words = self._fetched()
        if words[FAULT_STATUS]:
            with self._calls:
                words = self._fetched()
                if words[FAULT_STATUS]:
                    self._gpu.clear(self.fault)
                    raise self._fault(words)
        return words

    def _fetched(self) -> NDArray[np.int64]:
        """Wait, and return record and header; `CorruptState` where calls have overlapped."""
        part = self._words[: RECORD_SLOTS + HEADER_SLOTS]
        words: NDArray[np.int64] = self._gpu.download(part)
        if words[TICKET] or words[LOWEST]:  # what blocks of one call leave for each other
            self._gpu.wait()  # a call may be under way on another stream
            words = self._gpu.download(part)
            if words[TICKET] or words[LOWEST]:
                raise CorruptState(
                    f"record[{TICKET}] is {words[TICKET]} and record[{LOWEST}] {words[LOWEST]} "
                    "while no call is under way: calls have overlapped on several streams, and "
                    "later ones may never end. Order them, by one stream or by events, and "
                    "restore a snapshot"
                )
        return words


# Scratch behind the slab of a pool on the GPU. Words that are 0 between calls: how many parts are
# taken, and what each holds; what one launch leaves for the next: its verdict, what a batch sums up
# to before each block's part. In `fifo` and `lifo` also int64[N]: where a batch has named a page
# last, counted through all batches, of which USED says how many elements they had.
MOST_BLOCKS = 512
