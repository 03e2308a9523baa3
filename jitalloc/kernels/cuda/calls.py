"""What kernels of several nouns read: integers of either size."""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import device_helper


@device_helper
def integer(values, wide, i):
    """Return element `i` of an array of int32, or of int64 handed over as pairs of int32.

    So that one kernel takes lengths and counts of either type. `wide`: 0 or 1, for int64.
    """
    if wide == 0:
        return np.int64(values[i])
    low, high = np.int64(values[2 * i]), np.int64(values[2 * i + 1])
    return high << np.int64(32) | (low & np.int64(0xFFFFFFFF))
