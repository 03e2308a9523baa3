"""The loops of the pool: flat arrays in, flat arrays changed, a status word out.

A kernel `<noun>_<verb>_cpu` takes the lock of the slab, does its work through helpers, and gives
the lock back; helpers assume that the lock is held, so that a kernel can be built from those of
several nouns. Arguments stand in the order: state changed, inputs read, outputs written, scalars.

Its twin `<noun>_<verb>_cuda` stands in the file beside it, and names it in its decorator. It gets
the slab, its record (`jitalloc.gpu.record`), inputs and outputs, and never waits for another
block: each block looks at the whole batch by itself, all come to the same verdict, each writes its
share of the results, and the last one to be done books the call in the header. Where pages have to
be merged first, the others leave all of it to that one; but with very many pages, launches of their
own come before, in which all blocks count and merge (`merging_cuda`).
"""
