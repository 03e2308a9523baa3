"""Recorded or generated traffic, run through the library: traces in, figures and pictures out."""

from jitalloc.replay.curves import save_curves
from jitalloc.replay.generator import generate
from jitalloc.replay.options import ReplayOptions
from jitalloc.replay.plot import save_plot
from jitalloc.replay.preparing import prepare
from jitalloc.replay.report import Report
from jitalloc.replay.request import Request
from jitalloc.replay.simulator import replay
from jitalloc.replay.sweep import Sweep, run_sweep
from jitalloc.replay.traces import read_trace, read_traces

__all__ = [
    "ReplayOptions",
    "Report",
    "Request",
    "Sweep",
    "generate",
    "prepare",
    "read_trace",
    "read_traces",
    "replay",
    "run_sweep",
    "save_curves",
    "save_plot",
]
