"""The loops: flat arrays in, flat arrays changed, a status word out. One file a noun.

A kernel `<noun>_<verb>_cpu` takes the lock of the pool, does its work through helpers of the
same noun, and gives the lock back; helpers assume that the lock is held, so that a kernel can
be built from the helpers of several nouns. Arguments stand in the order: state changed, inputs
read, outputs written, scalars.
"""
