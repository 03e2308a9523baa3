"""PagePool: pages of the KV cache, handed out by id."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS
from jitalloc.arguments import as_count, as_lengths, as_out
from jitalloc.errors import (
    NO_RUN,
    OUT_OF_PAGES,
    InvalidArgument,
    OutOfPages,
    argument_error,
    unpack_status,
)
from jitalloc.kernels.pool import (
    pool_admit_cpu,
    pool_alloc_batch_cpu,
    pool_alloc_cpu,
    pool_alloc_run_cpu,
    pool_merge_cpu,
    pool_total_cpu,
)
from jitalloc.state import INT32
from jitalloc.tokens import TokenSlots

_empty = np.empty


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


class PagePool(TokenSlots):
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
        Keep page 0 out of circulation, as a target for padding.
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
    and tries again. Kernels release the GIL.

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
