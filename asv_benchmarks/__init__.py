"""Benchmarks of jitalloc: one file a noun, one class a promise.

A name that ends in `_x1000` times a loop of 1,000 calls: read milliseconds as microseconds a call.
The loop stands in the body because asv runs `setup` before each sample, and then one call a sample.
A parameter `design` puts jitalloc beside the textbook designs of `baselines.py`, in one run.

`bench_pool`       alloc, contiguous runs, batches, merge; import, first call, threads
`bench_owners`     free, free groups, slots, sharing, reference counts
`bench_tokens`     slots for prompts and for decoding
`bench_upkeep`     statistics, checks, packing, resizing, snapshots
`bench_rows`       sequences that begin and end
`bench_sequences`  decode steps, prefill, fork, copy-on-write, beam search, truncation
`bench_eviction`   who gives way, by policy
`bench_prefix`     prompts that begin alike: match, insert
`bench_reclaim`    cached pages that give way, by policy
`bench_prefix_upkeep`  checking, saving and moving what is cached
`bench_sharing`    sequences that share cached pages
`bench_tables`     the layouts that attention kernels read
`bench_mirror`     block tables of the CPU followed on a GPU
`bench_slots`      cache slots: one at a time, in batches, copied
`bench_slot_tree`  the longest prefix that a slot holds
`bench_slot_entries`  entries of the prefix cache that come and give way
`bench_slot_table`  making such a cache, the entry of a slot, clearing
`bench_slot_prefix`  checking it
`bench_cuda`       pools on the GPU: time where there is one, registers of their kernels elsewhere
`bench_replay`     recorded and generated traffic through all of it

Importing this package compiles all kernels. asv imports it once and forks a process for each
benchmark, so none of them times a compiler, not even in the first sample.
"""

import jitalloc

jitalloc.warmup()
