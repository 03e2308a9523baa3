"""SlotPrefixCache on the GPU: one thread of it runs the loops of the CPU, and the host waits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.cuda.arguments import as_device
from jitalloc.cuda.slab import CudaSlab
from jitalloc.errors import EntryPinned, unpack_status
from jitalloc.kernels.cuda import slot_entries, slot_table, slot_tree  # noqa: F401  (for _run)
from jitalloc.kernels.slot_table import slot_table_clear_cpu
from jitalloc.slot_prefix import SlotPrefixCache
from jitalloc.slot_prefix_state import PREFIX_HEADER_SLOTS, slot_prefix_arrays, slot_prefix_rows
from jitalloc.state import INT32, INT64, RECORD_SLOTS


class CudaSlotPrefixCache(CudaSlab, SlotPrefixCache, device="cuda"):
    """A `SlotPrefixCache` on the GPU; made by `SlotPrefixCache(capacity, device="cuda")`.

    The calls are those of the CPU, with the same results and the same state, and these differences.

    - Tokens are CuPy's arrays, or anything on the GPU with `__cuda_array_interface__` or DLPack,
      `int32`; host memory is refused, never copied. `clear` returns such an array.
    - Every call is one launch on CuPy's current stream and waits for the GPU, since it returns
      numbers of the host. An entry is reached by links alone, so one thread runs the loop: what
      this saves is the way of the tokens to the host.
    - `check` copies the state, tokens included.
    """

    __slots__ = ("_gpu", "_lock", "_record", "_state", "_words")

    def _install(self, slab: NDArray[np.int64]) -> None:
        # Rows of tokens are zeros that the host has not written yet: none are brought over.
        head = slot_prefix_rows(self.capacity)
        self._put(slab[:head])
        words = self._gpu.empty(RECORD_SLOTS + slab.size, INT64)
        self._gpu.clear(words)
        words[: RECORD_SLOTS + head] = self._words
        self._use(words)
        self.arrays = slot_prefix_arrays(self._slab, self.capacity, self.max_tokens)

    def _header(self) -> NDArray[np.int64]:
        header: NDArray[np.int64] = self._gpu.download(self._slab[:PREFIX_HEADER_SLOTS])
        return header

    def _tokens(self, tokens: Any) -> Any:
        return as_device(self._gpu, "tokens", tokens, INT32)

    def clear(self) -> Any:
        """Forget all entries; waits for the GPU: see `SlotPrefixCache.clear`.

        Returns
        -------
        int32[n] on the GPU
            The slots of the entries, as `CudaSlotAllocator.free_batch` takes them.
        """
        slots = self._gpu.empty(self.capacity, INT32)
        count = self._run(slot_table_clear_cpu, slots)
        if count < 0:
            pinned = int(unpack_status(count)[1])
            raise EntryPinned("clear", pinned, "release the entries that are pinned first")
        return slots[:count]

    def check(self) -> None:
        """Verify every invariant; waits for the GPU and copies the state.

        See `SlotPrefixCache.check`.
        """
        copy = SlotPrefixCache(1, 1)
        copy.capacity, copy.max_tokens = self.capacity, self.max_tokens
        copy._install(self._gpu.download(self._slab))
        copy.check()
