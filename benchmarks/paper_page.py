"""The table and the picture of the published settings end to end, made of what benchmarks.paper found."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchmarks import mask_profile
from benchmarks.table_text import Result, caption, load, machine, measured, table
from oes_fast.io.figures import COLORS, GREY, new_figure, save_figure, tidy

NAME = "paper"
STOPS = (2_000, 10_000, 19_000)  # steps at which the published figures are known, or nearly
LABELS = {
    "found": "mask found, initial weights",
    "published": "published mask",
    "fresh": "mask found, fresh weights",
}


def draw(result: Result, path: Path) -> None:
    """PSNR over the steps, the search on the left and the trainings on the right.

    Args:
        result: what was written, as far as it goes.
        path: picture to write.

    Raises:
        InputError: an unknown suffix.
        OutputError: the file cannot be written.
    """
    figure = new_figure(10, 4.4, layout="constrained")
    left, right = figure.subplots(1, 2)
    found = result["search"]["curve"]
    line(left, "sampled masks", found["step"], found["psnr"], COLORS[0])
    left.set_title("search")
    ends = [result["noisy"]]
    for color, (label, fit) in zip(COLORS[1:], result.get("trainings", {}).items(), strict=False):
        found = fit["curve"]
        line(right, f"{LABELS[label]}, output", found["step"], found["psnr"], color, alpha=0.45)
        line(right, f"{LABELS[label]}, average", found["step"], found["psnr_average"], color)
        ends += [found["psnr"][-1], found["psnr_average"][-1]]
    right.axhline(result["noisy"], color=GREY, linestyle="--", linewidth=1, label="noisy image")
    right.set_title("training")
    right.set_ylim(bottom=min(ends) - 0.5)  # the first steps would take most of the height
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_ylabel("PSNR (dB)")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="best", framealpha=0.9, fontsize=8)
        tidy(axes)
    save_figure(figure, path)


def line(axes: Axes, label: str, steps: list[int], psnr: list[float], color: str, alpha: float = 1.0) -> None:
    """One curve."""
    axes.plot(steps, psnr, color=color, alpha=alpha, linewidth=1.2, label=label)


def tables() -> str:
    """The page's tables, run by run."""
    return "\n".join(tables_of(name, load(name)) for name in measured(f"{NAME}*"))


def tables_of(name: str, result: Result) -> str:
    """PSNR beside the published figures, times, and the two masks."""
    stops = [str(stop) for stop in STOPS]
    trainings = result.get("trainings", {})  # none yet, where a run was stopped after its search
    lines: list[list[object]] = []
    for label, fit in trainings.items():
        for what, figures in fit["psnr"].items():
            peak, at = figures["peak"], figures["at"]
            cells = [f"{at[stop]:.2f}" if stop in at else "" for stop in stops]
            lines.append([f"{LABELS[label]}, {what}", f"{peak['psnr']:.2f} at {peak['step']:,}", *cells])
            lines[-1].append(f"{figures['end']:.2f}")
    if (published := result["published"]) is not None:
        peak, at = published["peak"], published["at"]
        cells = [f"{at[stop]:.2f}" if stop in at else "" for stop in stops]
        lines.append([published["method"], f"{peak['psnr']:.2f} at {peak['step']:,}", *cells, ""])
    quality = table(["PSNR in dB", "peak", *(f"at {stop:,}" for stop in STOPS), "end"], lines)
    found = result["search"]
    lines = [times("search", found), *(times(LABELS[n], fit) for n, fit in trainings.items())]
    steps = table(["phase", "steps", "on", "backend", "precision", "ms a step", "seconds"], lines)
    beside = f" (published: {published['noisy']:.2f})" if published is not None else ""
    sampled, alone = found["curve"]["psnr"][-1], found["psnr of mask alone"]
    text = (
        f"The noisy image has {result['noisy']:.2f} dB{beside}, the masks that the search samples "
        f"{sampled:.2f} dB at its end, and the mask alone, without training, {alone:.2f} dB."
    )
    machines = {machine(each) for each in (found, *trainings.values())}
    if result["seconds"] is not None and len(machines) == 1:
        text += f" All phases took {result['seconds'] / 60:.1f} minutes."
    for what in ("collapsed", "diverged"):
        wrong = [LABELS[label] for label, fit in trainings.items() if fit[what]]
        text += f" {what.capitalize()}: {'; '.join(wrong)}." if wrong else ""
    parts = [caption(name, result), f"{text}\n", quality, steps]
    if "profile" in result:
        parts.append(mask_profile.tables(result["profile"]))
    return "\n".join(parts)


def times(label: str, figures: Result) -> list[object]:
    """A phase's line."""
    ms, seconds = figures["ms a step"], figures["seconds"]
    timed = ["" if ms is None else f"{ms:.2f}", "in parts" if seconds is None else f"{seconds:.0f}"]
    how = [machine(figures), figures["backend"], figures["precision"]]
    return [label, f"{figures['steps']:,}", *how, *timed]
