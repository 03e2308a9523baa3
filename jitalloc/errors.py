"""Status codes that kernels return, the exceptions they become, and the text of each.

A kernel never raises. It returns one `int64`: a count (>= 0) when it succeeded, or a
*status word* (< 0) that packs what went wrong and where::

    status = -((detail << STATUS_BITS) | code)

`detail` is the position of the offending element in its argument, or, for exhaustion, how many
pages were available. The facade turns the word into one of the exceptions below.
"""

from __future__ import annotations

from typing import Any

STATUS_BITS = 8
STATUS_MASK = (1 << STATUS_BITS) - 1

# One code a kind of failure. Plain ints, because kernels freeze them as constants.
BUSY = 1  # another thread is inside the pool: try again
OUT_OF_PAGES = 2  # detail: pages available
NO_RUN = 3  # detail: longest run of consecutive free pages
PAGE_RANGE = 4  # page id outside 0 .. num_pages-1
PAGE_RESERVED = 5  # the null page
PAGE_FREE = 6  # sharing a page that nobody holds
DOUBLE_FREE = 7  # freed more often than owned
REFCOUNT_OVERFLOW = 8
NEGATIVE = 9  # a count or a length below zero
TOO_MANY = 10  # a total past int32
CHANGED = 11  # an input array changed while the call was reading it
SEQ_BELOW_PREFIX = 12
LAST_SLOT_MISALIGNED = 13
LAST_SLOT_RANGE = 14
LAST_SLOT_NOT_HELD = 15
SLOT_RANGE = 16
SLOT_NOT_HELD = 17
ROW_RANGE = 18
ROW_FREE = 19
ROW_REPEATED = 20
ROW_NOT_EMPTY = 21
OUT_OF_ROWS = 22  # detail: rows available
TABLE_WIDTH = 23
POSITION_RANGE = 24
PAGE_IN_USE = 25  # detail: page
OUT_SHORT = 55  # a buffer on the GPU holds fewer elements than the call makes; detail: its size
TOKENS_MISFIT = 56  # not one token a slot; detail: tokens given
TOKEN_DIFFERS = 49  # detail: position
NEGATIVE_TOKEN = 50  # detail: position
PAGE_CACHED = 26
NOT_LOCKED = 27  # a match was given back before
OVER_PIN_BUDGET = 28  # detail: pages that would be pinned anew
STILL_LOCKED = 29  # detail: locked pages
RENAMED = 30  # a match is older than the last renaming of pages

# Cache slots: one row of the cache a request. What `check` finds there: slot*_state.py.
OUT_OF_SLOTS = 40  # detail: slots free
SLOT_FREE = 41
SLOT_TAKEN = 42
SLOT_OUTSIDE = 43
ALL_PINNED = 44
ENTRY_PINNED = 45
ENTRY_NOT_PINNED = 46
NO_ENTRY = 47

# What `check` finds. The detail is a page, a header slot or a row.
BAD_HEADER = 64
BAD_FREE_ID = 65
FREE_TWICE = 66
FREE_OWNED = 67
RELEASED_OWNED = 68
RELEASED_AND_FREE = 69
LOST = 70
NOT_ASCENDING = 71
NEGATIVE_COUNT = 72
BAD_BITMAP = 73
MARKS_LEFT = 74
NULL_PAGE_COUNT = 75
BAD_TABLE_HEADER = 80
BAD_ROW_COUNT = 81
BAD_ROW_COLUMN = 82
BAD_ROW_PAGES = 83
ROW_PAGE_FREE = 84
BAD_ROW_LOCK = 120
LOCKS_MISSING = 121
BAD_PREFIX_HEADER = 85
BAD_PREFIX_COUNT = 86
CACHED_FREE = 87
BAD_LINK = 88
BAD_NODE = 89
BAD_LOCKS = 90
BAD_CHILDREN = 91
BAD_BUCKET = 92
BAD_QUEUE = 93
BAD_EXPIRY = 94


def pack_status(code: int, detail: int) -> int:
    """Return the status word of `code` and `detail` (what a kernel would return)."""
    return -((int(detail) << STATUS_BITS) | code)


def unpack_status(status: int) -> tuple[int, int]:
    """Return `(code, detail)` of a negative status word."""
    return -status & STATUS_MASK, -status >> STATUS_BITS


