"""SlotPrefixCache: which cache slot already holds the beginning of a prompt."""

from __future__ import annotations

from jitalloc.errors import CorruptState, corrupt_error
from jitalloc.kernels.slot_prefix import slot_prefix_check_cpu
from jitalloc.slot_entries import SlotEntries
from jitalloc.slot_prefix_state import (
    CAPACITY,
    MAX_TOKENS,
    SLOT_PREFIX_CORRUPT_REASONS,
    TABLE_BITS,
    table_bits,
)


class SlotPrefixCache(SlotEntries):
    """Remembers which slots hold which tokens, and finds the longest prefix of a prompt.

    The cache owns no slots: it says which one has given way, and the caller frees it.

    Parameters
    ----------
    capacity : int
        Entries at most. Each has a slot of its own.
    max_tokens : int
        Tokens an entry at most. Their rows are virtual memory, `4 * capacity * max_tokens`
        bytes; only what was written takes real memory.

    Attributes
    ----------
    capacity, max_tokens
        As above.
    arrays : SlotPrefixArrays
        Named views into the state, to look at.

    Raises
    ------
    InvalidArgument
        A size is out of range or not an integer.
    MemoryError
        The system refuses so much virtual memory.

    Notes
    -----
    The index lives on the host, whatever the slots live on: what follows links is slow on a GPU,
    and a prompt is on the host when it is looked up. Tokens are arrays of the host, and no call
    waits for a GPU.

    Uses are counted by a logical clock, so the same calls give the same entries on every rank.
    Calls from several threads are serialised by a lock word in the arrays.

    Examples
    --------
    >>> slots, cache = jitalloc.SlotAllocator(8), jitalloc.SlotPrefixCache(capacity=4)
    >>> slot = slots.alloc()
    >>> cache.insert([11, 12, 13, 14], slot, slots.version(slot))
    >>> match = cache.find([11, 12, 13, 99], pin=True)
    >>> match, slots.is_current(match.slot, match.version)
    (SlotMatch(length=3, slot=0, version=1), True)
    >>> cache.evict()
    >>> cache.release(match)
    >>> slots.free(cache.evict().slot)
    >>> cache
    SlotPrefixCache(capacity=4, max_tokens=8192): 0 entries, 0 pinned
    """

    __slots__ = ()

    def check(self) -> None:
        """Verify every invariant, entry by entry and node by node, tokens included.

        Raises
        ------
        CorruptState
            An invariant of `jitalloc.slot_prefix_state` is broken; the message names it.
        """
        sizes = {
            CAPACITY: self.capacity,
            MAX_TOKENS: self.max_tokens,
            TABLE_BITS: table_bits(self.capacity),
        }
        for slot, value in sizes.items():
            if self._slab[slot] != value:
                raise CorruptState(
                    f"prefix header[{slot}] is {self._slab[slot]}, the cache has {value}"
                )
        status = self._run(slot_prefix_check_cpu)
        if status < 0:
            raise corrupt_error(status, SLOT_PREFIX_CORRUPT_REASONS)
