"""How time and memory of a step grow with the image, the density and the threads, and what bounds them.

    python -m benchmarks.growth --mask pepper_mask.npz
    python -m benchmarks.growth --picture docs/images/growth.png  # of the result that is there

Rows that ``--json`` has of this machine are kept, and the others are made.

Steps are timed as ``oes-fast bench`` does, beside the published way in turn. The work of a training step is
counted in the plan that is run: a multiply-accumulate for each kept weight and pixel, in the forward pass and
twice in the backward pass; and, as the least that has to move, each image of the network written and read in
the forward pass, read again in the backward pass, and its gradient written and read. The machine's ceilings
are a matrix product and a copy, measured between the steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import oes_fast as oes
from benchmarks.memory import peak_of
from benchmarks.report import MATRIX, PERCENTILES, write_result
from benchmarks.table_text import RESULTS, Result, caption, load, table
from benchmarks.timer import interleave
from oes_fast.bench import CASES, BenchRow, bench
from oes_fast.bench.environment import environment
from oes_fast.bench.steps import PUBLISHED, drawn_mask
from oes_fast.io.figures import COLORS, GREY, new_figure, save_figure, tidy
from oes_fast.rewrite import ir
from oes_fast.rewrite.explain import products

NAME = "growth"
OURS = "auto"
COPY = 2**25  # elements that are copied: more than the caches hold
DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PASSES = 3  # forward, gradient of the input, gradient of the weights
TRANSFERS = 5  # of each image and its gradient, see above


def ceilings(threads: int) -> dict[str, float]:
    """Multiply-accumulates and bytes a second, in 1e9, of a matrix product and a copy."""
    matrix, source = torch.ones(MATRIX, MATRIX), torch.ones(COPY)
    target = torch.zeros_like(source)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = interleave(
            {"matrix": lambda: matrix @ matrix, "copy": lambda: target.copy_(source)}, rounds=9
        )
    finally:
        torch.set_num_threads(before)
    return {
        "GMAC/s": MATRIX**3 / times["matrix"]["median"] / 1e6,
        "GB/s": 8 * COPY / times["copy"]["median"] / 1e6,
    }


def work(mask: oes.Mask | None, size: int) -> dict[str, float]:
    """Multiply-accumulates and bytes of a step, in 1e9, see above; without a mask all weights count."""
    net = oes.models.skip(seed=0)
    plan = oes.sparsify(net, mask, backend="torch", verify=False).train().plan(
        oes.noise_input(32, (size, size), seed=0)
    )  # fmt: skip
    macs, elements = 0.0, 0
    for node in plan.graph.nodes:
        if node in plan.input_only:
            continue
        conv = node.stage.conv if isinstance(node.stage, ir.UpConv) else node.stage
        if isinstance(conv, ir.Conv):
            dense, share = products(node, conv, plan)
            macs += dense * share
            elements += len(plan.alive[node].varying) * node.shape[2] * node.shape[3]
    return {"GMAC": PASSES * macs / 1e9, "GB": TRANSFERS * 4 * elements / 1e9}


def mask_of(options: argparse.Namespace, density: float | None) -> oes.Mask:
    """The mask of the command line, or a drawn one of a density."""
    net = oes.models.skip(seed=0)
    return oes.Mask.load(options.mask, net) if density is None else drawn_mask(net, density)


def places(options: argparse.Namespace) -> Iterator[tuple[int, int, float | None, tuple[str, ...]]]:
    """Size, threads, density (None for the mask of the command line) and cases of each measurement."""
    for size in options.size:
        for threads in options.threads:
            if size <= options.size_of_few_threads or threads == max(options.threads):
                yield size, threads, None, CASES
    for size in options.density_size:
        for threads in options.threads:
            for density in options.density:
                yield size, threads, density, CASES[:1]


def measure(options: argparse.Namespace, before: list[Result]) -> Iterator[list[Result]]:
    """All rows, whenever there is another: those of before, and what is asked for and was not there."""
    rows = list(before)
    for size, threads, density, cases in places(options):
        here = {"size": size, "threads": threads, "asked": density}
        there = [row for row in rows if all(row.get(name) == value for name, value in here.items())]
        if {row["case"] for row in there} == set(cases):
            continue
        mask = mask_of(options, density)
        limits = {"rounds": options.rounds, "seconds": options.seconds}
        found = bench(sizes=[size], threads=[threads], cases=cases, mask=mask, **limits)
        rows = [row for row in rows if row not in there]
        for made in found.rows:
            rows.append(row_of(made, work(mask if made.case == "training" else None, size), asked=density))
            print(
                f"{made.case}, {size} px, {threads} threads, {100 * rows[-1]['density']:.3g} %: "
                f"{rows[-1]['ms'][OURS]['50']:.2f} ms, {rows[-1]['times faster']['50']:.1f} times faster, "
                f"{rows[-1]['GMAC/s']:.1f} GMAC/s, {rows[-1]['GB/s']:.1f} GB/s",
                flush=True,
            )
            yield rows


def in_order(row: Result) -> tuple[Any, ...]:
    """Where a row stands: by size, threads and case, after them those of drawn masks by density."""
    return row["asked"] is not None, row["size"], row["threads"], CASES.index(row["case"]), row["asked"]


def of_before(options: argparse.Namespace, result: Result) -> Result:
    """What ``--json`` has, where that is of this machine and mask."""
    nothing: Result = {"steps": [], "memory": [], "ceilings": {}}
    if not options.json.is_file():
        return nothing
    found: Result = json.loads(options.json.read_text(encoding="utf-8"))
    return nothing if any(found[name] != result[name] for name in ("environment", "mask")) else found


def row_of(row: BenchRow, needed: dict[str, float], *, asked: float | None) -> Result:
    """One measurement: percentiles of both ways, ratios, rates; ``asked``: density of a drawn mask."""
    seconds = row.percentile(OURS, 50) / 1e3
    return {
        "case": row.case,
        "size": row.size,
        "threads": row.threads,
        "density": round(row.density, 5) if row.case == "training" else 1.0,
        "asked": asked,
        "precision": row.precision,
        "rounds": len(row.ms[OURS]),
        "ms": {way: {str(p): round(row.percentile(way, p), 3) for p in PERCENTILES} for way in row.ms},
        "times faster": {str(p): round(row.faster(OURS, p), 2) for p in PERCENTILES},
        **{name: round(value, 4) for name, value in needed.items()},
        **{f"{name}/s": round(value / seconds, 2) for name, value in needed.items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mask", help="mask file; without, the picture is drawn and no more")
    parser.add_argument("--size", nargs="+", type=int, default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--size-of-few-threads", type=int, default=1024, help="larger images have the most threads alone"
    )
    parser.add_argument("--density", nargs="*", type=float, default=DENSITIES)
    parser.add_argument(
        "--density-size", nargs="+", type=int, default=[256, 512], help="sides of the images for these"
    )
    parser.add_argument("--rounds", type=int, default=9, help="at most, of each case")
    parser.add_argument("--seconds", type=float, default=20.0, help="after which a case has no more rounds")
    parser.add_argument("--picture", type=Path, help="where to draw the result")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{NAME}.json", help="where to write")
    options = parser.parse_args()
    if options.mask is None:
        if options.picture is None:
            parser.error("expected --mask or --picture")
        draw(options.picture, load(NAME))
        return
    result: dict[str, Any] = {"environment": environment(), "mask": Path(options.mask).name}
    before = of_before(options, result)
    measured = before["ceilings"]  # what the rows of before are held against
    result["ceilings"] = measured | {str(n): ceilings(n) for n in options.threads if str(n) not in measured}
    result |= {"steps": before["steps"], "memory": before["memory"]}
    for rows in measure(options, before["steps"]):
        result["steps"] = sorted(rows, key=in_order)
        write_result(str(options.json), result)
    for case in CASES:
        for size in options.size:
            if any((row["case"], row["size"]) == (case, size) for row in result["memory"]):
                continue
            peaks = {way: peak_of(case, way, options.mask, size, 2) for way in (PUBLISHED, OURS)}
            row = {"case": case, "size": size, "peak MB": {k: round(v) for k, v in peaks.items()}}
            result["memory"].append(row)
            result["memory"].sort(key=lambda row: (CASES.index(row["case"]), row["size"]))
            print(f"{case}, {size} px: {peaks[OURS]:.0f} MB, published {peaks[PUBLISHED]:.0f} MB", flush=True)
            write_result(str(options.json), result)
    if options.picture is not None:
        draw(options.picture, result)


def draw(path: Path, result: Result) -> None:
    """Time over size, memory over size, time over density, and the roofline."""
    figure = new_figure(11.0, 8.0)
    time, memory, density, roof = (figure.add_subplot(2, 2, n + 1) for n in range(4))
    threads = sorted({row["threads"] for row in result["steps"]})
    most = max(threads)
    marks = dict(zip(CASES, ("o", "s"), strict=True))
    for case in CASES:
        for color, way in zip(COLORS, (OURS, PUBLISHED), strict=False):
            label = f"{case}, {'oes_fast' if way == OURS else 'published'}"
            rows = [r for r in result["steps"] if (r["case"], r["threads"], r["asked"]) == (case, most, None)]
            line: Any = {"color": color, "marker": marks[case], "label": label}
            time.plot([r["size"] for r in rows], [r["ms"][way]["50"] for r in rows], **line)
            peaks = [r for r in result["memory"] if r["case"] == case]
            memory.plot([r["size"] for r in peaks], [r["peak MB"][way] for r in peaks], **line)
    drawn = [row for row in result["steps"] if row["asked"] is not None and row["threads"] == most]
    for size, mark in zip(sorted({row["size"] for row in drawn}), ("o", "s", "^"), strict=False):
        for color, way in zip(COLORS, (OURS, PUBLISHED), strict=False):
            rows = [row for row in drawn if row["size"] == size]
            label = f"{'oes_fast' if way == OURS else 'published'}, {size} px"
            percent = [100 * row["density"] for row in rows]
            density.plot(
                percent, [row["ms"][way]["50"] for row in rows], color=color, marker=mark, label=label
            )
    for axes, said in ((time, f"ms a step, {most} threads"), (memory, "peak MB of the process")):
        sizes = sorted({row["size"] for row in result["steps"]})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("image side (pixels)")
        axes.set_ylabel(said)
    density.set(xscale="log", yscale="log", xlabel="weights kept (%)")
    density.set_ylabel(f"ms a training step, {most} threads")
    roofline(roof, result)
    for axes in (time, memory, density, roof):
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    figure.tight_layout()
    save_figure(figure, path)


def roofline(axes: Any, result: Result) -> None:
    """Rate over work for a byte, below the ceilings of memory and arithmetic."""
    rows = [row for row in result["steps"] if row["asked"] is None]
    found = [row["GMAC"] / row["GB"] for row in rows]
    reach = [min(found) / 2, max(found) * 2]
    for color, (threads, most) in zip((GREY, "#000000"), result["ceilings"].items(), strict=False):
        ridge = most["GMAC/s"] / most["GB/s"]
        across = sorted({reach[0], min(max(ridge, reach[0]), reach[1]), reach[1]})
        heights = [min(at * most["GB/s"], most["GMAC/s"]) for at in across]
        axes.plot(across, heights, color=color, label=f"ceilings, {threads} threads")
        for case, mark in zip(CASES, ("o", "s"), strict=True):
            own = [row for row in rows if row["threads"] == int(threads) and row["case"] == case]
            at = [row["GMAC"] / row["GB"] for row in own]
            style = {"color": color, "marker": mark, "linestyle": "none"}
            axes.plot(at, [row["GMAC/s"] for row in own], **style, label=f"{case}, {threads} threads")
    axes.set(xscale="log", yscale="log", xlabel="multiply-accumulates a byte", ylabel="GMAC/s")


def tables() -> str:
    """Steps by size and threads, by density, and memory."""
    result = load(NAME)
    header = ["", "pixels", "threads", "published, ms", "oes_fast, ms", "10 to 90 % of rounds", "faster"]
    header += ["GMAC/s", "of a matrix product", "GB/s at least", "of a copy"]
    sizes = table(header, [line(result, row, row["case"]) for row in result["steps"] if row["asked"] is None])
    header[0] = "weights kept"
    rows = [row for row in result["steps"] if row["asked"] is not None]
    densities = table(header, [line(result, row, f"{100 * row['density']:.3g} %") for row in rows])
    peaks = [
        [row["case"], row["size"], *(f"{row['peak MB'][way]:,}" for way in (PUBLISHED, OURS))]
        for row in result["memory"]
    ]
    memory = table(["", "pixels", "published, MB", "oes_fast, MB"], peaks)
    return f"{caption(NAME, result)}\n{sizes}\n{densities}\n{memory}"


def line(result: Result, row: Result, first: str) -> list[object]:
    """A row of the first two tables."""
    most, ours = result["ceilings"][str(row["threads"])], row["ms"][OURS]
    shares = [f"{100 * row[unit] / most[unit]:.0f} %" for unit in ("GMAC/s", "GB/s")]
    return [
        first,
        row["size"],
        row["threads"],
        f"{row['ms'][PUBLISHED]['50']:,.1f}",
        f"{ours['50']:,.1f}",
        f"{ours['10']:,.1f} to {ours['90']:,.1f}",
        f"{row['times faster']['50']:.1f} x",
        f"{row['GMAC/s']:.1f}",
        shares[0],
        f"{row['GB/s']:.1f}",
        shares[1],
    ]


if __name__ == "__main__":
    main()
