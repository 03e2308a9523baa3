"""What a person at a terminal sees and does while a replay runs: a bar, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import FrameType

from jitalloc.replay.meter import Meter
from jitalloc.replay.request import Request


@contextmanager
def catch_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, read between two steps; a second one ends at once."""
    asked = False
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def show_progress(
    requests: Callable[[], Iterator[Request]] | None, limit: int | None
) -> Iterator[tuple[Callable[[str], None], Callable[[Meter], None] | None]]:
    """Show a bar on a terminal; yields how to name the phase, and the callback that moves it."""
    if not sys.stderr.isatty():
        yield (lambda _text: None), None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("reading the trace", total=None, now="")
        if requests is not None:
            # Reading it twice costs a percent, and finds a broken line before the replay begins.
            bar.update(task, total=sum(1 for _ in islice(requests(), limit)))

        def watch(meter: Meter) -> None:
            bar.update(
                task,
                completed=meter.finished + meter.rejected,
                now=f"{meter.finished:,} served, {meter.now:,.0f} s of virtual time",
            )

        yield (lambda text: bar.update(task, description=text)), watch


@contextmanager
def show_share() -> Iterator[tuple[Callable[[str], None], Callable[[str, float], None] | None]]:
    """Show a bar on a terminal; yields how to name the phase, and to say how much is done."""
    if not sys.stderr.isatty():
        yield (lambda _text: None), None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("sweeping", total=None)

        def watch(text: str, share: float) -> None:
            bar.update(task, description=text, total=1.0, completed=share)

        yield (lambda text: bar.update(task, description=text)), watch
