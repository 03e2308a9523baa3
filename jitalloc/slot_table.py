"""The arrays of a slot prefix cache, its sizes and figures, and what backs which slot."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.arguments import as_count, as_tokens
from jitalloc.errors import EntryPinned, WrongDevice, unpack_status
from jitalloc.kernels.slot_table import slot_table_clear_cpu, slot_table_look_cpu
from jitalloc.slot_calls import as_slot
from jitalloc.slot_prefix_state import (
    CAPACITY,
    ENTRIES,
    HITS,
    INSERTIONS,
    LOOKUPS,
    MAX_TOKENS,
    NIL,
    OLDEST,
    PINNED_ENTRIES,
    SLOT_EVICTIONS,
    TABLE_BITS,
    TOKENS_ASKED,
    TOKENS_FOUND,
    SlotPrefixArrays,
    slot_prefix_arrays,
    slot_prefix_slab_words,
    table_bits,
)
from jitalloc.slot_records import SlotEntry, SlotPrefixStats
from jitalloc.state import INT32_MAX, INT64

MOST_ENTRIES = 2**29  # twice as many nodes, and the key of a slot behind them, fit int32


class SlotTable:
    """The part of `SlotPrefixCache` that owns the arrays and runs kernels on them."""

    __slots__ = ("_slab", "arrays", "capacity", "max_tokens")

    def __init__(self, capacity: int, max_tokens: int = 8192) -> None:
        self.capacity = as_count("capacity", capacity, 1, MOST_ENTRIES)
        self.max_tokens = as_count("max_tokens", max_tokens, 1)
        slab = np.zeros(slot_prefix_slab_words(self.capacity, self.max_tokens), np.int64)
        slab[CAPACITY] = self.capacity
        slab[MAX_TOKENS] = self.max_tokens
        slab[TABLE_BITS] = table_bits(self.capacity)
        slab[OLDEST] = NIL
        slot_table_clear_cpu.run(slab, np.empty(1, np.int32))  # of no entry no slot is told
        self._slab = slab
        self.arrays: SlotPrefixArrays = slot_prefix_arrays(slab, self.capacity, self.max_tokens)

    def _run(self, kernel: Kernel, *args: Any) -> int:
        """Run `kernel` on the slab, waiting while another thread holds its lock."""
        status: int = kernel.run(self._slab, *args)
        if status == BUSY_STATUS:
            status = wait_for_lock(lambda: kernel.run(self._slab, *args))
        return status

    def _tokens(self, tokens: Any) -> NDArray[np.int32]:
        """Return token ids as what kernels take."""
        if type(tokens) is not np.ndarray and hasattr(tokens, "__cuda_array_interface__"):
            raise WrongDevice("tokens", type(tokens).__name__, "the index lives on the host")
        return as_tokens(tokens)

    def __len__(self) -> int:
        return int(self._slab[ENTRIES])

    def __bool__(self) -> bool:
        return True  # an empty cache is a cache still

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(capacity={self.capacity}, max_tokens={self.max_tokens}): "
            f"{len(self)} entries, {self.num_pinned} pinned"
        )

    @property
    def num_pinned(self) -> int:
        """Entries that are pinned."""
        return int(self._slab[PINNED_ENTRIES])

    def entry(self, slot: int) -> SlotEntry | None:
        """Return the entry that a slot backs; this is no use of it.

        Parameters
        ----------
        slot : int

        Returns
        -------
        SlotEntry or None
            None where the slot backs no entry.

        Raises
        ------
        InvalidSlot
            `slot` is negative or past int32.
        """
        out = np.empty(3, INT64)
        found = self._run(slot_table_look_cpu, as_slot("slot", slot, INT32_MAX), out)
        return SlotEntry._make(out.tolist()) if found else None

    def clear(self) -> NDArray[np.int32]:
        """Forget all entries. What `stats` counts goes on.

        Returns
        -------
        int32[n]
            The slots of the entries, from the one used longest ago on: `free_batch` takes them.

        Raises
        ------
        EntryPinned
            An entry is pinned.
        """
        slots = np.empty(self.capacity, np.int32)
        count = self._run(slot_table_clear_cpu, slots)
        if count < 0:
            pinned = int(unpack_status(count)[1])
            raise EntryPinned("clear", pinned, "release the entries that are pinned first")
        return slots[:count].copy()

    def stats(self) -> SlotPrefixStats:
        """Return sizes and counters.

        Returns
        -------
        SlotPrefixStats
            A copy: it does not follow the cache.
        """
        header = self.arrays.header.tolist()
        return SlotPrefixStats(
            capacity=self.capacity,
            max_tokens=self.max_tokens,
            entries=header[ENTRIES],
            pinned=header[PINNED_ENTRIES],
            lookups=header[LOOKUPS],
            hits=header[HITS],
            tokens_looked_up=header[TOKENS_ASKED],
            tokens_found=header[TOKENS_FOUND],
            insertions=header[INSERTIONS],
            evictions=header[SLOT_EVICTIONS],
        )
