"""What a pool answers with: plain records, copies of its state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jitalloc.choices import Order


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool looks like at one moment.

    Attributes
    ----------
    num_pages, page_size : int
    free : int
        Pages in the freelist.
    released : int
        Pages freed, but not yet merged into the freelist.
    used : int
        Pages that somebody holds (the null page not counted).
    reserved : int
        1 with a null page, else 0. `free + released + used + reserved == num_pages`.
    peak_used : int
        The most pages ever used at once.
    allocated, freed : int
        Pages handed out, and pages that came back, since the pool was made.
    merges : int
        How often released pages were merged.
    step : int
        The logical clock.
    longest_run : int or None
        Length of the longest run of consecutive free or released pages; None where it was not
        asked for (`stats(runs=False)`).
    fragmentation : float or None
        `1 - longest_run / (free + released)`; 0.0 where nothing is free.
    utilization : float
        `used / (num_pages - reserved)`.
    """

    num_pages: int
    page_size: int
    free: int
    released: int
    used: int
    reserved: int
    peak_used: int
    allocated: int
    freed: int
    merges: int
    step: int
    longest_run: int | None
    fragmentation: float | None
    utilization: float


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The complete state of a `PagePool`, independent of the pool that it was taken of.

    Attributes
    ----------
    num_pages, page_size : int
    order : str
    null_page : bool
    slab : int64[...]
        Read-only copy of the pool's slab (see `jitalloc.pool.state`).
    """

    num_pages: int
    page_size: int
    order: Order
    null_page: bool
    slab: NDArray[np.int64]
