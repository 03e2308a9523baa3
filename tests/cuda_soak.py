"""Random calls on pools, sequences and prefix caches of the GPU, beside those of the CPU.

`python -m tests.cuda_soak 3600 1` runs so many seconds from a seed on, each history with sizes,
orders and blocks of its own. With `JITALLOC_GPU=machine` that is the compiled code on the CPU, its
threads interleaved by a seed that differs from history to history as well.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from jitalloc.gpu import device as _cuda_device
from jitalloc.prefix.state import PREFIX_POLICIES
from tests.ptx import install
from tests.ptx.settings import settings

ORDERS = ("sorted", "fifo", "lifo")


def pool_options(random: Random) -> dict[str, Any]:
    """Return the options of a small pool."""
    return {
        "num_pages": random.randrange(20, 90),
        "page_size": random.choice((1, 2, 3, 4, 8)),
        "order": random.choice(ORDERS),
        "null_page": random.random() < 0.3,
    }


def pool_history(random: Random) -> int:
    stress = importlib.import_module("tests.cuda_stress").Stress
    order, null_page = random.choice(ORDERS), random.random() < 0.3
    run = stress(
        random.randrange(2**31), random.randrange(50, 400), order=order, null_page=null_page
    )
    run.run(400, 100)
    return int(run.done)


def rows_history(random: Random, shared: bool = False) -> int:
    pairs = importlib.import_module("tests.cuda_cache_pairs")
    call = importlib.import_module("tests.test_cuda_sequences").random_call
    policy = {"policy": random.choice(PREFIX_POLICIES)} if shared else None
    both = pairs.Both(pool_options(random), random.randrange(2, 12), 12, policy)
    for _ in range(120):
        call(both, random, shared)
    both.device.check(held=[])
    return 120


def shared_history(random: Random) -> int:
    return rows_history(random, shared=True)


def prefix_history(random: Random) -> int:
    pair = importlib.import_module("tests.cuda_prefix_pairs").CudaPrefixPair
    steps = importlib.import_module("tests.cuda_prefix_steps")
    run = pair(**pool_options(random), policy=random.choice(PREFIX_POLICIES))
    for _ in range(60):
        random.choice([*steps.CUDA_STEPS.values(), *steps.HOST_STEPS.values(), *steps.BACKGROUND])(
            run, random
        )
    return 60


HISTORIES: dict[str, Callable[[Random], int]] = {
    "pool": pool_history,
    "sequences": rows_history,
    "sequences behind a prefix cache": shared_history,
    "prefix cache": prefix_history,
}


def soak(seconds: float, seed: int) -> Counter[str]:
    """Run histories for `seconds`; return how many calls were made on what."""
    calls: Counter[str] = Counter()
    device: Any = _cuda_device.device()
    most, end = device.threads, time.monotonic() + seconds
    while time.monotonic() < end:
        seed += 1
        random = Random(seed)
        name = random.choice([*HISTORIES])
        device.threads = random.choice((32, 64, 128, most))
        if install.ASKED:
            settings.seed, settings.mode = seed, random.choice(("random", "random", "reversed"))
        try:
            calls[name] += HISTORIES[name](random)
        except BaseException:
            print(f"{name}, seed {seed}, blocks of {device.threads}", flush=True)
            raise
        finally:
            device.threads = most
    return calls


if __name__ == "__main__":
    if install.ASKED:
        install.install()
    first = int(sys.argv[2])
    made = soak(float(sys.argv[1]), first)
    print(f"from seed {first} on, none disagrees:", dict(made), "in all", sum(made.values()))
