"""Slots on the GPU: every kernel against the model and the CPU's slab.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_slots.py

Without a GPU and without these two set, the tests are skipped.
"""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from jitalloc import NULL, SlotAllocator
from jitalloc.errors import InvalidSlot, SlotFree
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda
from jitalloc.slots.state import LOWEST
from tests.cuda_slot_steps import CUDA_STEPS, CudaSlotPair, HostSlots, down, up
from tests.gpu import ON_DEVICE
from tests.slot_steps import SLOT_BACKGROUND
from tests.test_twins import SLOTS

pytestmark = ON_DEVICE
BLOCKS = (4, 8, 32) if _cuda.SIMULATED else (32, 64, 512)


# Twins.


def cases() -> list[tuple[str, int, int]]:
    """Every kernel with every size, in blocks of different sizes."""
    made = []
    for name in sorted(CUDA_STEPS):
        for max_slots in SLOTS:
            blocks = BLOCKS[1:2] if max_slots > 1000 else BLOCKS
            made += [(name, max_slots, threads) for threads in blocks]
    return made


@pytest.mark.parametrize(("name", "max_slots", "threads"), cases())
def test_slot_kernel_does_what_the_model_does(
    name: str, max_slots: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_device.device(), "threads", threads)
    random, pair = Random(f"{name} {max_slots}"), CudaSlotPair(max_slots)
    for _ in range(2 if max_slots > 1000 else 6):
        CUDA_STEPS[name](pair, random)
        random.choice(SLOT_BACKGROUND)(pair, random)


# Batches.


@pytest.mark.parametrize("threads", BLOCKS)
def test_batches_of_every_size_leave_the_slab_of_the_cpu(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With holes of every kind between the slots that are taken."""
    monkeypatch.setattr(_cuda_device.device(), "threads", threads)
    random = Random(threads)
    slots = HostSlots(4160)
    for free in (0.02, 0.5):
        slots.clear()
        slots.alloc_batch(4160)
        slots.free_batch([slot for slot in range(4160) if random.random() < free])
        while slots.gpu.free_count > 0:
            count = random.choice((40, 700, 4160))
            got = slots.alloc_batch(min(count, slots.gpu.free_count))
            assert got.tolist() == sorted(got.tolist())
            if random.random() < 0.5:
                slots.free_batch(np.random.default_rng(1).permutation(got)[: count // 2])


@pytest.mark.parametrize("threads", BLOCKS)
def test_null_in_a_batch_is_padding(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda_device.device(), "threads", threads)
    random, gpu, cpu = Random(threads), SlotAllocator(200, device="cuda"), SlotAllocator(200)
    taken: list[int] = []
    for _ in range(4):
        gpu.alloc_batch(cpu.free_count)
        taken += cpu.alloc_batch(cpu.free_count).tolist()
        random.shuffle(taken)
        padded = [taken.pop() if random.random() < 0.5 else NULL for _ in range(70)]
        gpu.free_batch(up(padded))
        cpu.free_batch([slot for slot in padded if slot != NULL])
        assert down(gpu._slab).tolist() == cpu._slab.tolist()
    gpu.free_batch(up([NULL] * 40))
    gpu.check()
    assert down(gpu._slab).tolist() == cpu._slab.tolist()


# Slots 0 .. 59 of 70 are taken, but for 30. Blocks of 4: a tile is four of these.
FAULTY = {
    "free": [1, 30],
    "free, in a later tile": [*range(9), 30, 9],
    "never taken": [1, 69, 65],
    "outside": [0, 70],
    "negative": [0, -2, 30],
    "twice in a tile": [5, 6, 6],
    "twice, the first of all": [5, 5],
    "twice in different tiles": [5, 6, 7, 8, 9, 10, 5],
    "twice in a later tile": [*range(13), 14, 15, 15],
    "three times": [5, 6, 5, 5],
    "twice before one that is free": [5, 5, 30],
    "twice behind one that is free": [30, 5, 5],
    "twice behind one outside": [5, 71, 5],
    "two that are wrong": [1, 2, -7, 30],
    "all of a tile": [30, 30, 61, -2],
    "all of a later tile": [1, 2, 3, 4, 62, 70, 30, 61, *range(5, 29), -3, 30, 65, 66],
    "named in an earlier tile, before one outside": [1, 2, 3, 4, 5, 1, 70, 6],
    "named in an earlier tile, behind one named twice": [1, 2, 3, 4, 5, 5, 1, 6],
    "behind padding": [NULL, 1, NULL, NULL, NULL, NULL, 30],
    "twice across padding": [5, NULL, NULL, 5, 6],
    "twice across tiles of padding": [5, *[NULL] * 70, 64, 5],
    "padding in the tile that is taken back": [1, NULL, 2, NULL, NULL, 3, 30, NULL],
    "many of one word": [*range(29), 28, *range(31, 40)],
}


@pytest.mark.parametrize("threads", BLOCKS)
@pytest.mark.parametrize("name", FAULTY)
def test_the_first_slot_that_is_wrong_is_named(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_device.device(), "threads", threads)
    slots = HostSlots(70)
    slots.alloc_batch(60)
    slots.free(30)
    before = slots.cpu._slab.tolist()
    places = [i for i, slot in enumerate(FAULTY[name]) if slot != NULL]  # no padding on the CPU
    with pytest.raises(InvalidSlot) as right:
        slots.cpu.free_batch([FAULTY[name][i] for i in places])
    with pytest.raises(InvalidSlot) as caught:
        slots.free_batch(FAULTY[name])
    assert type(caught.value) is type(right.value)
    position = places[right.value.position]
    assert (caught.value.value, caught.value.position) == (right.value.value, position)
    assert caught.value.expected == right.value.expected
    assert down(slots.gpu._slab).tolist() == before


def test_a_batch_that_fails_gives_whole_words_back() -> None:
    """The summary has to be as before: without the words that had no free slot."""
    slots = HostSlots(4160)
    slots.alloc_batch(4100)
    slots.free(64)
    with pytest.raises(SlotFree):
        slots.free_batch([*range(64), 65, 4099, 128, 4098, 64])
    assert down(slots.gpu._slab)[LOWEST] == 0
    slots.alloc_batch(60)
    with pytest.raises(SlotFree):
        slots.free_batch([4099, 3, 4099])
    slots.free_batch(range(4096, 4100))
    assert down(slots.gpu._slab)[LOWEST] == 1


def test_a_hint_above_is_found_again() -> None:
    slots = HostSlots(9000)
    slots.alloc_batch(9000)
    slots.free_batch([8999, 8200])
    slots.free_batch([5000])
    assert slots.alloc_batch(1).tolist() == [5000]
    slots.alloc_batch(2)
    assert down(slots.gpu._slab)[LOWEST] == 2
    slots.free_batch([])
    assert slots.alloc_batch(0).tolist() == []
