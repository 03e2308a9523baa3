"""The PTX machine: runs what numba-cuda compiles on the CPU, with true warps, blocks and barriers.

parser, flow      PTX as text to instructions, basic blocks, and registers that have to be kept
translate         to one native function, which runs a thread up to its next meeting point
arithmetic, memory, meeting      the instructions
native            LLVM IR to machine code, kept on disk
scheduler, warps, checks, races, weak      the grid, its blocks and threads; what they must not do
machine           programs and their launches; what each counted and found
cupy              a stand-in for CuPy whose GPU this is
"""
