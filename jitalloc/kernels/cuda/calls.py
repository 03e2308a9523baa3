"""What kernels of several nouns begin with: a call of one thread, integers of either size."""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import device_helper
from jitalloc.state import CALLS, FAULT_STATUS, RESULT


@device_helper
def begins(words):
    """Count a call, and return whether it runs: not before a failure has been raised.

    `words` is the record of a pool with its slab behind it.
    """
    words[CALLS] += 1
    words[RESULT] = 0
    return words[FAULT_STATUS] == 0


@device_helper
def integer(values, wide, i):
    """Return element `i` of an array of int32, or of int64 handed over as pairs of int32.

    So that one kernel takes lengths and counts of either type. `wide`: 0 or 1, for int64.
    """
    if wide == 0:
        return np.int64(values[i])
    low, high = np.int64(values[2 * i]), np.int64(values[2 * i + 1])
    return high << np.int64(32) | (low & np.int64(0xFFFFFFFF))