class JitallocError(Exception):
    """Base of every error that jitalloc raises on purpose. State is untouched when it is raised."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message; every subclass here shows plain text.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the constructor with the message alone, which most of these refuse:
        # an error that crosses a process boundary would come out as a TypeError.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    kind: type[JitallocError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> JitallocError:
    error = Exception.__new__(kind, *args)  # MemoryError.__new__ would refuse its subclasses
    error.__dict__.update(attributes)
    return error


class OutOfPages(JitallocError, MemoryError):
    """Fewer pages are free than a call asked for. Nothing was taken.

    Attributes
    ----------
    requested : int
        Pages that the call needed.
    available : int
        Pages that were free or released when it was refused.
    longest_run : int or None
        For `contiguous=True`: the longest run of consecutive free pages.
    position : int or None
        Of a batch of prompts: the first that does not fit. Cached pages that the batch shares do
        not count among those requested, and those that would give way for it count as available.
    """

    def __init__(
        self,
        requested: int,
        available: int,
        longest_run: int | None = None,
        position: int | None = None,
    ) -> None:
        if longest_run is None:
            text = f"{requested} pages requested, {available} available"
            if position is not None:
                text += f": the prompt at {position} does not fit"
        else:
            text = (
                f"no run of {requested} consecutive pages: {available} pages are available, "
                f"the longest run is {longest_run}"
            )
        super().__init__(text)
        self.requested = requested
        self.available = available
        self.longest_run = longest_run
        self.position = position


class InvalidArgument(JitallocError, ValueError):
    """An argument has a wrong type, shape, dtype or value.

    Attributes
    ----------
    argument : str
        Name of the argument.
    value : object
        The offending value (an element where the argument is an array).
    expected : str
        What the argument should have been.
    position : int or None
        Position of the element in the argument, where it is an array.

    `fact` is what of the argument the value is, where it is not the argument itself: its size,
    its shape, its dtype.
    """

    def __init__(
        self,
        argument: str,
        value: Any,
        expected: str,
        position: int | None = None,
        fact: str | None = None,
    ) -> None:
        place = argument if position is None else f"{argument}[{position}]"
        named = place if fact is None else f"{fact} of {place}"
        super().__init__(f"{named} = {value!r}: {expected}")
        self.argument = argument
        self.value = value
        self.expected = expected
        self.position = position


class InvalidPage(InvalidArgument):
    """A page id is out of range, reserved, or names a page that nobody holds."""


class DoubleFree(InvalidPage):
    """A page was freed more often than it has owners. Nothing of the call was freed."""


class WrongDevice(InvalidArgument):
    """An array or a pool lives on another device than the call needs; nothing is copied."""


class PageInUse(InvalidPage):
    """A pool cannot shrink below a page that somebody holds."""


class PageCached(InvalidPage):
    """A page to be cached is in the prefix cache already, at another place or in the same call."""


class NotLocked(JitallocError, ValueError):
    """A match was released before, is another cache's, or must be unpinned (or not)."""


class PagesLocked(JitallocError, RuntimeError):
    """A prefix cache cannot be cleared while matches hold locks on it."""


class PinBudget(JitallocError, MemoryError):
    """A pin would pass the `pin_budget` of a prefix cache. Nothing was pinned.

    Attributes
    ----------
    requested : int
        Pages that would be pinned anew.
    budget : int
        Pages that may be pinned at once.
    """

    def __init__(self, requested: int, budget: int) -> None:
        super().__init__(f"{requested} more pages cannot be pinned, the budget is {budget}")
        self.requested = requested
        self.budget = budget


class UnknownSequence(JitallocError, KeyError):
    """No sequence has this id."""


class DuplicateSequence(JitallocError, KeyError):
    """A sequence with this id exists already."""


class OutOfRows(JitallocError, MemoryError):
    """All rows of the block table are taken (`max_sequences` is reached)."""


class SequenceTooLong(InvalidArgument):
    """A sequence would need more pages than its row of the block table has room for."""


class NestedFreeGroup(JitallocError, RuntimeError):
    """A `free_group` was opened inside another one on the same pool."""


class OutOfSlots(JitallocError, MemoryError):
    """Fewer cache slots are free than a call asked for. Nothing was taken.

    Attributes
    ----------
    requested, available : int
    """

    def __init__(self, requested: int, available: int) -> None:
        super().__init__(f"{requested} slots requested, {available} available")
        self.requested = requested
        self.available = available


class InvalidSlot(InvalidArgument):
    """A cache slot is out of range, free, or taken."""


class SlotFree(InvalidSlot):
    """A cache slot was freed that is free already. Nothing of the call was freed."""


class SlotTaken(InvalidSlot):
    """A cache slot is taken already, or backs another entry of the prefix cache."""


class AllPinned(JitallocError, MemoryError):
    """No entry can give way to a new one: the cache is full, and all its entries are pinned."""


class EntryPinned(InvalidArgument):
    """An entry is pinned: somebody reads its slot, so it cannot be removed or replaced."""


class UnknownEntry(JitallocError, KeyError):
    """No entry of the prefix cache has this slot in this version: it was evicted or removed."""


class CorruptState(JitallocError):
    """`check()` found a broken invariant. The message names the page or row and the arrays."""


class SnapshotError(JitallocError, ValueError):
    """A saved state is truncated, foreign, of another version, does not fit, or cannot be made."""


class TraceError(JitallocError, ValueError):
    """A trace file is malformed. The message names the file, the line and what was expected."""


