"""The loops of slots: the allocator, and the tree of prefixes that slots hold.

See `jitalloc.pool.loops` for how loops are written.
"""
