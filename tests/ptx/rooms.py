"""Memory of a launch: its words, what its blocks and threads take, what is watched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from tests.ptx import checks, watch
from tests.ptx.layout import (
    CLOCK_FIELDS,
    MOST_NOTES,
    NOTE_FIELDS,
    SHADOW_FIELDS,
    Block,
    Launch,
    Table,
    Thread,
    Watch,
)
from tests.ptx.races import CLOCKS_A_BLOCK

MOST_LOCATIONS = 1 << 16  # words whose atomics hand on what lies before a fence
MOST_CLOCKS = 1 << 22  # of all such words and blocks
MOST_WEAK = 1 << 20  # words of blocks that are seen late

_numbers = itertools.count(1)
_kept: dict[str, Any] = {}  # launches run one after the other: what one has used, the next takes


def room(name: str, size: int, dtype: Any) -> Any:
    """Return an array that stays for later launches; contents undefined."""
    found = _kept.get(name)
    if found is None or found.size < size:
        found = _kept[name] = np.empty(2 * size, dtype)
    return found[:size]


@cache
def _weak() -> Any:
    """Return the table of weak memory; what other launches have left in it does not count."""
    return np.zeros(MOST_WEAK * Table.WORDS, np.int64)


def spans_of(ranges: Sequence[tuple[int, int]]) -> tuple[Any, int]:
    """Return ranges without overlap: first and last address, number of the first word; words."""
    made: list[list[int]] = []
    for first, size in sorted(ranges):
        first, last = first & -4, (first + size + 3) & -4
        if made and first <= made[-1][1]:
            made[-1][1] = max(last, made[-1][1])
        else:
            made.append([first, last, 0])
    words = 0
    for each in made:
        each[2] = words
        words += (each[1] - each[0]) >> 2
    return np.array(made, np.int64).reshape(-1, 3), words


class Rooms:
    """All arrays of one launch; kept while it runs.

    Attributes
    ----------
    words : numpy.ndarray
        int64: the `Launch`.
    """

    def __init__(
        self, facts: dict[str, Any], grid: int, block: int, resident: int, watched: int
    ) -> None:
        self.grid, self.watched = grid, watched
        self.words = np.zeros(Launch.WORDS, np.int64)
        self.kept: list[Any] = []
        size = facts["shared_bytes"]
        width = Thread.REGISTERS + facts["slots"]
        self.threads = room("threads", resident * block * width, np.int64)
        self.blocks = room("blocks", grid * Block.WORDS, np.int64).reshape(grid, Block.WORDS)
        self.counts = np.zeros(len(facts["spans"]), np.int64)
        self.notes = room("notes", MOST_NOTES * NOTE_FIELDS, np.int64)
        sites = np.zeros(2 * facts["sites"] + 2, np.int64)
        sites[::2] = -1
        self.point(Launch.BLOCKS, self.blocks)
        self.point(Launch.THREADS, self.threads)
        self.point(Launch.COUNTS, self.counts)
        self.point(Launch.NOTES, self.notes)
        self.point(Launch.SITES, sites)
        self.point(Launch.SHARED, room("shared", resident * size, np.uint8))
        self.point(Launch.WRITTEN, room("written", resident * size, np.uint8))
        self.point(
            Launch.SHADOWS, room("shadows", resident * (size >> 2) * SHADOW_FIELDS, np.int32)
        )
        self.template = np.zeros(size, np.uint8)
        for at, length in facts["shared"]:
            self.template[at : at + length] = checks.BLANK
        words = self.words
        words[Launch.GRID], words[Launch.BLOCK], words[Launch.WATCH] = grid, block, watched
        words[Launch.SHARED_BYTES], words[Launch.THREAD_WORDS] = size, width
        words[Launch.RESIDENT] = resident
        words[Launch.GLOBAL_CHECK] = checks.global_check()
        words[Launch.SHARED_CHECK] = checks.shared_check()
        if watched:
            words[Launch.WATCH_LOAD] = watch.watch_load()
            words[Launch.WATCH_STORE] = watch.watch_store()
            words[Launch.WATCH_ATOMIC] = watch.watch_atomic()
            words[Launch.WATCH_FENCE] = watch.watch_fence()

    def point(self, word: Launch, array: Any) -> None:
        """Let a word of the launch point to an array."""
        self.kept.append(array)
        self.words[word] = array.ctypes.data

    def give(self, parameters: Sequence[int], ranges: Sequence[tuple[int, int]]) -> None:
        """Put in the parameters of a launch, and what it may touch."""
        ranges = [each for each in ranges if each[1]]
        self.point(Launch.PARAMS, np.array([x % 2**64 for x in parameters], np.uint64))
        self.point(Launch.RANGES, np.array(ranges, np.int64).reshape(-1, 2))
        self.words[Launch.NUM_RANGES] = len(ranges)
        if self.watched:
            self._watch(ranges)

    def _watch(self, ranges: Sequence[tuple[int, int]]) -> None:
        spans, count = spans_of(ranges)
        self.point(Launch.SPANS, spans)
        self.words[Launch.NUM_SPANS] = len(spans)
        if self.watched & Watch.RACE:
            clocks = self.grid**2 * CLOCKS_A_BLOCK * CLOCK_FIELDS
            most = min(4 * count + 64, MOST_CLOCKS // self.grid, MOST_LOCATIONS)
            places = 1 << max(most.bit_length() - 1, 1)
            handed_on = places // 2 * self.grid * CLOCK_FIELDS
            self.point(Launch.GLOBAL_SHADOWS, np.zeros(count * SHADOW_FIELDS + 1, np.int32))
            self.point(Launch.CLOCKS, np.zeros(clocks, np.int64))
            self.point(Launch.LOCATIONS, np.zeros(2 * places, np.int64))
            self.point(Launch.LOCATION_CLOCKS, np.zeros(handed_on, np.int64))
            self.words[Launch.LOCATION_ROOM] = places
        if self.watched & Watch.WEAK:
            size = min(1 << (2 * self.grid * count + 64).bit_length(), MOST_WEAK)
            self.words[Launch.WEAK_ROOM] = size
            self.words[Launch.NUMBER] = next(_numbers)
            self.point(Launch.WEAK, _weak())
