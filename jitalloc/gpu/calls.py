"""What every call of the GPU does: reads integers, fills up, and books in the record how it ended.

`fail` and `bit` are those of `_intrinsics`, which the compiler of the CPU knows.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import STATUS_BITS
from jitalloc.gpu.kernel import device_helper
from jitalloc.gpu.record import (
    CALLS,
    FAULT_CALL,
    FAULT_KIND,
    FAULT_STATUS,
    FAULT_VALUE,
    FAULT_WANTED,
)
from jitalloc.state import NULL


@device_helper
def integer(values, wide, i):
    """Return element `i` of an array of int32, or of int64 handed over as pairs of int32.

    So that one kernel takes lengths and counts of either type. `wide`: 0 or 1, for int64.
    """
    if wide == 0:
        return np.int64(values[i])
    low, high = np.int64(values[2 * i]), np.int64(values[2 * i + 1])
    return high << np.int64(32) | (low & np.int64(0xFFFFFFFF))


@device_helper
def put_integer(out, wide, i, value):
    """Write element `i` of an array of int32, or of int64 handed over as pairs of int32."""
    if wide == 0:
        out[i] = value
    else:
        out[2 * i] = (value << np.int64(32)) >> np.int64(32)  # its lower half, with a sign
        out[2 * i + 1] = value >> np.int64(32)


@device_helper
def fail(code, detail):
    """Return the status word of `code` and `detail`."""
    return -((np.int64(detail) << STATUS_BITS) | code)


@device_helper
def bit(index):
    """Return the mask of bit `index` in its 64-bit word."""
    return np.uint64(1) << np.uint64(index & 63)


@device_helper
def fault_key(code, position):
    """Return what stands for a failure until the first is known: the lowest key is that one."""
    return (np.int64(position) << STATUS_BITS) | code


@device_helper
def end_read(record, kind, status, value, wanted):
    """Book the end of a call that changes nothing, by one thread."""
    if status < 0 and record[FAULT_STATUS] == 0:
        record[FAULT_STATUS] = status
        record[FAULT_CALL] = record[CALLS]
        record[FAULT_KIND] = kind
        record[FAULT_VALUE] = value
        record[FAULT_WANTED] = wanted
    record[CALLS] += 1


@device_helper
def fill_null(out, start, first, step):
    """Write NULL to `out[start:]`, every `step`-th element from `first` on."""
    i = np.int64(start + first)
    while i < out.size:  # `range` would divide to know how often
        out[i] = NULL
        i += step


@device_helper
def ring_place(at, size):
    """Return the place `at` of a ring of `size`, where it is past the end but once."""
    return at - size if at >= size else at
