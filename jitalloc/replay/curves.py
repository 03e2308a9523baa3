"""A sweep as a picture: one curve a policy, each named where it stands apart."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Final

from jitalloc.replay.plot import check_plot, write_figure
from jitalloc.replay.sweep import CLAIRVOYANT, Sweep, describe_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS: Final = {
    "lru": "#2a6f97",
    "fifo": "#d9a441",
    "mru": "#b5542b",
    "lfu": "#3d7a4f",
    "slru": "#7b4f9d",
    CLAIRVOYANT: "#6b7278",
}

MOST_TICKS: Final = 12

Curve = list[tuple[int, float]]
"""Pages and hit rate in percent."""


def save_curves(sweep: Sweep, path: str | PathLike[str]) -> None:
    """Draw the hit rate of each policy against the size of the cache.

    Parameters
    ----------
    sweep : Sweep
    path : str or path-like
        Ends in .png, .svg or .pdf. A file of that name is replaced in one step.
    """
    check_plot(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

    figure = Figure(figsize=(10, 6), layout="constrained")
    title = describe_sweep(sweep).replace(" · ", "\n", 1)
    figure.suptitle(title + (" · interrupted" if sweep.interrupted else ""))
    axes = figure.subplots()
    curves = {
        policy: [(point.num_pages, 100 * point.hit_rate) for point in sweep.curve(policy)]
        for policy in sweep.policies
        if sweep.curve(policy)
    }
    groups = _groups(curves, 108 * sweep.unlimited)
    for group in groups:
        for rank, policy in enumerate(group):
            width = 1.6 + 1.4 * (len(group) - 1 - rank)  # what lies below still shows
            axes.plot(
                *zip(*curves[policy], strict=True),
                color=COLORS[policy],
                ls="--" if policy == CLAIRVOYANT else "-",
                lw=width,
                marker="o",
                ms=2.4 + width,
            )
    axes.axhline(100 * sweep.unlimited, color=COLORS[CLAIRVOYANT], lw=0.8, ls=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(_ticks(sweep.sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_ylim(0, max(1.0, 108 * sweep.unlimited))
    axes.set(xlabel=f"pages of {sweep.page_size} tokens", ylabel="hit rate by pages")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    named = {", ".join(group): curves[group[0]] for group in groups}
    _name(axes, named, 100 * sweep.unlimited)
    write_figure(figure, path)


def _ticks(sizes: list[int]) -> list[int]:
    """Return the sizes that can be written below the axis without touching each other."""
    apart = (sizes[-1] / sizes[0]) ** (1 / MOST_TICKS)
    kept = sizes[:1]
    for size in sizes[1:]:
        if size >= kept[-1] * apart:
            kept.append(size)
    return kept


def _groups(curves: dict[str, Curve], height: float) -> list[list[str]]:
    """Return the policies, those together whose curves the eye cannot tell apart."""
    groups: list[list[str]] = []
    for policy, curve in curves.items():
        for group in groups:
            pairs = zip(curve, curves[group[0]], strict=False)
            if max(abs(a[1] - b[1]) for a, b in pairs) < height / 100:
                group.append(policy)
                break
        else:
            groups.append([policy])
    return groups


def _name(axes: Axes, curves: dict[str, Curve], top: float) -> None:
    """Write each name beside its curve, where no other one is near, nor the line at the top."""
    taken: list[tuple[int, float]] = []
    for name, curve in curves.items():
        others = [other for others, other in curves.items() if others != name]
        best, spot, above = -1.0, 0, True
        for index, (_, rate) in enumerate(curve):
            rates = [other[index][1] for other in others if index < len(other)]
            rates += [top, *(other for place, other in taken if place == index)]
            gap = min((abs(rate - other) for other in rates), default=1.0)
            if gap > best:
                nearest = min(rates, key=lambda other: abs(other - rate), default=0.0)
                best, spot, above = gap, index, nearest <= rate
        size, rate = curve[spot]
        taken.append((spot, rate))
        shift = (-5 if above else 5, 5 if above else -5)
        side = "right" if above else "left"
        if spot in (0, len(curve) - 1):  # an end: not beyond the axes
            shift = (0, 7 if above else -7)
            side = "left" if spot == 0 else "right"
        axes.annotate(
            name,
            (size, rate),
            xytext=shift,
            textcoords="offset points",
            ha=side,
            va="bottom" if above else "top",
            color=COLORS[name.split(",")[0]],
            fontweight="bold",
        )
