"""``oes-fast bench``."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Literal, TextIO, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import oes_fast.cli.options as o
from oes_fast._checks import check_choice
from oes_fast.backends import AUTO
from oes_fast.bench import CASES, Bench, changes, plot
from oes_fast.bench import bench as measure
from oes_fast.bench.steps import COMPILED, PUBLISHED
from oes_fast.cli.console import EXIT_OK, warn
from oes_fast.cli.display import lost_output
from oes_fast.cli.naming import naming, options_of
from oes_fast.cli.outputs import Outputs
from oes_fast.cli.report import versions
from oes_fast.cli.settings import find_backend, find_device
from oes_fast.errors import InputError, OutputError
from oes_fast.io.display import Display
from oes_fast.io.figures import FORMATS
from oes_fast.io.files import write_json
from oes_fast.mask import Mask
from oes_fast.models import skip
from oes_fast.precision import DEFAULT

_WIDTH = 100  # columns of the table
_OPTIONS = {"sizes": "--size", **options_of(("threads", "density", "rounds", "seconds", "precision"))}


def bench(
    size: Annotated[
        str, typer.Option(metavar="N,..", help="Sides of the image in pixels, separated by commas.")
    ] = "256,512",
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N,..", help="Threads of the CPU, one measurement for each.  [default: those in use]"
        ),
    ] = None,
    case: Annotated[str, typer.Option(metavar="CASE,..", help="Kinds of step: training, search.")] = ",".join(
        CASES
    ),
    backend: Annotated[
        str, typer.Option(metavar="NAME,..", help="Backends to time beside the published way.")
    ] = AUTO,
    compiled: Annotated[
        bool,
        typer.Option("--compiled", help="Time the published training through torch.compile as well."),
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Mask of the published network for RGB images.  [default: a drawn one with about the "
            "shares of the published ones among living channels, 17 % of all weights]",
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(metavar="D", help="Density of a drawn mask whose channels are all alive, in (0, 1]."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Rounds of every case at most; contestants take turns in each.")
    ] = 15,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="S", help="No further round of a case begins after so many seconds, but for the third."
        ),
    ] = 30.0,
    precision: o.Precision = DEFAULT,
    device: o.Device = "auto",
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the times over the sizes (.png, .pdf, .svg)."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON of an earlier measurement: say what has changed since, and how surely."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings.")] = False,
) -> int:
    """Measure steps on this machine beside the published way.

    Contestants take turns in every round, so that a busy machine hits all of them: trust the ratios more
    than the times. In brackets stand the quartiles of the rounds. Below the table stands how long a run of
    each preset takes here.
    """
    where = find_device(device)
    names = [find_backend(name) for name in _words("--backend", backend)]
    sizes = _numbers("--size", size)
    counts = None if threads is None else _numbers("--threads", threads)
    cases = [check_choice("--case", word, CASES) for word in _words("--case", case)]
    if compiled and "training" not in cases:
        raise InputError("--compiled: expected --case training among the cases: the search has no such way")
    if density is not None and mask is not None:
        raise InputError(f"--density: expected none beside --mask, got {density}")
    before = None if compare is None else _read(compare)
    outputs = Outputs(json or picture or Path("bench"), mask, compare)
    if picture is not None:
        if picture.suffix.lower() not in FORMATS:
            raise InputError(f"--plot: expected a name that ends in {', '.join(FORMATS)}, got {picture}")
        outputs.plan(plot=picture)
    if json is not None:
        outputs.plan(json=json)
    with outputs.owned():
        given = None if mask is None else Mask.load(mask, skip(seed=0))
        with naming(_OPTIONS):
            found = _measured(
                quiet,
                sizes=sizes,
                threads=counts,
                cases=cases,
                backends=names,
                compiled=compiled,
                mask=given,
                density=density,
                rounds=rounds,
                seconds=seconds,
                device=where,
                precision=precision,
            )
        outputs.write("plot", lambda path: plot(path, found))
        outputs.write(
            "json",
            lambda path: write_json(path, {"command": "bench", "versions": versions()} | found.as_dict()),
        )
        if not quiet:
            _print(found, before)
        outputs.finish(complete=True)
    return EXIT_OK


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise InputError(f"{option}: expected words separated by commas, got {text!r}")
    return list(dict.fromkeys(words))


def _numbers(option: str, text: str) -> list[int]:
    words = _words(option, text)
    if not all(word.isdecimal() and word.isascii() and 0 < int(word) < 2**31 for word in words):
        raise InputError(f"{option}: expected positive integers separated by commas, got {text!r}")
    return [int(word) for word in words]


def _read(path: Path) -> Bench:
    try:
        found = json_format.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise InputError(
            f"--compare: {path}: expected a result of `oes-fast bench`, got none ({reason})"
        ) from None
    try:
        return Bench.from_dict(found)
    except InputError as error:
        raise InputError(f"--compare: {path}: {error}") from None


def _measured(quiet: bool, **options: object) -> Bench:
    console = Console(file=cast(TextIO, Display(sys.stderr)), highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as progress:
        task = progress.add_task("measuring", total=None)

        def watch(name: str, done: int, count: int) -> None:
            progress.update(task, description=f"measured {name}", completed=done, total=count)

        return measure(watch=watch, **options)  # type: ignore[arg-type]


def _print(found: Bench, before: Bench | None) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True, width=_WIDTH)
    table = Table(box=None, header_style="")
    for name in ("step", "size", "threads", "contestant", "ms a step", "least", "times faster"):
        justify: Literal["left", "right"] = "left" if name in ("step", "contestant") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for row in found.rows:
        for name in row.ms:
            ms, low, high, least = (f"{row.percentile(name, percent):.4g}" for percent in (50, 25, 75, 0))
            faster = ""
            if name != PUBLISHED:
                middle, slow, fast = (f"{row.faster(name, percent):.3g}" for percent in (50, 25, 75))
                faster = f"{middle} ({slow} to {fast})"
            cells = [
                row.case,
                str(row.size),
                str(row.threads),
                name,
                f"{ms} ({low} to {high})",
                least,
                faster,
            ]
            table.add_row(*cells)
    console.print(table)
    for name, why in found.absent.items():
        console.print(f"{name} was not measured: {why}")
    ways = {name for row in found.rows for name in row.ms} - {COMPILED}
    for size, count in dict.fromkeys((row.size, row.threads) for row in found.rows):
        for name in sorted(ways, key=lambda name: name == PUBLISHED):
            if runs := found.run_seconds(size, count, name):
                said = ", ".join(f"{preset} {_duration(seconds)}" for preset, seconds in runs.items())
                console.print(f"a whole run at {size} x {size}, {count} threads, {name}: {said}")
    if before is not None:
        _print_changes(console, before, found)
    if (reason := lost_output()) is not None:
        raise OutputError(f"standard output: cannot write: {reason}")


def _print_changes(console: Console, before: Bench, found: Bench) -> None:
    compared, notes = changes(before, found)
    for note in notes:
        warn(f"--compare: {note}")
    for change in compared:
        row = change.row
        console.print(
            f"{row.case}, {row.size} x {row.size}, {row.threads} threads, {change.contestant}: "
            f"{change.verdict}; beside the published way {100 * (change.ratio - 1):+.1f} % time "
            f"({100 * (change.low - 1):+.1f} to {100 * (change.high - 1):+.1f} %), "
            f"{100 * (change.time_ratio - 1):+.1f} % by itself"
        )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
