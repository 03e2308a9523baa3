"""The PTX machine: runs what numba-cuda compiles on the CPU, with true warps, blocks and barriers.

    JITALLOC_GPU=machine pytest -m gpu

`JITALLOC_GPU_MODE`: `order` (default), `reversed`, or `random` by `JITALLOC_GPU_SEED`, where
threads are left at barriers, atomics and accesses of global memory, and streams do their work late.
`JITALLOC_GPU_WATCH`: `race`, accesses that nothing orders; `weak`, stores that others see late.
`JITALLOC_GPU_QUANTUM`: mean number of accesses until a thread is left; `JITALLOC_GPU_LIMIT`:
instructions of a thread that are thought to be an endless loop. See `settings`.

Outside of pytest: `tests.ptx.install.install()`, then `PagePool(..., device="cuda")`;
`with tests.ptx.machine.counted() as launches:` counts what launches do.

parser, flow      PTX as text to instructions, basic blocks, and registers that have to be kept
translate         to one native function, which runs a thread up to its next meeting point
arithmetic, memory, meeting      the instructions
native            LLVM IR to machine code, kept on disk
compiled, layout  what native code and the machine's own loops share
scheduler, warps, checks, watch, races, weak     the grid, its threads; what they must not do
settings, rooms, faults, machine     launches, their memory, what is wrong with them, their counts
device_memory, streams, cupy, install     a stand-in for CuPy whose GPU this is

Unknown instructions are errors. Not there: floating point, functions that are called, local and
dynamic shared memory, textures; what ptxas makes of PTX; time; a second GPU.
"""
