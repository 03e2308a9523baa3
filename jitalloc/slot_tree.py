"""Finding the longest prefix that a slot holds already."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from jitalloc.errors import InvalidArgument
from jitalloc.kernels.slot_tree import slot_tree_find_cpu
from jitalloc.slot_records import SlotMatch
from jitalloc.slot_table import SlotTable
from jitalloc.state import INT64

_empty = np.empty


class SlotTree(SlotTable):
    """The part of `SlotPrefixCache` that looks tokens up."""

    __slots__ = ()

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
