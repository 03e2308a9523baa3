"""PagePool: pages of the KV cache, handed out by id, counted by owners, and slots in them."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS
from jitalloc.arguments import as_count, as_lengths, as_out, as_pages
from jitalloc.errors import (
    LAST_SLOT_MISALIGNED,
    LAST_SLOT_NOT_HELD,
    LAST_SLOT_RANGE,
    NEGATIVE,
    NO_RUN,
    OUT_OF_PAGES,
    InvalidArgument,
    InvalidPage,
    JitallocError,
    NestedFreeGroup,
    OutOfPages,
    argument_error,
    unpack_status,
)
from jitalloc.pool.loops.owners import (
    owners_count_cpu,
    owners_free_cpu,
    owners_free_slots_cpu,
    owners_share_cpu,
)
from jitalloc.pool.loops.pool import (
    pool_admit_cpu,
    pool_alloc_batch_cpu,
    pool_alloc_cpu,
    pool_alloc_run_cpu,
    pool_merge_cpu,
    pool_total_cpu,
)
from jitalloc.pool.loops.tokens import (
    tokens_decode_cpu,
    tokens_decode_narrow_cpu,
    tokens_extend_cpu,
    tokens_total_cpu,
)
from jitalloc.pool.upkeep import PoolUpkeep
from jitalloc.snapshot import uncopied
from jitalloc.state import INT32, INT64

_empty, _ndarray = np.empty, np.ndarray

LAST_SLOT_CODES = (LAST_SLOT_NOT_HELD, LAST_SLOT_MISALIGNED, LAST_SLOT_RANGE)


class PageBatch(NamedTuple):
    """Pages of several sequences, one behind the other.

    Attributes
    ----------
    indptr : int32[B + 1]
        Sequence `i` owns `pages[indptr[i] : indptr[i + 1]]`.
    pages : int32[indptr[B]]
    """

    indptr: NDArray[np.int32]
    pages: NDArray[np.int32]


class FreeGroup:
    """Frees that wait for the end of a `with` block (see `PagePool.free_group`).

    Attributes
    ----------
    released : int
        After the block: how many pages were released by it.
    """

    __slots__ = ("__weakref__", "_gathered", "_pool", "_process", "_thread", "released")

    __reduce_ex__ = uncopied("it is part of a `with` statement")

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._gathered: list[NDArray[np.int32]] = []
        self._process = self._thread = 0
        self.released = 0

    def __enter__(self) -> Self:
        if self._pool._open_group() is not None:
            raise NestedFreeGroup("a free_group is open on this pool already")
        self._process, self._thread = os.getpid(), threading.get_ident()
        # Weakly: an interruption between here and the block leaves nobody to close the group.
        self._pool._group = weakref.ref(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool._group = None
        gathered, self._gathered = self._gathered, []
        if gathered:
            self.released = self._pool._free_gathered(gathered)

    def _is_mine(self) -> bool:
        """Return whether the calling thread opened the group."""
        return self._thread == threading.get_ident()

    def _gather(self, pages: NDArray[np.int32]) -> None:
        """Keep `pages`, a copy of the caller's, for the end of the block."""
        self._gathered.append(pages)


def group_error(error: InvalidPage, sizes: Sequence[int]) -> InvalidPage:
    """Return the error of a group whose calls had `sizes`, with its call and the position there."""
    call, position = 0, error.position or 0
    while position >= sizes[call]:
        position -= sizes[call]
        call += 1
    name = f"pages (free call {call} of the group)"
    return type(error)(name, error.value, error.expected, position)


