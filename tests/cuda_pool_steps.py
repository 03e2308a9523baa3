"""The step that runs each CUDA kernel: the one of its twin. `test_house.py` holds this complete."""

from __future__ import annotations

from random import Random

from jitalloc import NULL
from tests.pairs import PoolPair
from tests.twin_steps import POOL_STEPS, Step, a_prompt, steps_of_twins

# Kernels of the CPU that have no twin, and why a pool on the GPU does without.
WITHOUT_TWIN = {
    "tokens_decode_narrow_cpu": "the kernel of the GPU takes lengths of either width",
    "forking_hold_cpu": "a child of a fork cannot use the GPU of its parent",
    "tokens_total_cpu": "sizes a buffer that the caller of a GPU brings",
    "upkeep_check_cpu": "runs on a copy of the state",
    "upkeep_stats_cpu": "runs on a copy of the state",
    "upkeep_copy_cpu": "a copy is made by the array library",
    "upkeep_retire_cpu": "no other thread is inside: calls are ordered by the stream",
    "upkeep_unlock_cpu": "no other thread is inside: calls are ordered by the stream",
}
# Launched only where there is very much to do.
LARGE_ONLY = {
    "pool_total_cuda",
    "owners_take_off_cuda",
    "owners_free_ring_cuda",
    "owners_mark_slots_cuda",
    "owners_free_slots_ring_cuda",
}
CUDA_STEPS: dict[str, Step] = steps_of_twins(POOL_STEPS)


def pad(lists: tuple[list[int], ...], random: Random) -> None:
    """Put padding into a batch of sequences; the second list is of their lengths."""
    for _ in range(random.randrange(4)):
        place = random.randrange(len(lists[1]) + 1)
        for values in lists:
            values.insert(place, NULL if values is lists[1] else random.randrange(-9, 1000))


def padded_decode(pair: PoolPair, random: Random) -> None:
    batch = [a_prompt(pair, random) for _ in range(random.choice((0, 1, 5, 40)))]
    last_slots, seq_lens = [last for _, last in batch], [tokens + 1 for tokens, _ in batch]
    pad((last_slots, seq_lens), random)
    pair.call("alloc_decode", seq_lens, last_slots)


def padded_extend(pair: PoolPair, random: Random) -> None:
    batch = [a_prompt(pair, random) for _ in range(random.randrange(6))]
    prefix_lens, last_slots = ([each[i] for each in batch] for i in (0, 1))
    seq_lens = [tokens + random.randrange(9) for tokens in prefix_lens]
    pad((prefix_lens, seq_lens, last_slots), random)
    pair.call("alloc_extend", prefix_lens, seq_lens, last_slots)


def decode(pair: PoolPair, random: Random) -> None:
    random.choice((POOL_STEPS["tokens_decode_cpu"], padded_decode))(pair, random)


def extend(pair: PoolPair, random: Random) -> None:
    random.choice((POOL_STEPS["tokens_extend_cpu"], padded_extend))(pair, random)


CUDA_STEPS |= {"tokens_decode_cuda": decode, "tokens_extend_cuda": extend}
