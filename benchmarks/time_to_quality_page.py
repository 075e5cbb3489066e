"""The tables and the picture of quality by the clock, made of what benchmarks.time_to_quality found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mask_study import FOUND as SEARCHED
from benchmarks.search_study import MASK_STUDY
from benchmarks.table_text import Result, caption, load, table
from oes_fast.io.figures import COLORS, GREY, new_figure, save_figure, tidy

NAME = "time-to-quality"
REFERENCE_STEPS = 6_000  # of the search at 0.1 whose training stands for the published way's
RULES = {"variance": "`--stop variance`", "discrepancy": "`--stop discrepancy`"}


@dataclass(frozen=True)
class Line:
    """A way to the restored image, as a curve.

    Attributes:
        label: of it.
        before: seconds before the first step of training.
        seconds: of a step, of all runs together.
        step: of the points.
        psnr: of the running average, or of the mean of several, in dB.
        end: step at which the preset ends, None where there is no preset.
        color: of the picture.
        style: of the line.
    """

    label: str
    before: float
    seconds: float
    step: Sequence[int]
    psnr: Sequence[float]
    end: int | None
    color: str
    style: str = "-"

    def at(self, step: int) -> float:
        """Seconds until so many steps are made."""
        return self.before + step * self.seconds

    @property
    def best(self) -> int:
        """Number of the point with the highest PSNR."""
        return max(range(len(self.psnr)), key=lambda point: self.psnr[point])

    def reaches(self, psnr: float) -> float | None:
        """Seconds until the average first has so many dB, None if it never does."""
        found = (self.at(s) for s, p in zip(self.step, self.psnr, strict=True) if p >= psnr)
        return next(found, None)


def step_seconds(result: Result) -> dict[str, float]:
    """The median of each kind of step."""
    return {name: figures["median"] / 1e3 for name, figures in result["steps"]["ms"].items()}


def lines_of(result: Result, image: str) -> Iterator[Line]:
    """All ways that an image was restored in."""
    cost = step_seconds(result)
    curves = [curve for curve in result["curves"] if curve["image"] == image and curve["seed"] == 0]
    presets = result["settings"]["presets"]
    for curve in curves:
        way = curve["way"]
        if way == "dense":
            for label, kind, style in (
                ("dense DIP, plain PyTorch", "published dense", "-"),
                ("dense DIP, oes_fast", "dense", "--"),
            ):
                yield Line(label, 0.0, cost[kind], curve["step"], curve["average"], None, COLORS[1], style)
        elif way == "reused":
            end, seconds = presets["fast"]["training"], cost["training, fast"]
            label = f"the mask that fast found on {result['settings']['images'][0]}"
            yield Line(label, 0.0, seconds, curve["step"], curve["average"], end, COLORS[4])
        else:
            color = COLORS[0] if way == "fast" else COLORS[2]
            end, seconds = presets[way]["training"], cost[f"training, {way}"]
            before = presets[way]["search"] * cost["search"]
            yield Line(f"--preset {way}", before, seconds, curve["step"], curve["average"], end, color)
            for mean, style in zip(curve["means"], ("--", ":"), strict=False):
                runs = mean["runs"]
                label = f"--preset {way}, mean of {runs} runs"
                yield Line(label, before, runs * seconds, curve["step"], mean["average"], end, color, style)
    yield from reference(result, image)


def reference(result: Result, image: str) -> Iterator[Line]:
    """The published formulas with 6,000 steps of search: in plain PyTorch, and by this library."""
    study, cost = load(MASK_STUDY), step_seconds(result)
    asked = study["options"]
    if (asked["image"], asked["size"]) != (f"skimage:{image}", result["settings"]["side"]):
        return
    (run,) = (each for each in study["runs"] if (each["seed"], each["mask"]) == (0, SEARCHED))
    history = run["history"]
    kept = [
        at for at, value in enumerate(history["psnr_average"]) if value is not None and history["step"][at]
    ]
    steps = [history["step"][at] for at in kept]
    psnr = [history["psnr_average"][at] for at in kept]
    for label, search, training, color in (
        ("plain PyTorch", "published search", "published training", GREY),
        ("oes_fast", "search", "training, fast", COLORS[3]),
    ):
        before = REFERENCE_STEPS * cost[search]
        yield Line(f"6,000 steps of search, {label}", before, cost[training], steps, psnr, None, color)


def draw(result: Result, path: Path) -> None:
    """PSNR of the average over the seconds, a panel for each image.

    Args:
        result: what was written, as far as it goes.
        path: picture to write.

    Raises:
        InputError: an unknown suffix.
        OutputError: the file cannot be written.
    """
    images = result["settings"]["images"]
    figure = new_figure(6.4 * len(images), 5.4, layout="constrained")
    for number, image in enumerate(images):
        axes = figure.add_subplot(1, len(images), number + 1)
        for line in lines_of(result, image):
            seconds = [line.at(step) for step in line.step]
            axes.plot(seconds, line.psnr, line.style, color=line.color, linewidth=1.4, label=line.label)
            if line.end is not None and line.end in line.step:
                at = list(line.step).index(line.end)
                axes.plot(seconds[at], line.psnr[at], "o", color=line.color, markersize=5)
        axes.axhline(result["noisy"][image], color=GREY, linestyle=":", linewidth=1, label="noisy image")
        axes.set_xscale("log")
        axes.set_ylim(bottom=result["noisy"][image] - 2)  # the first steps would take most of the height
        axes.set_title(f"{image}, {result['settings']['side']} x {result['settings']['side']}")
        axes.set_xlabel("seconds of one thread")
        axes.set_ylabel("PSNR of the average (dB)")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), frameon=False, fontsize=8, ncols=2)
        tidy(axes)
    save_figure(figure, path)


def tables() -> str:
    """The page's tables: ways by image, then times of steps, then where rules stop."""
    result = load(NAME)
    parts = [caption(NAME, result)]
    for image in result["settings"]["images"]:
        lines = list(lines_of(result, image))
        wanted = sorted({round(max(line.psnr)) - back for line in lines for back in (1, 0)})
        wanted = [level for level in wanted if level >= 24][-4:]
        rows = [row_of(line, wanted) for line in lines]
        header = ["way", "search, s", "at the preset's end", "best", "at step"]
        header += [f"{level} dB after, s" for level in wanted]
        noisy = f"{result['noisy'][image]:.2f}"
        parts.append(f"{image.capitalize()}, noisy image {noisy} dB:\n\n{table(header, rows)}")
    steps = result["steps"]
    rows = [
        [name, *(f"{ms[key]:.1f}" for key in ("min", "median", "max"))] for name, ms in steps["ms"].items()
    ]
    parts.append(f"Processor milliseconds of a step, {steps['rounds']} rounds of all in turn:\n")
    parts.append(table(["step", "least", "median", "most"], rows))
    parts.append("Where rules stop, and what they lose to the best of the same run:\n")
    header = ["image", "way", "runs", "best at step", "last step loses, dB"]
    header += [
        f"{name}: at step" if what else f"{name} loses, dB" for name in RULES.values() for what in (1, 0)
    ]
    parts.append(table(header, stop_rows(result)))
    return "\n".join(parts)


