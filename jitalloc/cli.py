"""The command line: `jitalloc replay`, `jitalloc info`, `jitalloc warmup`."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from jitalloc.errors import InvalidArgument, JitallocError

if TYPE_CHECKING:
    from types import FrameType

    from jitalloc.replay import Request
    from jitalloc.replay.meter import Meter

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Group(click.Group):
    """Ends a command with one line and no traceback where jitalloc refuses something."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except JitallocError as error:
            raise click.ClickException(str(error)) from error
        except MemoryError as error:
            raise click.ClickException(f"not enough memory: {error}") from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jitalloc")
    except PackageNotFoundError:
        return "(not installed)"


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"jitalloc {_version()}")
        ctx.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Paged KV-cache memory management: replay recorded traffic through the allocator."""


def _output(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse an output file whose folder is missing before the replay runs, not after it."""
    if value is not None and value != "-" and not os.access(Path(value).parent, os.W_OK):
        raise click.BadParameter(f"cannot write into {Path(value).parent}", param=parameter)
    return value


COUNT = click.IntRange(1, 2**31 - 1)
PICTURE = click.Path(dir_okay=False)


@main.command()
@click.argument("traces", nargs=-1, metavar="[TRACE]...")
@click.option(
    "--mode",
    type=click.Choice(["serve", "cache"]),
    default="serve",
    show_default=True,
    help="serve: continuous batching on a virtual clock. cache: one request after another.",
)
@click.option("--num-pages", type=COUNT, default=65_536, show_default=True, help="Pages in all.")
@click.option("--page-size", type=COUNT, default=16, show_default=True, help="Tokens a page.")
@click.option(
    "--order",
    type=click.Choice(["sorted", "fifo", "lifo"]),
    default="sorted",
    show_default=True,
    help="Which free page goes out next.",
)
@click.option(
    "--max-batch", type=COUNT, default=256, show_default=True, help="Most sequences at once."
)
@click.option(
    "--max-length",
    type=COUNT,
    help="Longest sequence in tokens; what is longer is rejected.  [default: the pool's size, "
    "up to 1048576]",
)
@click.option(
    "--step-tokens",
    type=COUNT,
    default=8_192,
    show_default=True,
    help="Most tokens computed in a step; longer prompts are read in chunks.",
)
@click.option(
    "--step-ms",
    type=click.FloatRange(0),
    default=20.0,
    show_default=True,
    help="Virtual milliseconds a step takes.",
)
@click.option(
    "--token-us",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Virtual microseconds that each token adds to its step.",
)
@click.option(
    "--export",
    type=click.Choice(["none", "csr", "padded"]),
    default="none",
    show_default=True,
    help="Also build the block tables that attention kernels read, in each step.",
)
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True)
@click.option("--limit", type=COUNT, help="Only the first so many requests.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the generated traffic.  [default: 0]")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    callback=_output,
    metavar="FILE",
    help="Write the figures as JSON; - is the standard output, in place of the table.",
)
@click.option(
    "--plot",
    "plot_file",
    type=PICTURE,
    callback=_output,
    metavar="FILE",
    help="Draw the pool over virtual time (.png, .svg or .pdf); needs jitalloc[plot].",
)
def replay(
    traces: tuple[str, ...],
    seed: int | None,
    json_file: str | None,
    plot_file: str | None,
    **settings: Any,
) -> None:
    """Run recorded traffic through the allocator and report what it did and what it cost.

    A TRACE is a Mooncake JSON lines file, an Azure CSV file or an agent session in JSON; which
    one, its content tells. Several are merged by time. Without a TRACE, a seeded generator makes
    a quarter of an hour of multi-turn chat.
    """
    from jitalloc.replay import ReplayOptions, generate, prepare, read_traces, save_plot
    from jitalloc.replay import replay as run
    from jitalloc.replay.plot import check_plot

    if traces and seed is not None:
        raise click.UsageError("--seed is for generated traffic: it cannot go with a TRACE")
    try:
        options = ReplayOptions(**settings)
        if plot_file is not None:
            check_plot(plot_file)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from error

    def requests() -> Iterator[Request]:
        return read_traces(traces) if traces else generate(seed or 0)

    files = all(Path(path).is_file() for path in traces)  # a pipe is read once only
    name = _trace_name(traces) if traces else f"generated chat, seed {seed or 0}"
    with _progress(requests if files else None, options.limit) as (say, watch):
        say("loading kernels (compiled on the first run)")
        prepare(options)
        say("replaying")
        with _interrupt() as stop:
            report = run(requests(), options, trace=name, stop=stop, watch=watch)

    if json_file == "-":
        click.echo(report.to_json(), nl=False)
    else:
        from jitalloc.replay.table import print_report

        print_report(report)
    for path, write in ((json_file, report.save), (plot_file, lambda to: save_plot(report, to))):
        if path is not None and path != "-":
            _write(path, write)
    if report.interrupted:
        click.echo("interrupted: the figures hold up to that point", err=True)
        raise click.exceptions.Exit(INTERRUPTED)


def _trace_name(traces: tuple[str, ...]) -> str:
    first = Path(traces[0]).name
    return first if len(traces) == 1 else f"{first} and {len(traces) - 1} more"


def _write(path: str, write: Callable[[str], None]) -> None:
    try:
        write(path)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror or error}") from error
    click.echo(f"wrote {path}", err=True)


@contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
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
def _progress(
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


@main.command()
def info() -> None:
    """Show versions, devices and the folder of compiled kernels."""
    from jitalloc import _jit

    rows = {"jitalloc": _version(), "python": f"{platform.python_version()} ({sys.platform})"}
    rows |= _jit.versions()
    rows["cpu"] = f"{_cpu_name()}, {os.cpu_count()} cores"
    rows["gpu"] = _gpu_names() or "none seen"
    rows["cuda packages"] = _cuda_packages()
    rows["kernel cache"] = _jit.CACHE_FOLDER if _jit.CACHE_ENABLED else "off: JITALLOC_CACHE=0"
    if _jit.CACHE_ENABLED:
        files = [file for file in Path(_jit.CACHE_FOLDER).rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        rows["compiled"] = f"{len(files)} files, {size / 2**20:.1f} MiB"
    for label, value in rows.items():
        click.echo(f"{label:<15}{value}")


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # no Linux
    return platform.processor() or platform.machine()


def _gpu_names() -> str:
    """Return the models that NVIDIA's driver lists; CUDA itself is not loaded."""
    models = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                models.append(line.partition(":")[2].strip())
    return ", ".join(models)


def _cuda_packages() -> str:
    """Return what of the CUDA extras is installed, from the metadata: nothing is imported."""
    from importlib.metadata import distributions

    wanted = ("cupy", "numba-cuda")
    found = {
        f"{each.name} {each.version}"
        for each in distributions()
        if (each.name or "").lower().startswith(wanted)
    }
    return ", ".join(sorted(found)) or (
        "not installed; pip install 'jitalloc[cuda12]' or 'jitalloc[cuda13]'"
    )


@main.command()
def warmup() -> None:
    """Compile all kernels now, so that the first use does not have to."""
    import jitalloc

    start = perf_counter()
    count = jitalloc.warmup()
    click.echo(f"{count} kernels ready in {perf_counter() - start:.1f} s")