class PagePool(PoolUpkeep):
    """A pool of pages, each with room for `page_size` tokens and a count of its owners.

    Parameters
    ----------
    num_pages : int
        Pages of the pool; their ids are `0 .. num_pages - 1`.
    page_size : int
        Tokens a page, any number from 1 (powers of two are a little faster).
    order : {"sorted", "fifo", "lifo"}
        Which free page is handed out first. `sorted`: the lowest id of the freelist; freed
        pages wait until `merge` sorts them in, which happens by itself when an allocation runs
        short. `fifo`: the page that has been free longest. `lifo`: the page freed last.
    device : {"cpu", "cuda"}
        Where the arrays live. `cuda` needs the packages of `jitalloc[cuda12]` or
        `jitalloc[cuda13]`; arrays are then CuPy's, every call is one kernel launch on the current
        stream, and errors come late (`help(jitalloc.cuda.CudaPagePool)`).
    null_page : bool
        Keep page 0 out of circulation, as a target for padding. Without it block tables are padded
        with -1, which `k[tables]` in NumPy takes for the last page.
    stream : object or int, optional
        With `device="cuda"`: where all calls go, those of caches on the pool too. A stream of CuPy,
        one of torch, or the address of one; None: CuPy's current stream at each call. (torch's
        current stream is not CuPy's.)

    Attributes
    ----------
    num_pages, page_size, order, device, null_page
        As above.
    arrays : PoolArrays
        Named views into the state, to look at; made anew by `resize` and `restore`.

    Raises
    ------
    InvalidArgument
        A size is out of range or not an integer, or `order` is unknown.
    WrongDevice
        `device` is unknown, or cannot be used here.

    Notes
    -----
    Calls on one pool from several threads are serialised by a lock word in its arrays, which
    costs a compare-and-swap a call (`bench_pool.Threads`); a call that finds it taken sleeps
    and tries again. Kernels release the GIL. `os.fork` waits until no thread is inside: a child
    may use its copy of a pool on the CPU, and of the caches on it, as if it were the parent.

    `copy.deepcopy` and `pickle` make another pool with the same state; a `PagedKVCache` or a
    `PrefixCache` takes its pool along, and what is copied or pickled in one go shares it again.
    Matches, and pools on a GPU, refuse. For files: `save`.

    Every allocation decision depends on the calls so far alone: the same calls give the same
    ids in every process.

    Examples
    --------
    >>> pool = jitalloc.PagePool(num_pages=1024, page_size=16)
    >>> pages = pool.alloc(3)
    >>> pages
    array([0, 1, 2], dtype=int32)
    >>> pool.free(pages)
    3
    >>> pool
    PagePool(num_pages=1024, page_size=16, order='sorted', device='cpu', null_page=False): \
0 used, 1021 free, 3 released
    """

    __slots__ = ()

    def alloc(
        self, n: int, *, contiguous: bool = False, out: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        """Take `n` pages, each with one owner, or none.

        Parameters
        ----------
        n : int
            How many; 0 gives an empty array.
        contiguous : bool
            Take one run of consecutive ids, the lowest that fits (order `sorted` only). Released
            pages are merged on the way. Costs O(num_pages).
        out : int32[n], optional
            Buffer for the result.

        Returns
        -------
        int32[n]

        Raises
        ------
        OutOfPages
            Fewer than `n` pages are available, or no run of `n` is.
        InvalidArgument
            `n` is no count, `out` does not fit, or `contiguous` in another order than `sorted`.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8)
        >>> pool.free(pool.alloc(4)[1:2])
        1
        >>> pool.alloc(2, contiguous=True)
        array([4, 5], dtype=int32)
        """
        if type(n) is not int or not 0 <= n <= self.num_pages:
            n = as_count("n", n)
            if n > self.num_pages:
                raise OutOfPages(n, self.available)
        pages = _empty(n, INT32) if out is None else as_out(out, INT32, n)
        if contiguous:
            return self._alloc_run(pages)
        status: int = pool_alloc_cpu.run(self._slab, pages)
        if status < 0:
            if status == BUSY_STATUS:
                status = self._run(pool_alloc_cpu, pages)
            if status < 0:
                raise OutOfPages(n, unpack_status(status)[1])
        return pages

    def _alloc_run(self, pages: NDArray[np.int32]) -> NDArray[np.int32]:
        if self.order != "sorted":
            raise InvalidArgument(
                "contiguous", True, f"needs a pool of order 'sorted', this one is {self.order!r}"
            )
        status = self._run(pool_alloc_run_cpu, pages)
        if status < 0:
            code, detail = unpack_status(status)
            if code == NO_RUN:
                raise OutOfPages(pages.size, self.available, longest_run=detail)
            raise OutOfPages(pages.size, detail)
        return pages

    def try_alloc(self, n: int) -> NDArray[np.int32] | None:
        """Take `n` pages like `alloc`, or return None where they are not there.

        Parameters
        ----------
        n : int

        Returns
        -------
        int32[n] or None

        Raises
        ------
        InvalidArgument
            `n` is no count.
        """
        try:
            return self.alloc(n)
        except OutOfPages:
            return None

    def alloc_batch(self, counts: ArrayLike) -> PageBatch:
        """Take `counts[i]` pages for each of B sequences, in order, all or nothing.

        Parameters
        ----------
        counts : array_like of int64[B]

        Returns
        -------
        PageBatch
            `(indptr int32[B + 1], pages int32[sum(counts)])`.

        Raises
        ------
        OutOfPages
            Fewer than `sum(counts)` pages are available; `admit` says how many sequences fit.
        InvalidArgument
            A count is negative, or the sum passes int32.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8)
        >>> indptr, pages = pool.alloc_batch([2, 0, 3])
        >>> indptr, pages[indptr[2] : indptr[3]]
        (array([0, 2, 2, 5], dtype=int32), array([2, 3, 4], dtype=int32))
        """
        counts = as_lengths("counts", counts)
        total: int = pool_total_cpu.run(counts)
        if total < 0:
            raise argument_error(total, "counts", counts)
        if total > self.num_pages:
            raise OutOfPages(total, self.available)
        indptr, pages = np.empty(counts.size + 1, np.int32), np.empty(total, np.int32)
        status = self._run(pool_alloc_batch_cpu, counts, indptr, pages)
        if status < 0:
            code, detail = unpack_status(status)
            if code == OUT_OF_PAGES:
                raise OutOfPages(total, detail)
            raise argument_error(status, "counts", counts)
        return PageBatch(indptr, pages)

    def admit(self, counts: ArrayLike) -> int:
        """Return how many leading sequences of a batch would fit; nothing is taken.

        Parameters
        ----------
        counts : array_like of int64[B]
            Pages that each sequence needs.

        Returns
        -------
        int
            The largest `k` with `sum(counts[:k]) <= available`.

        Raises
        ------
        InvalidArgument
            A count is negative.
        """
        counts = as_lengths("counts", counts)
        status = self._run(pool_admit_cpu, counts)
        if status < 0:
            raise argument_error(status, "counts", counts)
        return status

    def share(self, pages: ArrayLike) -> None:
        """Add one owner to each page, all or nothing.

        Parameters
        ----------
        pages : array_like of int32[n]
            Held pages; one named twice gets two owners.

        Raises
        ------
        InvalidPage
            A page is out of range, reserved or free.
        InvalidArgument, WrongDevice
            `pages` is no flat array of integers on the CPU.

        Examples
        --------
        >>> pool = jitalloc.PagePool(4)
        >>> pages = pool.alloc(2)
        >>> pool.share(pages)
        >>> pool.free(pages), pool.free(pages)
        (0, 2)
        """
        pages = as_pages(pages)
        status = self._run(owners_share_cpu, pages)
        if status < 0:
            raise self._page_error(status, pages)

    def free(self, pages: ArrayLike) -> int:
        """Take one owner off each page, all or nothing; pages without owners are released.

        Parameters
        ----------
        pages : array_like of int32[n]
            A page may be named as often as it has owners.

        Returns
        -------
        int
            How many pages were released (0 inside a `free_group`, which releases at its end).

        Raises
        ------
        DoubleFree
            A page is free already, or is named more often than it has owners.
        InvalidPage
            A page is out of range or reserved.
        InvalidArgument, WrongDevice
            `pages` is no flat array of integers on the CPU.

        Notes
        -----
        The cost does not depend on the size of the pool. In the order `sorted`, released pages
        wait in a bitmap until `merge`; in `fifo` and `lifo` they can be allocated at once.

        Examples
        --------
        >>> pool = jitalloc.PagePool(4)
        >>> pages = pool.alloc(2)
        >>> pool.free(pages)
        2
        >>> pool.free(pages)
        Traceback (most recent call last):
        jitalloc.errors.DoubleFree: pages[0] = 0: freed more often than it has owners
        """
        try:
            fast = pages.dtype is INT32 and pages.ndim == 1  # type: ignore[union-attr]
        except AttributeError:
            fast = False
        if not fast:
            pages = as_pages(pages)
        if self._group is not None:
            group = self._open_group()
            if group is not None and group._is_mine():
                group._gather(as_pages(pages).copy())
                return 0
        try:
            status: int = owners_free_cpu.run(self._slab, pages)
        except TypeError:  # an array of another library: as_pages says what is wrong with it
            pages = as_pages(pages)
            status = owners_free_cpu.run(self._slab, pages)
        if status < 0:
            if status == BUSY_STATUS:
                status = self._run(owners_free_cpu, pages)
            if status < 0:
                raise self._page_error(status, as_pages(pages))
        return status

    def _open_group(self) -> FreeGroup | None:
        group: FreeGroup | None = None if self._group is None else self._group()
        if group is not None and not group._is_mine() and group._process != os.getpid():
            return None  # opened by a thread that `os.fork` has not taken along
        return group

    def free_group(self) -> FreeGroup:
        """Gather the frees of a `with` block and release them by one call at its end.

        Inside the block `free` copies the ids and returns 0. At the end all are freed, all or
        nothing. If the block raises, what was gathered before is released all the same. Frees
        by other threads are not gathered.

        Returns
        -------
        FreeGroup
            For one `with` statement; `released` says afterwards how many pages went free.

        Raises
        ------
        NestedFreeGroup
            On entering the block: a group is open on this pool already.
        DoubleFree, InvalidPage
            At the end of the block: an id was bad. `position` counts within the call that
            named it, and the message says which call of the block that was.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8)
        >>> first, second = pool.alloc(3), pool.alloc(2)
        >>> with pool.free_group() as group:
        ...     _ = pool.free(first)
        ...     _ = pool.free(second)
        >>> group.released
        5
        """
        return FreeGroup(self)

    def _free_gathered(self, gathered: list[NDArray[np.int32]]) -> int:
        pages = np.concatenate(gathered)
        status = self._run(owners_free_cpu, pages)
        if status >= 0:
            return status
        raise group_error(self._page_error(status, pages), [each.size for each in gathered])

    def refcount(self, pages: ArrayLike) -> NDArray[Any]:
        """Return how many owners each page has.

        Parameters
        ----------
        pages : array_like of int32[n]

        Returns
        -------
        int32[n]
            0 for free and released pages; 1 for the null page.

        Raises
        ------
        InvalidPage
            A page is out of range.
        """
        pages = as_pages(pages)
        counts = np.empty(pages.size, np.int32)
        status = self._run(owners_count_cpu, pages, counts)
        if status < 0:
            raise self._page_error(status, pages)
        return counts

    def merge(self) -> int:
        """Merge the released pages into the freelist, which then ascends as a whole.

        Happens by itself when an allocation runs short. A scan of the bitmap of released
        pages (one bit a page), so the ids need no sort.

        Returns
        -------
        int
            How many pages were merged; always 0 in the orders `fifo` and `lifo`.
        """
        return self._run(pool_merge_cpu)

    def alloc_extend(
        self,
        prefix_lens: ArrayLike,
        seq_lens: ArrayLike,
        last_slots: ArrayLike,
        *,
        out: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Return slots for the tokens `prefix_lens[i] .. seq_lens[i] - 1` of each sequence.

        What fits goes into the partly filled last page of a sequence; the rest gets pages from
        the freelist, in batch order. All or nothing.

        Parameters
        ----------
        prefix_lens : array_like of int64[B]
            Tokens that each sequence has slots for already.
        seq_lens : array_like of int64[B]
            Tokens that it will have: `seq_lens >= prefix_lens`.
        last_slots : array_like of int64[B]
            Slot of token `prefix_lens[i] - 1`, or -1 where `prefix_lens[i] == 0`.
        out : int64[sum(seq_lens - prefix_lens)], optional
            Buffer for the result.

        Returns
        -------
        int64[sum(seq_lens - prefix_lens)]
            Slots of sequence 0, then of sequence 1, and so on.

        Raises
        ------
        OutOfPages
            The new pages are not there.
        InvalidArgument
            A length or a slot contradicts the others, or a last slot's page is not held.

        Notes
        -----
        The caller sees to it that no two sequences extend one shared, partly filled page
        (`PagedKVCache` copies it first).

        Examples
        --------
        >>> pool = jitalloc.PagePool(8, page_size=4)
        >>> pool.alloc_extend([0, 0], [3, 5], [-1, -1])
        array([0, 1, 2, 4, 5, 6, 7, 8])
        """
        prefix_lens = as_lengths("prefix_lens", prefix_lens)
        batch = prefix_lens.size
        seq_lens = as_lengths("seq_lens", seq_lens, batch)
        last_slots = as_lengths("last_slots", last_slots, batch)
        total = self._run(tokens_total_cpu, prefix_lens, seq_lens, last_slots)
        if total < 0:
            raise self._token_error(total, prefix_lens, seq_lens, last_slots)
        out = np.empty(total, np.int64) if out is None else as_out(out, INT64, total)
        status = self._run(tokens_extend_cpu, prefix_lens, seq_lens, last_slots, out)
        if status < 0:
            raise self._token_error(status, prefix_lens, seq_lens, last_slots)
        return out

    def alloc_decode(
        self,
        seq_lens: ArrayLike,
        last_slots: ArrayLike,
        *,
        out: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Return the slot of one new token for each sequence.

        A sequence whose last page is full takes the next page of the freelist, in batch order;
        every other one gets the slot behind its last. All or nothing.

        Parameters
        ----------
        seq_lens : array_like of int64[B]
            Tokens of each sequence, the new one counted. Arrays of int64 or int32 are taken as
            they are.
        last_slots : array_like of int64[B]
            Slot of the token before, or -1 where `seq_lens[i] == 1`.
        out : int64[B], optional
            Buffer for the result; it may be `last_slots` itself, but must not overlap it otherwise.

        Returns
        -------
        int64[B]

        Raises
        ------
        OutOfPages
            The new pages are not there.
        InvalidArgument
            A length or a slot contradicts the others, or a last slot's page is not held.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8, page_size=4)
        >>> slots = pool.alloc_extend([0, 0], [3, 4], [-1, -1])
        >>> pool.alloc_decode([4, 5], [2, 7])
        array([3, 8])
        """
        kernel = tokens_decode_cpu
        try:
            fast = (
                seq_lens.dtype is INT64  # type: ignore[union-attr]
                and last_slots.dtype is INT64  # type: ignore[union-attr]
                and seq_lens.ndim == 1 == last_slots.ndim  # type: ignore[union-attr]
                and len(seq_lens) == len(last_slots)  # type: ignore[arg-type]
            )
        except (AttributeError, TypeError):
            fast = False
        if not fast or type(seq_lens) is not _ndarray or type(last_slots) is not _ndarray:
            if type(seq_lens) is _ndarray and seq_lens.dtype is INT32 and seq_lens.ndim == 1:
                kernel = tokens_decode_narrow_cpu
            else:
                seq_lens = as_lengths("seq_lens", seq_lens)
            last_slots = as_lengths("last_slots", last_slots, seq_lens.size)
        batch = len(seq_lens)
        slots = _empty(batch, INT64) if out is None else as_out(out, INT64, batch)
        status: int = kernel.run(self._slab, seq_lens, last_slots, slots)
        if status < 0:
            if status == BUSY_STATUS:
                status = self._run(kernel, seq_lens, last_slots, slots)
            if status < 0:
                seq_lens = as_lengths("seq_lens", seq_lens)
                last_slots = as_lengths("last_slots", last_slots)
                raise self._token_error(status, seq_lens, seq_lens, last_slots)
        return slots

    def free_slots(self, slots: ArrayLike) -> int:
        """Take one owner off each page that holds at least one of `slots`, all or nothing.

        Parameters
        ----------
        slots : array_like of int64[n]
            Slots in any order; a page is freed once however many of its slots are named.

        Returns
        -------
        int
            How many pages were released.

        Raises
        ------
        InvalidArgument
            A slot is outside the pool or lies in a page that nobody holds.
        """
        slots = as_lengths("slots", slots)
        with self._shape:
            scratch = np.empty(min(slots.size, self.num_pages), np.int32)
            status = self._run(owners_free_slots_cpu, slots, scratch)
        if status < 0:
            raise argument_error(status, "slots", slots, *self._slot_bounds())
        return status

    def _slot_bounds(self) -> tuple[int, int]:
        first = self.page_size if self.null_page else 0
        return first, self.num_pages * self.page_size - 1

    def _token_error(
        self,
        status: int,
        prefix_lens: NDArray[np.int64],
        seq_lens: NDArray[np.int64],
        last_slots: NDArray[np.int64],
    ) -> JitallocError:
        code, detail = unpack_status(status)
        if code == OUT_OF_PAGES:
            size = self.page_size
            held = 0 if prefix_lens is seq_lens else -(-prefix_lens // size)
            pages = -(-seq_lens // size) - held
            if prefix_lens is seq_lens:
                pages = (seq_lens - 1) % size == 0
            return OutOfPages(int(pages.sum()), detail)
        if code in LAST_SLOT_CODES:
            return argument_error(status, "last_slots", last_slots, *self._slot_bounds())
        if code == NEGATIVE:
            return argument_error(status, "prefix_lens", prefix_lens)
        return argument_error(status, "seq_lens", seq_lens)