def row_of(line: Line, wanted: Sequence[float]) -> list[object]:
    """A way's line of the table."""
    end = ""
    if line.end is not None and line.end in line.step:
        at = list(line.step).index(line.end)
        end = f"{line.psnr[at]:.2f} after {line.at(line.end):,.0f} s"
    best = line.step[line.best]
    cells = [
        line.label,
        f"{line.before:,.0f}",
        end,
        f"{line.psnr[line.best]:.2f} after {line.at(best):,.0f} s",
    ]
    reached = (line.reaches(level) for level in wanted)
    return [*cells, f"{best:,}", *("" if seconds is None else f"{seconds:,.0f}" for seconds in reached)]


def stop_rows(result: Result) -> Iterator[list[object]]:
    """Means over the runs of an image and a way."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for curve in result["curves"]:
        groups.setdefault((curve["image"], curve["way"]), []).append(curve)
    for (image, way), curves in groups.items():
        tops = [max(curve["average"]) for curve in curves]
        best = [curve["step"][curve["average"].index(top)] for curve, top in zip(curves, tops, strict=True)]
        cells: list[object] = [
            image,
            way,
            len(curves),
            span(best),
            mean_loss(tops, [c["average"][-1] for c in curves]),
        ]
        for rule in RULES:
            stops = [curve["stops"][rule] for curve in curves]
            cells += [span([stop["step"] for stop in stops]), mean_loss(tops, [s["average"] for s in stops])]
        yield cells


def span(steps: Sequence[int]) -> str:
    """The least and the most of them."""
    low, high = min(steps), max(steps)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def mean_loss(tops: Sequence[float], found: Sequence[float]) -> str:
    """Mean of what is lost in dB, and the most."""
    lost = [max(0.0, top - value) for top, value in zip(tops, found, strict=True)]
    mean = f"{sum(lost) / len(lost):.2f}"
    return mean if len(lost) == 1 else f"{mean} ({max(lost):.2f})"
