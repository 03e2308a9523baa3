"""How a kernel that one thread runs, for a host that waits for it, begins its call.

`words` is the record of a pool with its slab behind it.
"""

from __future__ import annotations

from jitalloc._cuda import device_helper
from jitalloc.state import CALLS, FAULT_STATUS, RESULT


@device_helper
def begins(words):
    """Count a call, and return whether it runs: not before a failure has been raised."""
    words[CALLS] += 1
    words[RESULT] = 0
    return words[FAULT_STATUS] == 0
