"""First contact with a GPU: `python -m tests.gpu_first`, at most eight minutes.

Results go to a folder. The most valuable questions come first, each in a process of its own with
a time limit, so that one that hangs or dies costs only itself: do the images load, are the answers
right, how long does a call take on the GPU, and what do the sanitizers say. On a machine without
a GPU `python -m tests.gpu_first build FOLDER` compiles all kernels beforehand, and
`JITALLOC_GPU=machine python -m tests.gpu_first` is a rehearsal.
"""
