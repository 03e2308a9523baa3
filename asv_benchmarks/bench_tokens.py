"""Slots for tokens: prompts and decode steps of a whole batch in one call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import jitalloc
from asv_benchmarks import baselines

number = 1
repeat = 25
TOKENS = 1_600_000  # of every pool here, whatever its page size


def make(design: str, page_size: int) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """Return a pool of a design, and its `alloc_extend` and `alloc_decode`."""
    num_pages = TOKENS // page_size
    if design == "jitalloc":
        pool = jitalloc.PagePool(num_pages, page_size)
        return pool, pool.alloc_extend, pool.alloc_decode
    if design == "numpy":
        array = baselines.NumpyPool(num_pages)
        calls = baselines.numpy_extend, baselines.numpy_decode
        return array, partial(calls[0], array, page_size), partial(calls[1], array, page_size)
    owners = baselines.DictPool(num_pages)
    calls = baselines.python_extend, baselines.python_decode
    return owners, partial(calls[0], owners, page_size), partial(calls[1], owners, page_size)


def whole(batch: int, tokens: int) -> tuple[NDArray[np.int64], ...]:
    """Return the lengths of prompts that begin at token 0: `(prefix_lens, seq_lens, last)`."""
    return np.zeros(batch, np.int64), np.full(batch, tokens), np.full(batch, -1)


class Extend:
    """`alloc_extend` of 256 prompts of 256 tokens, and `free` of their pages. Held to 100 us.

    Beside it whole-array NumPy, a loop over pages in Python, and `limit`: writing as many slots.
    """

    params = (("jitalloc", "numpy", "python", "limit"), (1, 16, 24, 64))
    param_names = ("design", "page_size")
    repeat = 10

    def setup(self, design: str, page_size: int) -> None:
        self.out = np.empty(256 * 256, np.int64)
        if design == "limit":
            return
        self.pool, self.extend, _decode = make(design, page_size)
        self.lengths = whole(256, 256)
        firsts = np.arange(256)[:, None] * 256 + np.arange(0, 256, page_size)
        self.firsts = firsts.ravel()  # where in the slots a page begins
        self.free_pages(self.extend(*self.lengths), design, page_size)

    def free_pages(self, slots: NDArray[np.int64], design: str, page_size: int) -> None:
        pages = (slots[self.firsts] // page_size).astype(np.int32)
        self.pool.free(pages.tolist() if design == "python" else pages)

    def time_extend_free_x10(self, design: str, page_size: int) -> None:
        if design == "limit":
            for _ in range(10):
                self.out.fill(1)
            return
        for _ in range(10):
            self.free_pages(self.extend(*self.lengths), design, page_size)


class ExtendFreeSlots:
    """The same prompts, given back by `free_slots` of every token.

    A prompt arrives whole, or as 100 tokens and then 156: the second chunk fills a page first.
    """

    params = ((1, 16, 24, 64), ("whole", "chunks"))
    param_names = ("page_size", "prompt")
    repeat = 10

    def setup(self, page_size: int, prompt: str) -> None:
        self.pool, self.extend, _decode = make("jitalloc", page_size)
        self.chunks = whole(256, 256 if prompt == "whole" else 100)
        self.slots = np.empty(256 * 256, np.int64)
        self.ends = np.arange(1, 257) * 100 - 1  # where in the slots a first chunk ends
        self.step(prompt)

    def step(self, prompt: str) -> None:
        slots = self.slots
        if prompt == "whole":
            self.extend(*self.chunks, out=slots)
        else:
            first, lengths = slots[: 256 * 100], self.chunks[1]
            self.extend(*self.chunks, out=first)
            self.extend(lengths, lengths + 156, first[self.ends], out=slots[256 * 100 :])
        self.pool.free_slots(slots)

    def time_extend_free_slots_x10(self, page_size: int, prompt: str) -> None:
        for _ in range(10):
            self.step(prompt)


class Given:
    """A prompt of 1,000 tokens looked up where nothing is cached, by what it is given as.

    Held to 15 us for a list. What is no int32 is converted, what is no array looked at.
    """

    params = (("int32", "int64", "list", "list of one list", "list of int64"),)
    param_names = ("kind",)

    def setup(self, kind: str) -> None:
        self.cache = jitalloc.PrefixCache(jitalloc.PagePool(100, 16))
        tokens = np.arange(1000) * 130
        self.tokens = {
            "int32": tokens.astype(np.int32),
            "int64": tokens,
            "list": tokens.tolist(),
            "list of one list": [tokens.tolist()],
            "list of int64": list(tokens),
        }[kind]
        self.cache.release(self.cache.match(self.tokens))

    def time_match_x100(self, kind: str) -> None:
        for _ in range(100):
            self.cache.release(self.cache.match(self.tokens))


class DecodeLengths:
    """100 decode steps of 1,024 sequences within their pages, by the dtypes of what is given.

    Held to 2 us, whatever the dtype of the lengths.
    """

    params = (("int64", "int32"), ("int64", "int32"))
    param_names = ("lengths", "slots")

    def setup(self, lengths: str, slots: str) -> None:
        self.pool = jitalloc.PagePool(1024)
        made = self.pool.alloc_extend(*whole(1024, 3))[2::3]
        self.lengths, self.last = np.full(1024, 4, lengths), made.astype(slots)
        self.pool.alloc_decode(self.lengths, self.last)

    def time_decode_x100(self, lengths: str, slots: str) -> None:
        for _ in range(100):
            self.pool.alloc_decode(self.lengths, self.last)


class Decode:
    """100 decode steps of a batch whose sequences cross into new pages in turn.

    Held to 1.5 us for 256 and 2.5 us for 1,024 sequences (page size 16).
    """

    params = (("jitalloc", "numpy", "python"), (16, 256, 1024), (16, 24))
    param_names = ("design", "sequences", "page_size")

    def setup(self, design: str, sequences: int, page_size: int) -> None:
        _pool, extend, self.decode = make(design, page_size)
        none, _full, last = whole(sequences, 0)
        lengths = np.arange(sequences) % page_size + 1
        self.last = extend(none, lengths, last)[np.cumsum(lengths) - 1]
        self.steps = [lengths + step for step in range(1, 102)]
        self.last = self.decode(self.steps.pop(0), self.last)

    def time_decode_x100(self, design: str, sequences: int, page_size: int) -> None:
        decode, last = self.decode, self.last
        for lengths in self.steps:
            last = decode(lengths, last)


class DecodeInto:
    """The same steps into one buffer: what the result array costs."""

    params = ((256, 1024),)
    param_names = ("sequences",)

    def setup(self, sequences: int) -> None:
        Decode.setup(self, "jitalloc", sequences, 16)  # type: ignore[arg-type]

    def time_decode_x100(self, sequences: int) -> None:
        decode, last = self.decode, self.last
        for lengths in self.steps:
            decode(lengths, last, out=last)
