"""SlotPrefixCache: which cache slot already holds the beginning of a prompt."""

from __future__ import annotations

from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.arguments import as_count, as_tokens
from jitalloc.errors import (
    ALL_PINNED,
    ENTRY_PINNED,
    NO_ENTRY,
    AllPinned,
    CorruptState,
    EntryPinned,
    InvalidArgument,
    SlotTaken,
    UnknownEntry,
    WrongDevice,
    corrupt_error,
    unpack_status,
)
from jitalloc.forking import keep_quiet, stand_still
from jitalloc.slots.loops.slot_entries import (
    slot_entries_evict_cpu,
    slot_entries_insert_cpu,
    slot_entries_pin_cpu,
    slot_entries_release_cpu,
    slot_entries_remove_cpu,
)
from jitalloc.slots.loops.slot_prefix import slot_prefix_check_cpu
from jitalloc.slots.loops.slot_table import slot_table_clear_cpu, slot_table_look_cpu
from jitalloc.slots.loops.slot_tree import slot_tree_find_cpu
from jitalloc.slots.prefix_state import (
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
    SLOT_PREFIX_CORRUPT_REASONS,
    TABLE_BITS,
    TOKENS_ASKED,
    TOKENS_FOUND,
    SlotPrefixArrays,
    slot_prefix_arrays,
    slot_prefix_slab_words,
    table_bits,
)
from jitalloc.slots.records import SlotEntry, SlotMatch, SlotPrefixStats
from jitalloc.slots.slots import as_slot
from jitalloc.state import INT32_MAX, INT64, LOCK

_empty = np.empty
MOST_ENTRIES = 2**29  # twice as many nodes, and the key of a slot behind them, fit int32
MOST_VERSIONS = 2**62


def as_entry(entry: Any) -> tuple[int, int]:
    """Return `(slot, version)` of what `find`, `insert` or `evict` returned."""
    if not isinstance(entry, SlotMatch | SlotEntry):
        raise InvalidArgument("entry", entry, "must be a SlotMatch or a SlotEntry")
    slot = as_slot("entry.slot", entry.slot, INT32_MAX)
    return slot, as_count("entry.version", entry.version, 0, MOST_VERSIONS)


def refuse(status: int, entry: SlotMatch | SlotEntry) -> NoReturn:
    """Raise what a status word says about `entry`."""
    code = unpack_status(status)[0]
    if code == NO_ENTRY:
        raise UnknownEntry(f"no entry of slot {entry.slot} in version {entry.version}")
    if code == ENTRY_PINNED:
        raise EntryPinned("entry", entry, "release it first")
    raise InvalidArgument("entry", entry, "is not pinned")


