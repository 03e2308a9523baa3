"""The one door to CUDA: compile, load, launch, report a fault, scan a block.

Nothing of CUDA is imported before somebody asks for a device. Files of kernels take decorators
and `gpu`, which stands for `numba.cuda`, from `kernel`; facades ask `device` for a device and get
a `CupyDevice` or, under Numba's simulator, one of the host; `slab` owns arrays there and
launches; `record` is what calls leave for the host. Of `scan` and `calls` kernels are built.
"""
