"""Programs of the machine: kernels translated once, launched often; and what that counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.ptx import streams
from tests.ptx.faults import MachineError, fault_text, races
from tests.ptx.layout import Launch, Mode
from tests.ptx.native import Native
from tests.ptx.rooms import Rooms, room
from tests.ptx.scheduler import run_grid, start_random
from tests.ptx.settings import MODES, WATCHES, settings
from tests.ptx.translate import FACTS


@dataclass
class Counts:
    """What one launch did, summed over its threads unless it says `most`.

    Attributes
    ----------
    kernel : str
    grid, block : int
        Its geometry.
    instructions, most_instructions : int
        Of PTX; most of a thread.
    most_accesses : int
        Of global memory, by a thread.
    loads, stores, atomics, bytes : int
        Of global memory.
    barriers : int
        Passed by a block.
    shared, fences, meetings : int
        Accesses of shared memory, fences, and instructions at which threads meet.
    """

    kernel: str
    grid: int
    block: int
    most_instructions: int
    most_accesses: int
    barriers: int
    instructions: int = 0
    loads: int = 0
    stores: int = 0
    atomics: int = 0
    bytes: int = 0
    shared: int = 0
    fences: int = 0
    meetings: int = 0


@dataclass
class Log:
    """What the launches of this process did and found."""

    launches: dict[str, int] = field(default_factory=dict)  # by kernel
    counting: list[list[Counts]] = field(default_factory=list)


log = Log()
_lock = threading.RLock()


def restart() -> None:
    """Begin anew with the seed: what follows runs as it would in a process of its own."""
    log.launches.clear()
    streams.restart()


@contextmanager
def counted() -> Iterator[list[Counts]]:
    """Within, each launch appends to the list what it did."""
    made: list[Counts] = []
    log.counting.append(made)
    try:
        yield made
    finally:
        log.counting.remove(made)


class Program:
    """One kernel's PTX on the machine.

    Parameters
    ----------
    name : str
        How it is called in errors and counts.
    """

    def __init__(self, name: str, ptx: str) -> None:
        self.name, self.ptx = name, ptx
        self.lines = ptx.splitlines()
        self._variants: dict[bool, Native] = {}

    def variant(self, preempt: bool) -> Native:
        """Return its machine code, with or without places where threads can be left."""
        if preempt not in self._variants:
            self._variants[preempt] = Native(self.ptx, preempt)
        return self._variants[preempt]

    def launch(
        self,
        grid: int,
        block: int,
        parameters: Sequence[int],
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        """Run it to its end.

        Parameters
        ----------
        parameters : sequence of int
            Words of 8 bytes.
        ranges : sequence of (int, int)
            Address and size in bytes of each array that it may touch.

        Raises
        ------
        MachineError
            It did what no GPU would forgive.
        """
        with _lock:
            self._launch(grid, block, parameters, ranges)

    def _launch(
        self,
        grid: int,
        block: int,
        parameters: Sequence[int],
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        number = sum(log.launches.values())
        log.launches[self.name] = log.launches.get(self.name, 0) + 1
        alone = grid * block == 1
        watched = 0 if alone else sum(WATCHES[each] for each in settings.watch)
        mode = MODES[settings.mode] if not alone else Mode.ORDER
        native = self.variant(mode == Mode.RANDOM or watched != 0)
        facts = native.facts
        if not 1 <= block <= facts["threads"] or not 1 <= grid < 2**31:
            raise MachineError(f"{self.name}: {grid} blocks of {block} threads")
        if len(parameters) != facts["parameters"]:
            raise MachineError(f"{self.name}: {len(parameters)} parameters")
        resident = min(grid, settings.resident) if mode == Mode.RANDOM else 1
        rooms = Rooms(facts, grid, block, resident, watched)
        rooms.give(parameters, ranges)
        words = rooms.words
        words[Launch.MODE], words[Launch.LIMIT] = mode, settings.limit
        words[Launch.QUANTUM] = settings.quantum
        seed = settings.seed + 7919 * number
        words[Launch.POISON] = (0x5BD1E995DEADBEEF ^ seed * 0x9E3779B97F4A7C15) % 2**62
        running, order = room("running", resident, np.int64), room("order", grid, np.int64)
        start_random(words, seed, running)
        fine = run_grid(words, rooms.blocks, running, order, rooms.template, native.address)
        where = f"{self.name} <<<{grid}, {block}>>> ({settings.mode}, seed {settings.seed})"
        if not fine:
            raise MachineError(f"{where}: {fault_text(words, self.lines, rooms.threads)}")
        found = races(words, rooms.notes, self.lines) if words[Launch.RACES] else []
        if found:
            raise MachineError(f"{where}: {'; '.join(found)}")
        if log.counting:
            made = self._count(facts, rooms)
            for each in log.counting:
                each.append(made)

    def _count(self, facts: dict[str, Any], rooms: Rooms) -> Counts:
        words = rooms.words
        names = (Launch.GRID, Launch.BLOCK, Launch.MOST_INSTRUCTIONS, Launch.MOST_ACCESSES)
        sums = rooms.counts @ np.array(facts["spans"], np.int64)
        return Counts(
            self.name,
            *(int(words[each]) for each in (*names, Launch.BARRIERS)),
            **dict(zip(FACTS, sums.tolist(), strict=True)),
        )
