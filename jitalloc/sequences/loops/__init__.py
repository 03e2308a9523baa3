"""The loops of block tables, each beside its twin for the GPU; see `jitalloc.pool.loops`.

`tables` and `mirror` export; `rows`, `sequences`, `eviction` change; `sharing`, `committing` and
`row_locks` are what a prefix cache adds, on the host.
"""
