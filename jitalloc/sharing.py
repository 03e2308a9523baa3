"""Sequences and the prefix cache: what enters it, and how many pages are whose."""

from __future__ import annotations

from collections.abc import Hashable

from numpy.typing import ArrayLike

from jitalloc.errors import InvalidArgument, argument_error
from jitalloc.kernels.sharing import sharing_commit_cpu
from jitalloc.saving import SequenceSaving
from jitalloc.state import LENGTH, NO_TOKENS


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
            row = self.row(seq_id)
            length = int(self.tables.arrays.columns[LENGTH, row])
            if ids.size > length:
                raise InvalidArgument("tokens", ids.size, f"the sequence has {length} tokens")
            pages = self.pool._run(sharing_commit_cpu, self.tables._slab, self._prefix, row, ids)
        if pages < 0:
            raise argument_error(pages, "tokens", ids)
        return pages * self.pool.page_size
