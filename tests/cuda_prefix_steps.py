"""Random calls of a prefix cache on a pool of the GPU, for `test_cuda_prefix.py`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from jitalloc import errors
from tests.cuda_prefix_pairs import CudaPrefixPair
from tests.prefix_pairs import spell

Step = Callable[[CudaPrefixPair, Random], Any]


def prompt(pair: CudaPrefixPair, random: Random) -> list[int]:
    """Tokens that often begin like others, the last page cut short, now and then with a slip."""
    size = pair.model.page_size
    tokens = spell("".join(random.choices("aab", k=1 + random.randrange(6))), size)
    tokens = tokens[: len(tokens) - random.randrange(size)]
    if tokens and random.random() < 0.2:
        tokens[random.randrange(len(tokens))] = random.choice((7, 8))
    return tokens


def a_namespace(random: Random) -> Any:
    return random.choice((None, None, "other", 7))


def match(pair: CudaPrefixPair, random: Random) -> None:
    most = random.choice((None, random.randrange(12)))
    pair.look_up(prompt(pair, random), a_namespace(random), max_tokens=most)


def lookup(pair: CudaPrefixPair, random: Random) -> None:
    pair.do("lookup", prompt(pair, random), a_namespace(random))


def touch(pair: CudaPrefixPair, random: Random) -> None:
    pair.do("touch", prompt(pair, random), a_namespace(random))


def invalidate(pair: CudaPrefixPair, random: Random) -> None:
    if random.random() < 0.5:
        start = random.randrange(6) * random.randrange(2)
        pair.do("invalidate", prompt(pair, random), a_namespace(random), start=start)
    else:
        pages = [random.randrange(pair.model.num_pages + 1) for _ in range(2)]
        pair.do("invalidate", pages=pages)


def pin(pair: CudaPrefixPair, random: Random) -> None:
    pair.look_up(prompt(pair, random), a_namespace(random), "pin")


def release(pair: CudaPrefixPair, random: Random) -> None:
    """What is held, or twice what was."""
    if not pair.matches:
        match(pair, random)
    if pair.matches:
        library, model = random.choice(pair.matches)
        pair.give_back(pair.matches.index((library, model)))
        name = "unpin" if random.random() < 0.5 else "release"
        assert pair.compare(
            lambda: getattr(pair.cache, name)(library), lambda: pair.cache_model.release(model)
        ) == (errors.NotLocked,)


def match_batch(pair: CudaPrefixPair, random: Random) -> None:
    prompts = [prompt(pair, random) for _ in range(random.randrange(4))]
    spaces = [a_namespace(random) for _ in prompts]
    tokens = [token for each in prompts for token in each]
    bounds = [sum(map(len, prompts[:i])) for i in range(len(prompts) + 1)]
    step = pair.model.step
    most = [random.randrange(20) for _ in prompts]
    models = [
        pair.cache_model.match(*each, max_tokens=cap)
        for *each, cap in zip(prompts, spaces, most, strict=True)
    ]
    pair.model.step = step + 1  # one call is one step
    batch = pair.cache.match_batch(tokens, bounds, spaces, max_tokens=most)
    assert [page for each in models for page in each.pages] == batch.pages.tolist()
    assert [each.partial[0] for each in models] == batch.partial_pages.tolist()
    pair.agree()
    if random.random() < 0.5:
        pair.call("defragment")
        step += 1
    for each in models:
        pair.cache_model.release(each)
    pair.model.step = step + 2
    pair.cache.release(batch)
    pair.agree()


def insert(pair: CudaPrefixPair, random: Random) -> None:
    """Right pages mostly, and wrong ones: free, cached, named twice, of no pool."""
    tokens = prompt(pair, random)
    options: dict[str, Any] = {}
    if pair.cache_model.policy == "priority":
        options["priority"] = random.choice((None, 0, 35, 80))
        options["lifetime"] = random.choice((None, 1, 6, 15))
    if random.random() < 0.7:
        pair.store(tokens, a_namespace(random), **options)
        return
    tokens[0] = random.randrange(3)
    count = len(tokens) // pair.model.page_size
    pages = [random.randrange(-1, pair.model.num_pages + 1) for _ in range(count)]
    pair.do("insert", tokens, pages, a_namespace(random), **options)


def evict(pair: CudaPrefixPair, random: Random) -> None:
    pair.do("evict", random.randrange(5))


def clear(pair: CudaPrefixPair, random: Random) -> None:
    while pair.matches and random.random() < 0.8:
        pair.give_back()
    pair.do("clear")


def rename(pair: CudaPrefixPair, random: Random) -> None:
    pair.call("defragment")


def resize(pair: CudaPrefixPair, random: Random) -> None:
    pair.call("resize", max(12, min(pair.model.num_pages + random.choice((-2, 0, 3)), 40)))


def roots(pair: CudaPrefixPair, random: Random) -> None:
    """A new namespace, while those that nobody uses are forgotten."""
    for each in (pair.cache.cpu, pair.cache.view.device_cache):
        each._namespaces.sweep_at = 0
    pair.store(spell("ab", pair.model.page_size), random.random())
    assert pair.cache.cpu._namespaces.numbers == pair.cache.view._namespaces.numbers


CUDA_STEPS: dict[str, Step] = {
    "upkeep_advance_cuda": match,
    "prefix_fetch_cuda": insert,
    "prefix_insert_cuda": insert,
    "prefix_upkeep_rename_cuda": rename,
}
# What runs on the host alone, or is told the pool by a kernel of its own.
HOST_STEPS: dict[str, Step] = {
    "lookup": lookup,
    "touch": touch,
    "invalidate": invalidate,
    "match_batch": match_batch,
    "pin": pin,
    "release": release,
    "resize": resize,
    "roots": roots,
    "clear": clear,
    "evict": evict,
}
BACKGROUND: tuple[Step, ...] = (insert, insert, match, pin, release, release, evict)
# Kernels of the CPU that have no twin, and why a cache on a pool of the GPU does without.
WITHOUT_TWIN = dict.fromkeys(
    (
        "prefix_lookup_cpu",
        "prefix_match_cpu",
        "prefix_match_batch_cpu",
        "prefix_pin_cpu",
        "prefix_release_cpu",
        "prefix_touch_cpu",
        "prefix_upkeep_check_cpu",
        "prefix_upkeep_copy_cpu",
        "prefix_upkeep_resize_cpu",
        "prefix_upkeep_roots_cpu",
        "prefix_upkeep_unlock_cpu",
        "reclaim_choose_cpu",
        "reclaim_count_cpu",
        "reclaim_invalidate_cpu",
        "reclaim_past_cpu",
        "reclaim_room_cpu",
    ),
    "runs on the index, which lives on the host",
)
WITHOUT_TWIN |= dict.fromkeys(
    ("reclaim_clear_cpu", "reclaim_evict_cpu"), "`reclaim_choose_cpu`, then a free of the pool"
)
