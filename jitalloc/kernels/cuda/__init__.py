"""The loops of the GPU: `pool_alloc_cuda` does what `pool_alloc_cpu`, its twin, does.

Which loop of the CPU that is, the decorator of each kernel says. A kernel gets the slab of the
pool, its record (`jitalloc.state`), inputs and outputs. It never waits for another block: each
block looks at the whole batch by itself, all come to the same verdict, each writes its share of
the results, and the last one to be done books the call in the header. Where pages have to be
merged first, the others leave all of it to that one; but with very many pages, launches of their
own come before, in which all blocks count and merge (`merging`).
"""