class SlotPrefixCache:
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

    __slots__ = ("__weakref__", "_slab", "arrays", "capacity", "max_tokens")

    def __init__(self, capacity: int, max_tokens: int = 8192) -> None:
        self.capacity = as_count("capacity", capacity, 1, MOST_ENTRIES)
        self.max_tokens = as_count("max_tokens", max_tokens, 1)
        slab = np.zeros(slot_prefix_slab_words(self.capacity, self.max_tokens), np.int64)
        slab[CAPACITY] = self.capacity
        slab[MAX_TOKENS] = self.max_tokens
        slab[TABLE_BITS] = table_bits(self.capacity)
        slab[OLDEST] = NIL
        slot_table_clear_cpu.run(slab, np.empty(1, np.int32))  # of no entry no slot is told
        self._install(slab)
        keep_quiet(self, slab="_slab")

    def _install(self, slab: NDArray[np.int64]) -> None:
        self._slab = slab
        self.arrays: SlotPrefixArrays = slot_prefix_arrays(slab, self.capacity, self.max_tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        with stand_still(self, "_slab") as slab:
            saved = slab.copy()
        return type(self)._revive, (self.capacity, self.max_tokens, saved)

    @classmethod
    def _revive(cls, capacity: int, max_tokens: int, slab: NDArray[np.int64]) -> Self:
        """Return a copy of a cache, its pins included: what `pickle` and `copy` call."""
        cache = cls(capacity, max_tokens)
        cache._install(slab.copy())
        cache._slab[LOCK] = 0  # it was taken to be copied
        return cache

    def _run(self, kernel: Kernel, *args: Any) -> int:
        """Run `kernel` on the slab, waiting while another thread holds its lock."""
        status: int = kernel.run(self._slab, *args)
        if status == BUSY_STATUS:
            status = wait_for_lock(self._once, kernel, *args)
        return status

    def _once(self, kernel: Kernel, *args: Any) -> int:
        status: int = kernel.run(self._slab, *args)
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

    def find(self, tokens: ArrayLike, *, pin: bool = False) -> SlotMatch | None:
        """Find the entry that shares the longest prefix with `tokens`.

        Of several the one used last is found. A hit is a use: it is evicted later.

        Parameters
        ----------
        tokens : array_like of int32
            The query; of a query longer than every entry, its beginning counts.
        pin : bool
            Pin the entry in the same step, as `pin` would.

        Returns
        -------
        SlotMatch or None
            None where no entry begins with the first token of the query. `length` may be less
            than the entry's own: any prefix of it can be a hit.

        Raises
        ------
        InvalidArgument
            `tokens` is no flat sequence of integers, or `pin` is no bool.
        WrongDevice
            `tokens` lies on a GPU; the index lives on the host.

        Examples
        --------
        >>> cache = jitalloc.SlotPrefixCache(capacity=4)
        >>> cache.insert([1, 2, 3, 4], slot=0, version=1)
        >>> cache.find([1, 2, 9])
        SlotMatch(length=2, slot=0, version=1)
        """
        ids = self._tokens(tokens)
        if pin is not True and pin is not False:
            raise InvalidArgument("pin", pin, "must be a bool")
        out = _empty(3, INT64)
        length = self._run(slot_tree_find_cpu, ids, int(pin), out)
        return SlotMatch(length, *out[1:].tolist()) if length else None

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

    def pin(self, entry: SlotMatch | SlotEntry) -> None:
        """Keep an entry from being evicted, removed or replaced until `release`.

        Pins are counted. To be sure of what `find` found, let it pin: `find(tokens, pin=True)`.

        Parameters
        ----------
        entry : SlotMatch or SlotEntry

        Raises
        ------
        UnknownEntry
            There is no such entry (any more).
        """
        slot, version = as_entry(entry)
        status = self._run(slot_entries_pin_cpu, slot, version)
        if status < 0:
            refuse(status, entry)

    def release(self, entry: SlotMatch | SlotEntry) -> None:
        """Take one pin off an entry. It was in use until now: this is a use of it.

        Parameters
        ----------
        entry : SlotMatch or SlotEntry

        Raises
        ------
        UnknownEntry
            There is no such entry.
        InvalidArgument
            The entry is not pinned.
        """
        slot, version = as_entry(entry)
        status = self._run(slot_entries_release_cpu, slot, version)
        if status < 0:
            refuse(status, entry)

    def insert(self, tokens: ArrayLike, slot: int, version: int) -> SlotEntry | None:
        """Keep that `slot` holds `tokens`; where the cache is full, another entry gives way.

        Tokens that are an entry already get this slot instead of the one before. All of it is
        a use of the entry.

        Parameters
        ----------
        tokens : array_like of int32
            At least one, at most `max_tokens`; they are copied.
        slot : int
        version : int
            The slot's version: `find` hands it back.

        Returns
        -------
        SlotEntry or None
            The entry whose slot backs nothing any more, for the caller to free: the unpinned
            one used longest ago, or the one that had the same tokens.

        Raises
        ------
        AllPinned
            The cache is full, and all of its entries are pinned.
        SlotTaken
            The slot backs an entry of other tokens; `remove` that first.
        EntryPinned
            The entry of the same tokens is pinned, and has another slot or version.
        InvalidArgument
            `tokens` is no flat sequence of integers, is empty or too long, or `slot` or
            `version` is no such number.
        WrongDevice
            `tokens` lies on a GPU; the index lives on the host.

        Examples
        --------
        >>> cache = jitalloc.SlotPrefixCache(capacity=1)
        >>> cache.insert([1, 2, 3], slot=5, version=1)
        >>> cache.insert([1, 2, 4], slot=6, version=1)
        SlotEntry(length=3, slot=5, version=1)
        """
        ids = self._tokens(tokens)
        if not 1 <= ids.size <= self.max_tokens:
            expected = f"must be 1 .. {self.max_tokens} tokens"
            raise InvalidArgument("tokens", ids.size, expected, fact="size")
        if type(slot) is not int or not 0 <= slot < INT32_MAX:
            slot = as_slot("slot", slot, INT32_MAX)
        if type(version) is not int or not 0 <= version <= MOST_VERSIONS:
            version = as_count("version", version, 0, MOST_VERSIONS)
        out = _empty(3, INT64)
        status = self._run(slot_entries_insert_cpu, ids, slot, version, out)
        if status == 0:
            return None
        if status < 0:
            code = unpack_status(status)[0]
            if code == ALL_PINNED:
                raise AllPinned(f"all {self.capacity} entries are pinned, none can give way")
            if code == ENTRY_PINNED:
                entry = SlotEntry._make(out.tolist())
                raise EntryPinned("tokens", entry, "the entry of these tokens is pinned")
            raise SlotTaken("slot", slot, "the slot backs another entry")
        return SlotEntry._make(out.tolist())

    def evict(self) -> SlotEntry | None:
        """Forget the unpinned entry used longest ago.

        Returns
        -------
        SlotEntry or None
            Its slot is for the caller to free. None where there is no unpinned entry.
        """
        out = _empty(3, INT64)
        return SlotEntry._make(out.tolist()) if self._run(slot_entries_evict_cpu, out) else None

    def remove(self, entry: SlotMatch | SlotEntry) -> SlotEntry:
        """Forget one entry.

        Parameters
        ----------
        entry : SlotMatch or SlotEntry
            Slot and version tell which.

        Returns
        -------
        SlotEntry
            What it was; its slot is for the caller to free.

        Raises
        ------
        UnknownEntry
            There is no such entry (any more).
        EntryPinned
            The entry is pinned.

        Notes
        -----
        Costs a step for each branch beside its own that was used since, where older entries are
        left on its own; `evict` meets none of those but pinned ones.
        """
        slot, version = as_entry(entry)
        out = _empty(3, INT64)
        status = self._run(slot_entries_remove_cpu, slot, version, out)
        if status < 0:
            refuse(status, entry)
        return SlotEntry._make(out.tolist())

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

    def check(self) -> None:
        """Verify every invariant, entry by entry and node by node, tokens included.

        Raises
        ------
        CorruptState
            An invariant of `jitalloc.slots.prefix_state` is broken; the message names it.
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
