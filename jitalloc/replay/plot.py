"""The pool over virtual time as a picture. Needs matplotlib: the extra `plot`."""

from __future__ import annotations

import io
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import InvalidArgument, JitallocError
from jitalloc.replay.report import Report, describe, write_atomically
from jitalloc.replay.timeline import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg", ".pdf")

HELD, CACHED, FREE = "#2a6f97", "#a9cfe0", "#edf0f2"
HITS, PIECES, WAITING = "#3d7a4f", "#b5542b", "#d9a441"

WINDOWS: Final = 50
"""The hit rate is drawn over this share of the time: single intervals hold few prompts."""

LINE: Final[dict[str, Any]] = {"drawstyle": "steps-post", "lw": 1}


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
    """Draw occupancy, hit rate, fragmentation and batch of a report over virtual time.

    Parameters
    ----------
    report : Report
    path : str or path-like
        Ends in .png, .svg or .pdf. A file of that name is replaced in one step.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    serve = report.options.mode == "serve"
    caching = report.options.policy != "none"
    samples = [*report.samples, report.samples[-1]]  # the last one is drawn to the end
    end = report.virtual_seconds if serve else report.requests.seen - report.requests.rejected
    scale, axis = 1.0, "virtual time in seconds" if serve else "requests, one after another"
    if serve and end > 300:
        scale, axis = 60.0, "virtual time in minutes"
    time = [each.start / scale for each in report.samples] + [(end or 1) / scale]

    heights = [3, *([2] if caching else []), 2, *([2] if serve else [])]
    figure = Figure(figsize=(10, 2 + sum(heights) * 0.8), layout="constrained")
    figure.suptitle(describe(report) + (" · interrupted" if report.interrupted else ""))
    panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    rest = iter(panels)
    _draw_pages(next(rest), time, samples, report)
    if caching:
        _draw_hits(next(rest), time, report)
    panel = next(rest)
    panel.plot(time, [each.fragmentation for each in samples], color=PIECES, **LINE)
    panel.set(ylabel="fragmentation\n(0 = free pages\nin one run)", ylim=(-0.02, 1.02))
    if serve:
        panel = next(rest)
        panel.plot(time, [each.running for each in samples], color=HELD, label="running", **LINE)
        panel.plot(time, [each.waiting for each in samples], color=WAITING, label="waiting", **LINE)
        panel.set(ylabel="sequences")
        panel.set_ylim(bottom=0)
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, reverse=True)
    panels[-1].set_xlabel(axis)
    panels[-1].set_xlim(0, time[-1])
    figure.align_ylabels()
    write_figure(figure, path)


def _draw_pages(panel: Axes, time: list[float], samples: list[Sample], report: Report) -> None:
    from matplotlib.ticker import PercentFormatter

    percent = 100 / report.options.num_pages
    held = np.array([each.held for each in samples]) * percent
    cached = np.array([each.cached for each in samples]) * percent
    layers = [(held, HELD, "held"), (cached, CACHED, "cached"), (100 - held - cached, FREE, "free")]
    if report.options.policy == "none":
        del layers[1]
    values, colors, labels = zip(*layers, strict=True)
    panel.stackplot(time, *values, colors=colors, labels=labels, step="post", lw=0)
    panel.set(ylabel="pages of the pool", ylim=(0, 100))
    panel.yaxis.set_major_formatter(PercentFormatter(decimals=0))


def _draw_hits(panel: Axes, time: list[float], report: Report) -> None:
    from matplotlib.ticker import PercentFormatter

    rate = 100 * report.prefix.hit_rate_tokens
    recent = _recent_rate(report.samples)
    panel.plot(time, [*recent, recent[-1]], color=HITS, label="moving", **LINE)
    panel.axhline(rate, color=HITS, lw=1, ls=":", label=f"in all, {rate:.1f}%")
    panel.set(ylabel="hit rate\nby tokens")
    panel.set_ylim(0, max(1.0, 1.08 * float(np.nanmax([*recent, rate]))))
    panel.yaxis.set_major_formatter(PercentFormatter(decimals=0))


def _recent_rate(samples: list[Sample]) -> NDArray[np.float64]:
    """Return the hit rate, in percent, of the window that ends with each interval."""
    window = max(1, len(samples) // WINDOWS)
    tokens = np.array([(each.lookup_tokens, each.hit_tokens) for each in samples], np.float64)
    sums = np.cumsum(np.vstack((np.zeros((window, 2)), tokens)), axis=0)
    looked_up, found = (sums[window:] - sums[:-window]).T
    rate = np.full(len(samples), np.nan)
    np.divide(100 * found, looked_up, out=rate, where=looked_up > 0)
    return rate


def write_figure(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure in the format that the name asks for, in one step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:].lower(), dpi=150)
    write_atomically(Path(path), drawn.getvalue())
