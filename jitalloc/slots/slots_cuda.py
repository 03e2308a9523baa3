"""SlotAllocator on the GPU: batches that wait for nothing, single slots for a host that waits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.arguments import as_count
from jitalloc.errors import JitallocError, OutOfSlots, SlotFree, SlotTaken, unpack_status
from jitalloc.gpu.arguments import as_device, as_device_out
from jitalloc.gpu.kernel import CudaKernel
from jitalloc.gpu.record import (
    FAULT_CALL,
    FAULT_KIND,
    FAULT_STATUS,
    FAULT_VALUE,
    FAULT_WANTED,
    RECORD_SLOTS,
    RESULT,
)
from jitalloc.gpu.slab import CudaSlab
from jitalloc.slots.loops.slots_cuda import (
    slots_alloc_batch_cuda,
    slots_alloc_cuda,
    slots_clear_cuda,
    slots_free_batch_cuda,
    slots_free_cuda,
    slots_look_cuda,
    slots_occupy_cuda,
)
from jitalloc.slots.slots import SlotAllocator, as_slot, slots_error
from jitalloc.slots.state import FREE_SLOTS, PEAK_SLOTS, SLOT_CALL_KINDS, slot_arrays
from jitalloc.state import INT32, INT64


class CudaSlotAllocator(CudaSlab, SlotAllocator, device="cuda"):
    """A `SlotAllocator` whose arrays live on the GPU; made by `SlotAllocator(n, device="cuda")`.

    The calls are those of the CPU, with the same results and the same state, and these differences.

    - `alloc_batch`, `free_batch` and `clear` are one launch each on CuPy's current stream and wait
      for nothing. Arrays are CuPy's, or anything on the GPU with `__cuda_array_interface__` or
      DLPack, `int32`; host memory is refused, never copied.
    - One of these that fails changes nothing and fills its result with NULL. The first failure is
      kept; the next call that waits raises it, as the exception of the CPU with a note on which
      call it was, and forgets it.
    - In `free_batch`, NULL is padding and skipped, so that a batch of fixed shape fits a graph.
    - All other calls take or return numbers of the host, so they wait for the GPU.
    - Calls on one allocator have to be ordered: one stream, or events between streams. Those that
      wait for nothing can be captured in a CUDA graph, `alloc_batch` given `out`.
    """

    __slots__ = ("_gpu", "_lock", "_record", "_state", "_words")

    def _install(self, slab: NDArray[np.int64]) -> None:
        self._put(slab)
        self.arrays = slot_arrays(self._slab, self.num_slots)

    def _fault(self, record: NDArray[np.int64]) -> JitallocError:
        status, value = int(record[FAULT_STATUS]), int(record[FAULT_VALUE])
        _code, detail = unpack_status(status)
        kind = SLOT_CALL_KINDS[int(record[FAULT_KIND])]
        error: JitallocError
        if kind == "alloc_batch":
            error = OutOfSlots(int(record[FAULT_WANTED]), detail)
        else:
            error = slots_error(status, {detail: value}, self.num_slots)
        number = int(record[FAULT_CALL])
        error.add_note(f"raised late: it is call {number} of the allocator ({kind})")
        return error

    @property
    def free_count(self) -> int:
        """Slots that are free. Waits for the GPU."""
        return int(self._settled()[RECORD_SLOTS + FREE_SLOTS])

    @property
    def peak_used(self) -> int:
        """The most slots that were taken at once. Waits for the GPU."""
        return int(self._settled()[RECORD_SLOTS + PEAK_SLOTS])

    def _ask(self, kernel: CudaKernel, *numbers: int) -> int:
        """Run a call of one slot, wait for it, and return what its twin returns.

        A failure of an earlier call is raised, and then this one has not run.
        """
        answer = self._gpu.empty(RECORD_SLOTS, INT64)  # nobody else writes to it
        self._start_block(kernel, RECORD_SLOTS, answer, *numbers)
        told = self._gpu.download(answer)
        if told[FAULT_STATUS]:
            raise self._fault(told)
        return int(told[RESULT])

    def _look(self, slot: int) -> int:
        return self._ask(slots_look_cuda, as_slot("slot", slot, self.num_slots))

    def alloc(self) -> int:
        """Take the lowest free slot, -1 where none is; waits: see `SlotAllocator.alloc`."""
        return max(self._ask(slots_alloc_cuda), -1)

    def alloc_batch(self, n: int, *, out: Any = None) -> Any:
        """Take the `n` lowest free slots, or none: see `SlotAllocator.alloc_batch`.

        Where they are not there, the result is NULL, and `OutOfSlots` is raised later. Only for
        more slots than there are at all, it is raised at once.
        """
        n = as_count("n", n)
        if n > self.num_slots:
            raise OutOfSlots(n, self.free_count)
        slots = as_device_out(self._gpu, "out", out, INT32, n)
        self._start(slots_alloc_batch_cuda, 0, slots)
        return slots

    def free(self, slot: int) -> None:
        """Give one slot back; waits for the GPU: see `SlotAllocator.free`."""
        slot = as_slot("slot", slot, self.num_slots)
        if self._ask(slots_free_cuda, slot) < 0:
            raise SlotFree("slot", slot, "the slot is free already")

    def free_batch(self, slots: Any) -> None:
        """Give several slots back, all or nothing: see `SlotAllocator.free_batch`.

        Parameters
        ----------
        slots : int32[B] on the GPU
            NULL is skipped, wherever it stands.
        """
        self._start(slots_free_batch_cuda, 0, as_device(self._gpu, "slots", slots, INT32))

    def occupy(self, slot: int) -> None:
        """Take this one slot; waits for the GPU: see `SlotAllocator.occupy`."""
        slot = as_slot("slot", slot, self.num_slots)
        if self._ask(slots_occupy_cuda, slot) < 0:
            raise SlotTaken("slot", slot, "the slot is taken")

    def clear(self) -> None:
        """Give all slots back: see `SlotAllocator.clear`."""
        self._start(slots_clear_cuda, 0)

    def check(self) -> None:
        """Raise the first failure, or verify every invariant: see `SlotAllocator.check`.

        Waits for the GPU and copies the state.
        """
        self._settled()
        copy = SlotAllocator(1)
        copy.num_slots = self.num_slots
        copy._install(self._gpu.download(self._slab))
        copy.check()
