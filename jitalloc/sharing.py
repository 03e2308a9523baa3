"""Sequences and the prefix cache: what enters it, and how many pages are whose."""

from __future__ import annotations

from collections.abc import Hashable

from numpy.typing import ArrayLike

from jitalloc.arguments import as_count
from jitalloc.errors import (
    POSITION_RANGE,
    InvalidArgument,
    OutOfPages,
    argument_error,
    unpack_status,
)
from jitalloc.saving import SequenceSaving
from jitalloc.state import NO_TOKENS


class SequenceSharing(SequenceSaving):
    """The part of `PagedKVCache` that shares pages with others through a prefix cache."""

    @property
    def num_free(self) -> int:
        """Pages of the pool that are free or released."""
        return self._pages()[0]

    @property
    def num_reclaimable(self) -> int:
        """Pages that the prefix cache holds and nobody locks: they give way on demand."""
        return self._pages()[1]

    @property
    def num_held(self) -> int:
        """Pages that are neither free nor reclaimable."""
        return self._pages()[2]

    def commit(self, seq_id: Hashable, tokens: ArrayLike | None = None) -> int:
        """Let the full pages of a sequence enter the prefix cache while it still runs.

        To be called when their keys and values have been computed. Where the cache has such a
        page already, because another sequence was faster, the sequence takes that one over and
        its own goes free: read the block table anew. The pages stay locked until the sequence
        ends.

        Parameters
        ----------
        seq_id : Hashable
        tokens : array_like of int32[n], optional
            Ids of the first `n` tokens of the sequence, where it was not told them before.
            Without them, those that are known.

        Returns
        -------
        int
            How many tokens of the sequence stand in the cache now: whole pages.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        InvalidArgument
            There is no prefix cache, there are more `tokens` than the sequence has, or one of
            them is not what is known of the sequence. Nothing has changed.

        Examples
        --------
        >>> pool = jitalloc.PagePool(num_pages=64, page_size=4)
        >>> cache = jitalloc.PagedKVCache(pool, 8, 16, prefix_cache=jitalloc.PrefixCache(pool))
        >>> cache.allocate("a", tokens=range(10)), cache.allocate("b", tokens=range(10))
        (0, 0)
        >>> cache.commit("a"), cache.commit("b")  # the second finds the pages of the first
        (8, 8)
        >>> cache.block_tables(cache.rows(["a", "b"]))
        array([[0, 1, 2],
               [0, 1, 5]], dtype=int32)
        """
        if self.prefix_cache is None:
            raise InvalidArgument("prefix_cache", None, "there is none to commit to")
        ids = NO_TOKENS if tokens is None else self._as_tokens(tokens)
        with self.lock:
            pages = self._commit_row(self.row(seq_id), ids)
        if pages < 0:
            code, detail = unpack_status(pages)
            if code == POSITION_RANGE:
                raise InvalidArgument("tokens", ids.size, f"the sequence has {detail} tokens")
            raise argument_error(pages, "tokens", ids)
        return pages * self.pool.page_size

    def make_room(self, num_pages: int) -> int:
        """Let cached pages give way until so many pages are free, by the policy of their cache.

        Only if that suffices: else nothing gives way. On the CPU all calls make the room that they
        need; on the GPU a call on a batch does not, since it waits for nothing. So whoever drives
        it keeps enough pages free: for each sequence that an append may begin a page or copy its
        last one for, one page.

        Parameters
        ----------
        num_pages : int

        Returns
        -------
        int
            How many cached pages have given way; 0 where enough were free.

        Raises
        ------
        OutOfPages
            Free and reclaimable pages are fewer than `num_pages`.
        InvalidArgument
            `num_pages` is no count.
        """
        need = as_count("num_pages", num_pages)
        with self.lock:
            gone = self._make_room(need)
        if gone < 0:
            raise OutOfPages(need, unpack_status(gone)[1])
        return gone