CORRUPT_REASONS = {
    BAD_HEADER: "pool header[{}] contradicts the arrays or the pool's own sizes",
    BAD_FREE_ID: "free_pages holds an id outside the pool (at ring place {})",
    FREE_TWICE: "page {} stands twice in free_pages",
    FREE_OWNED: "page {} stands in free_pages and has owners in refcount",
    RELEASED_OWNED: "page {} is marked in released and has owners in refcount",
    RELEASED_AND_FREE: "page {} is marked in released and stands in free_pages",
    LOST: "page {} has no owner in refcount, yet is neither in free_pages nor in released",
    NOT_ASCENDING: "free_pages does not ascend at page {}",
    NEGATIVE_COUNT: "refcount of page {} is negative",
    BAD_BITMAP: "released has bits past the last page, or not header[RELEASED] of them ({})",
    MARKS_LEFT: "marks are left over from a call in word {}",
    NULL_PAGE_COUNT: "refcount of the null page {} must be 1",
    BAD_TABLE_HEADER: "table header[{}] contradicts the arrays or the table's own sizes",
    BAD_ROW_COUNT: "taken has bits past the last row, or not header[ACTIVE] of them ({})",
    BAD_ROW_COLUMN: "a column of row {} is out of its range",
    BAD_ROW_PAGES: "pages of row {} do not fit its length",
    BAD_ROW_LOCK: "row {} does not fit the cached pages that it locks",
    LOCKS_MISSING: "page {} is locked by more sequences than its locks say",
    BAD_PREFIX_HEADER: "prefix header[{}] contradicts the arrays or the cache's own sizes",
    BAD_PREFIX_COUNT: "nodes or pages are missing in the lists of the prefix cache ({})",
    CACHED_FREE: "cached page {} has no owner in refcount, or is reserved",
    BAD_LINK: "following_pages and previous_pages of page {} do not fit together",
    BAD_NODE: "the record of node {} does not fit its pages",
    BAD_LOCKS: "node {} has fewer locks or pins than its children, or more pins than locks",
    BAD_CHILDREN: "the list of children of node {} is broken",
    BAD_BUCKET: "bucket {} of the hash table is broken, or tokens have changed",
    BAD_QUEUE: "node {} stands in the wrong place of its queue, or should stand in one",
    BAD_EXPIRY: "the expiry of node {} does not fit its list",
    ROW_PAGE_FREE: "row {} holds a page that is free, or more rows hold it than it has owners",
}

PAGE_REASONS: dict[int, tuple[type[InvalidPage], str]] = {
    PAGE_RANGE: (InvalidPage, "page ids of this pool are {first} .. {last}"),
    PAGE_RESERVED: (InvalidPage, "the null page is reserved for padding"),
    PAGE_FREE: (InvalidPage, "the page is free; only a held page can be shared"),
    DOUBLE_FREE: (DoubleFree, "freed more often than it has owners"),
    PAGE_CACHED: (PageCached, "the page is cached already, or named twice"),
    REFCOUNT_OVERFLOW: (InvalidPage, "its reference count would pass int32"),
}

ARGUMENT_REASONS = {
    NEGATIVE: "must not be negative",
    TOO_MANY: "it and the total must fit int32",
    CHANGED: "the array changed while the call was reading it",
    SEQ_BELOW_PREFIX: "must be at least the prefix length (and at least 1 to decode)",
    LAST_SLOT_MISALIGNED: "does not end where the next token begins "
    "(-1 where there is no token yet, else (last_slot + 1) % page_size == length % page_size)",
    LAST_SLOT_RANGE: "slots of this pool are {first} .. {last}",
    LAST_SLOT_NOT_HELD: "lies in a page that nobody holds",
    SLOT_RANGE: "slots of this pool are {first} .. {last}",
    SLOT_NOT_HELD: "lies in a page that nobody holds",
    ROW_RANGE: "rows of this table are {first} .. {last}",
    ROW_FREE: "no sequence lives in this row",
    ROW_REPEATED: "the row is named twice",
    ROW_NOT_EMPTY: "the sequence of this row must be empty",
    NEGATIVE_TOKEN: "must not be negative",
    TOKEN_DIFFERS: "the sequence is known to have another token there",
    POSITION_RANGE: "must be a token position of the sequence",
}


def page_error(status: int, pages: Any, first: int, last: int) -> InvalidPage:
    """Return the exception for a status word about an element of `pages`."""
    code, position = unpack_status(status)
    kind, reason = PAGE_REASONS[code]
    return kind("pages", int(pages[position]), reason.format(first=first, last=last), position)


def argument_error(
    status: int, argument: str, values: Any, first: int = 0, last: int = 0
) -> InvalidArgument:
    """Return the exception for a status word about an element of the array `argument`."""
    code, position = unpack_status(status)
    value = int(values[position]) if len(values) else None
    reason = ARGUMENT_REASONS[code].format(first=first, last=last)
    return InvalidArgument(argument, value, reason, position)


def corrupt_error(status: int, reasons: dict[int, str] = CORRUPT_REASONS) -> CorruptState:
    """Return the exception for a status word of `check`; `reasons`: the texts of its codes."""
    code, detail = unpack_status(status)
    return CorruptState(reasons[code].format(detail))
