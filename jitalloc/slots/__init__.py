"""The other cache: one row a request. Needs nothing of the pool.

`slots` hands out rows of it, `prefix` finds which row holds the beginning of a prompt already,
`copy` copies one to another; `state` and `prefix_state` are the layouts.
"""

from jitalloc.slots.copy import copy_slot
from jitalloc.slots.prefix import SlotPrefixCache
from jitalloc.slots.records import SlotEntry, SlotMatch, SlotPrefixStats
from jitalloc.slots.slots import SlotAllocator

__all__ = [
    "SlotAllocator",
    "SlotEntry",
    "SlotMatch",
    "SlotPrefixCache",
    "SlotPrefixStats",
    "copy_slot",
]
