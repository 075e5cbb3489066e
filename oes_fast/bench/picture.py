"""A measurement as a picture."""

from __future__ import annotations

import os
from collections.abc import Iterator

from oes_fast.bench.measure import Bench, BenchRow
from oes_fast.bench.steps import PUBLISHED
from oes_fast.io.figures import COLORS, new_figure, save_figure, tidy


def plot(path: str | os.PathLike[str], result: Bench) -> None:
    """Milliseconds of a step over the image's size, a panel for each kind of step.

    Bars span from the 25th to the 75th percentile of the rounds.

    Args:
        path: picture to write; its suffix says the format.
        result: of :func:`bench`.

    Raises:
        InputError: unknown suffix.
        OutputError: the file cannot be written.
    """
    cases = list(dict.fromkeys(row.case for row in result.rows))
    figure = new_figure(1 + 4.5 * len(cases), 4.2)
    for number, case in enumerate(cases):
        axes = figure.add_subplot(1, len(cases), number + 1)
        for (label, rows), color in zip(_lines(result, case), _colors(), strict=False):
            name = label.partition(",")[0]
            middle = [row.percentile(name, 50) for row in rows]
            reach = [
                [at - row.percentile(name, 25) for at, row in zip(middle, rows, strict=True)],
                [row.percentile(name, 75) - at for at, row in zip(middle, rows, strict=True)],
            ]
            sizes = [row.size for row in rows]
            axes.errorbar(sizes, middle, reach, label=label, color=color, marker="o", capsize=3)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        sizes = sorted({row.size for row in result.rows})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("image side (pixels)")
        axes.set_ylabel("ms a step")
        axes.set_title(case)
        axes.legend(frameon=False)
        tidy(axes)
    figure.tight_layout()
    save_figure(figure, path)


def _lines(result: Bench, case: str) -> Iterator[tuple[str, list[BenchRow]]]:
    rows = sorted((row for row in result.rows if row.case == case), key=lambda row: row.size)
    counts = list(dict.fromkeys(row.threads for row in rows))
    names = list(dict.fromkeys(name for row in rows for name in row.ms))
    for name in sorted(names, key=lambda name: name != PUBLISHED):
        for count in counts:
            found = [row for row in rows if row.threads == count and name in row.ms]
            if found:
                yield (name if len(counts) == 1 else f"{name}, {count} threads"), found


def _colors() -> Iterator[str]:
    while True:
        yield from COLORS
