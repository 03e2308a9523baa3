"""The pool over virtual time as a picture. Needs matplotlib: the extra `plot`."""

from __future__ import annotations

import io
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import Final

from jitalloc.errors import InvalidArgument, JitallocError
from jitalloc.replay.report import Report, describe, write_atomically

SUFFIXES: Final = (".png", ".svg", ".pdf")

USED, FREE, PIECES, RUNNING, WAITING = "#2a6f97", "#e3e8ec", "#b5542b", "#2a6f97", "#d9a441"


def check_plot(path: str | PathLike[str]) -> None:
    """Refuse a picture that could not be drawn; called before a replay that takes minutes.

    Raises
    ------
    InvalidArgument
        For a file name that ends in anything but .png, .svg or .pdf.
    JitallocError
        Where matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InvalidArgument("plot", fspath(path), f"the name must end in {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise JitallocError("a plot needs matplotlib: pip install 'jitalloc[plot]'")


def save_plot(report: Report, path: str | PathLike[str]) -> None:
    """Draw occupancy, fragmentation and batch of a report over virtual time.

    Parameters
    ----------
    report : Report
    path : str or path-like
        Ends in .png, .svg or .pdf. A file of that name is replaced in one step.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    serve = report.options.mode == "serve"
    samples = [*report.samples, report.samples[-1]]  # the last one is drawn to the end
    end = report.virtual_seconds if serve else report.requests.finished
    scale, axis = 1.0, "virtual time in seconds" if serve else "requests, one after another"
    if serve and end > 300:
        scale, axis = 60.0, "virtual time in minutes"
    time = [each.start / scale for each in report.samples] + [(end or 1) / scale]
    pages = report.options.num_pages

    figure = Figure(figsize=(10, 7.5 if serve else 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(describe(report) + (" · interrupted" if report.interrupted else ""))
    panels = figure.subplots(
        3 if serve else 2, 1, sharex=True, height_ratios=[3, 2, 2] if serve else [3, 2]
    )

    used = [100 * sample.used / pages for sample in samples]
    free = [100 - percent for percent in used]
    colors, labels = [USED, FREE], ["used", "free"]
    panels[0].stackplot(time, used, free, colors=colors, labels=labels, step="post")
    panels[0].set(ylabel="pages of the pool", ylim=(0, 100))
    panels[0].yaxis.set_major_formatter(PercentFormatter(decimals=0))

    line = {"drawstyle": "steps-post", "lw": 1}
    pieces = [sample.fragmentation for sample in samples]
    panels[1].plot(time, pieces, color=PIECES, **line)
    panels[1].set(ylabel="fragmentation\n(0 = free pages\nin one run)", ylim=(0, 1.02))

    if serve:
        running = [sample.running for sample in samples]
        waiting = [sample.waiting for sample in samples]
        panels[2].plot(time, running, color=RUNNING, label="running", **line)
        panels[2].plot(time, waiting, color=WAITING, label="waiting", **line)
        panels[2].set(ylabel="sequences")
        panels[2].set_ylim(bottom=0)
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    panels[-1].set_xlabel(axis)
    panels[-1].set_xlim(0, time[-1])
    figure.align_ylabels()

    drawn = io.BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:].lower(), dpi=150)
    write_atomically(Path(path), drawn.getvalue())
