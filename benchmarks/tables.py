"""The tables of the measured pages, made from the committed results.

    python -m benchmarks.tables          # rewrites README.md and docs/*.md where a result has changed
    python -m benchmarks.tables --check  # exit code 1 if a page is not what it would write

A region of a page between ``<!-- table: NAME -->`` and ``<!-- end -->`` belongs to :data:`TABLES`\\ [NAME].
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean

from benchmarks.batch_manifest import tables as batch_manifest
from benchmarks.comparison import comparison_at, comparison_cells
from benchmarks.gpu_batches import table_of_batches as gpu_batches
from benchmarks.growth import tables as growth
from benchmarks.inverse_problems import tables as inverse_problems
from benchmarks.layer_profile import tables as layer_profile
from benchmarks.operations import by_density, convolutions, memory_bound
from benchmarks.paper_page import tables as paper
from benchmarks.peers import tables as peers
from benchmarks.runs import tables as several_runs
from benchmarks.search_study import tables as search_study
from benchmarks.stopping import tables as stopping
from benchmarks.table_text import (
    NAMES,
    ROOT,
    Result,
    caption,
    load,
    machine,
    measured,
    ms,
    table,
    two,
)
from benchmarks.throughput import photographs
from benchmarks.throughput import table_of_rows as throughput_table
from benchmarks.time_to_quality_page import tables as time_to_quality
from benchmarks.ui_display import tables as ui_display
from oes_fast.bench import CASES
from oes_fast.precision import PRECISIONS

REGION = re.compile(r"(<!-- table: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

MODEL = "gpu-model-h100"  # of the CUDA engine, not measured
CURVE_STEPS = (80, 480, 1000, 1720, 2000, 3000, 5000, 10000, 15000, 20000)


def case(name: str) -> str:
    """ "training, pepper_mask" as the page says it."""
    return name.removesuffix("_mask")


def steps_of(name: str) -> str:
    """One measurement of ``benchmarks.steps``."""
    result = load(name)
    ways = [way for way in ("torch", "sparseprop", "auto") if way in result["steps"][0]["ms"]]
    header = ["step", "threads", NAMES["published"], *(NAMES[way] for way in ways)]
    header += [f"{NAMES[way]} is faster" for way in ways]
    rows = []
    for row in result["steps"]:
        times, faster = row["ms"], row["times faster"]
        cells = [case(row["case"]), row["threads"], ms(times["published"])]
        cells += [ms(times[way]) if way in times else "" for way in ways]
        cells += [f"{two(faster[way], 1)} x" if way in faster else "" for way in ways]
        rows.append(cells)
    return f"{caption(name, result)}\n{table(header, rows)}"


def steps() -> str:
    """Whole steps, machine by machine."""
    return "\n".join(steps_of(name) for name in measured("steps-cpu-*"))


def sparseprop() -> str:
    """Training steps beside SparseProp."""
    names = ("steps-sparseprop-2-threads-cpu-avx2", "steps-sparseprop-1-thread-cpu-avx2")
    return "\n".join(steps_of(name) for name in names)


def gain() -> str:
    """The short table of README.md: how much faster, over all cases, by minimum and by median."""
    rows = []
    complete = [name for name in measured_gpus() if {case for case, _ in cases_of(load(name))} >= {*CASES}]
    gpus = {machine(load(name)): name for name in reversed(complete)}  # the newest of each
    for name in (*gpus.values(), *measured("steps-cpu-*")):
        result = load(name)
        faster: dict[tuple[str, str], dict[str, list[float]]] = {}  # by backend and precision, by case
        for case, row in cases_of(result):
            for way in ("cuda", "triton", "auto"):
                said = row.get("precision", {}).get(way, "float32")
                found = faster.setdefault((way, said), {each: [] for each in CASES})
                found[case] += row["times faster"].get(way, {}).values()
        for (way, said), found in faster.items():
            if all(found.values()):
                cells = [f"{min(ratios):.1f} to {max(ratios):.1f} x" for ratios in found.values()]
                how = "" if way == "auto" else f", `{way}`, {said}"
                rows.append([machine(result) + how, *cells, result["date"]])
    return table(["hardware", "training step", "search step", "measured"], rows)


def fastest_of(faster: Mapping[str, dict[str, float]]) -> dict[str, float]:
    """How many times faster the fastest of our backends is: one of two on a GPU, what auto takes on a CPU."""
    ours = [faster[way] for way in ("cuda", "triton", "auto") if way in faster]
    return max(ours, key=lambda times: times["min"], default={})


def cases_of(result: Result) -> Iterable[tuple[str, Result]]:
    """Whole steps of a result, on a CPU or on a GPU, each with "training" or "search"."""
    for row in result.get("steps", []):
        if row["case"] != "search, mask alone":
            yield row["case"].split(",")[0], row
    for precision in PRECISIONS:
        found = result.get("parts", {}).get(f"steps {precision}", {}).get("result", {})
        yield from ((case, row) for case in ("training", "search") for row in found.get(case, []))


def memory() -> str:
    """Peak memory of steps."""
    result = load("memory-512-cpu")
    ways = list(dict.fromkeys(row["way"] for row in result["memory"]))
    found = {(row["case"], row["way"]): row["peak MB"] for row in result["memory"]}
    rows = [[kind, *(f"{found[kind, way]:.0f}" for way in ways)] for kind in ("training", "search")]
    text = table(["MB", *(NAMES[way] for way in ways)], rows)
    return f"{caption('memory-512-cpu', result)}\n{text}"


def verification() -> str:
    """What the comparison before a run costs."""
    (name, *_) = measured("verification-*")
    result = load(name)
    header = ["run", "size", "threads", "dense step", "binding alone", "binding and comparison"]
    header += ["memory, dense steps", "memory, comparison"]
    rows = [
        [
            row["run"],
            row["size"],
            row["threads"],
            f"{row['dense step s']:.2f} s",
            f"{row['binding s']:.1f} s",
            f"{row['comparison s']:.1f} s",
            f"{row['dense peak MB']:.0f} MB",
            f"{row['comparison peak MB']:.0f} MB",
        ]
        for row in result["verification"]
    ]
    return f"{caption(name, result)}\n{table(header, rows)}"


def own_loop() -> str:
    """A loop of one's own beside train_sparse."""
    parts = []
    for name in measured("own-loop-*"):
        result = load(name)
        rows = [[way, ms(figures)] for way, figures in result["ms"].items()]
        text = table(["loop", "ms a step, minimum (median)"], rows)
        parts.append(f"{caption(name, result)}\n{text}")
    return "\n".join(parts) or "Not measured yet: `python -m benchmarks.own_loop` does it.\n"


def curve() -> str:
    """PSNR over a long training."""
    name = "curve-pepper-512-20000-cpu"
    result = load(name)
    (run,) = result["runs"]
    place = {step: index for index, step in enumerate(run["history"]["step"])}
    rows = [
        [title, *(f"{run['history'][key][place[step]]:.2f}" for step in CURVE_STEPS)]
        for title, key in (("output", "psnr"), ("average", "psnr_average"))
    ]
    text = table(["step", *map(str, CURVE_STEPS)], rows)
    peak, average = run["peak"], run["peak of average"]
    return (
        f"{caption(name, result)}\n{text}\nThe output peaks at {peak['psnr']:.2f} dB at step {peak['step']}, "
        f"the average at {average['psnr']:.2f} dB at step {average['step']}; the noisy image has "
        f"{run['noisy psnr']:.2f} dB. The run took {run['seconds'] / 60:.0f} minutes on "
        f"{result['environment']['threads']} thread.\n"
    )


def mask_study() -> str:
    """Searched masks against random ones."""
    name = "mask-study-256-cpu"
    result = load(name)
    rows = [
        [
            run["seed"],
            run["mask"],
            f"{run['psnr of mask alone']:.2f}",
            f"{run['peak']['psnr']:.2f} at {run['peak']['step']}",
            f"{run['last']['psnr']:.2f}",
            f"{run['last']['psnr of average']:.2f}",
        ]
        for run in result["runs"]
    ]
    keys = ("psnr of mask alone", "peak", "last", "last of average")
    rows += [
        ["mean", mask, *(f"{result['summary'][mask][key]:.2f}" for key in keys)]
        for mask in ("searched", "random")
    ]
    ahead = result["summary"]["ahead by"]
    text = table(["seed", "mask", "mask alone", "peak", "last", "average"], rows)
    return (
        f"{caption(name, result)}\n{text}\nThe searched masks are {ahead['psnr of mask alone']:.1f} dB ahead "
        f"without training, {ahead['peak']:.1f} dB at the peak and {ahead['last']:.1f} dB at the end.\n"
    )


def agreement() -> str:
    """PSNR of two backends over the same steps."""
    name = "agreement-256-cpu"
    result = load(name)
    seeds = result["options"]["seeds"]
    last = {(run["asked"], run["seed"]): run["last"] for run in result["runs"]}
    rows = []
    for title, key in (("output", "psnr"), ("average of outputs", "psnr of average")):
        for backend in result["options"]["backend"]:
            found = [last[backend, seed][key] for seed in seeds]
            rows.append([f"{backend}, {title}", *(f"{psnr:.2f}" for psnr in found), f"{fmean(found):.2f}"])
    header = ["PSNR in dB", *(f"seed {seed}" for seed in seeds), "mean"]
    return f"{caption(name, result)}\n{table(header, rows)}"


def measured_gpus() -> list[str]:
    """Results of ``make gpu``, the newest first."""
    return [name for name in measured("gpu-*") if name != MODEL]


def gpu() -> str:
    """What ``make gpu`` measured, device by device."""
    return "\n".join(gpu_of(name) for name in measured_gpus()) or (
        "No GPU figure has been measured yet. The GPU kernels are checked under Triton's interpreter and\n"
        "emulated, and by compiling them ahead of time; `make gpu` measures them.\n"
    )


def gpu_model() -> str:
    """What the CUDA engine's step should take, by precision and number of networks."""
    if MODEL not in measured(MODEL):
        return "Not computed yet: `python -m benchmarks.gpu_model` does it.\n"
    result = load(MODEL)
    counts = sorted({row["networks"] for kind in ("training", "search") for row in result[kind]})
    rows = []
    for kind in ("training", "search"):
        found = {(row["precision"], row["networks"]): row for row in result[kind]}
        for precision in PRECISIONS:
            if (precision, counts[0]) not in found:
                continue
            first = found[precision, counts[0]]
            cells = [f"{found[precision, count]['ms a network']:.2f}" for count in counts]
            limits = [limit for limit in first["ms by limit"] if limit != "start"]
            most = max(limits, key=lambda limit: first["ms by limit"][limit])
            target = result["target, ms a network at N = 1"][kind]
            rows.append([kind, precision, *cells, target, first["nodes"], most])
    header = ["step", "precision", *(f"N = {count}, ms a network" for count in counts)]
    header += ["target, N = 1", "launches", "most of the kernels' time, N = 1"]
    link = f"[{MODEL}.json](../benchmarks/results/{MODEL}.json)"
    about = f"{result['date']} · computed for an H100, not measured · mask: {result['mask']} · {link}\n"
    return f"{about}\n    {result['command']}\n\n{table(header, rows)}"


def gpu_kernels() -> str:
    """The float32 step before and after the kernels met a device for the first time."""
    name = "kernels-h100-2026-11-26"
    result = load(name)
    lines = []
    for which in ("training", "search"):
        before = result["steps before"][which][0]["ms"]
        after = {key: value / 1e3 for key, value in result["kernels after"][which]["step us"].items()}
        lines.append([which, ms(before["published"]), two(before["triton"], 2), two(after, 2)])
    header = ["step, float32", "ms, published", "ms, kernels before", "ms, kernels after"]
    return f"{caption(name, result, command=False)}\n{table(header, lines)}"


def gpu_of(name: str) -> str:
    """One measurement of ``make gpu``: steps and memory, as far as its parts have finished."""
    result = load(name)
    found = {part: outcome["result"] for part, outcome in result["parts"].items() if "result" in outcome}
    rows = [(case, "published", row) for case, row in cases_of(result)]
    if "steps compiled" in found:
        rows.append(("training", "compiled", found["steps compiled"]))
    ways = [
        way
        for way in ("torch", "triton", "triton, chains", "cuda")
        if any(way in row["ms"] for _, _, row in rows)
    ]
    lines = []
    for case, baseline, row in rows:
        times, faster = row["ms"], fastest_of(row["times faster"])
        cells = [case, row["size"], row["precision"][baseline], NAMES[baseline], ms(times[baseline])]
        cells += [ms(times[way]) if way in times else "" for way in ways]
        lines.append([*cells, f"{two(faster, 1)} x" if faster else ""])
    header = ["step", "size", "precision", "baseline", "ms, baseline", *(f"ms, {way}" for way in ways)]
    text = f"{caption(name, result)}\n{table([*header, 'faster'], lines)}"
    if "memory" in found:
        peaks = [
            [row["case"], NAMES[row["way"]], f"{row['peak MB']:.0f} MB"]
            for row in found["memory"]
            if "peak MB" in row
        ]
        text += f"\n{table(['step', 'way', 'peak memory'], peaks)}"
    return text


def networks() -> str:
    """Training steps of networks that people bring."""
    result = load("networks")
    rows = []
    for case in result["cases"]:
        share = f"{100 * case['density']:.0f} %" if case["density"] < 1 else "all"
        found = case["chains"]["chains"]
        inside = f"{found['chains']} ({found['convolutions']} of {found['convolutions'] + found['outside']})"
        for threads, row in case["threads"].items():
            times, faster = row["ms"], row["times faster"]
            ways = ("dense", "reference", "rows", "chains")
            cells = [case["network"], share, threads, inside, *(ms(times[way]) for way in ways)]
            rows.append([*cells, f"{two(faster['chains'], 1)} x"])
    header = ["network", "weights", "threads", "chains (convolutions in them)"]
    header += ["dense, ms", "rewritten, PyTorch, ms", "chains that end at joins, ms", "whole chains, ms"]
    return f"{caption('networks', result)}\n{table([*header, 'faster than dense'], rows)}"


TABLES: dict[str, Callable[[], str]] = {
    "gain": gain,
    "networks": networks,
    "layer profile": layer_profile,
    "steps": steps,
    "sparseprop": sparseprop,
    "verification": verification,
    "batch manifest": batch_manifest,
    "own loop": own_loop,
    "convolutions": convolutions,
    "convolutions by density": by_density,
    "memory bound": memory_bound,
    "memory": memory,
    "curve": curve,
    "mask study": mask_study,
    "agreement": agreement,
    "paper": paper,
    "peers": peers,
    "gpu": gpu,
    "gpu kernels": gpu_kernels,
    "gpu batches": gpu_batches,
    "gpu model": gpu_model,
    "comparison": functools.partial(comparison_at, 256),
    "comparison large": functools.partial(comparison_at, 512),
    "comparison cells": comparison_cells,
    "inverse problems": inverse_problems,
    "several runs": several_runs,
    "stopping": stopping,
    "search study": search_study,
    "growth": growth,
    "throughput": throughput_table,
    "time to quality": time_to_quality,
    "photographs": photographs,
    "ui display": ui_display,
}


def pages() -> list[Path]:
    """What may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rewritten(text: str) -> str:
    """A page with every table made anew.

    Raises:
        KeyError: a region names a table that is not there.
    """
    return REGION.sub(lambda found: f"{found[1]}\n{TABLES[found['name']]()}\n{found[3]}", text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a page is outdated"
    )
    options = parser.parse_args()
    outdated = False
    for page in pages():
        text = page.read_text(encoding="utf-8")
        made = rewritten(text)
        if made == text:
            continue
        outdated = True
        print(f"{page.relative_to(ROOT)}: {'outdated' if options.check else 'rewritten'}")
        if not options.check:
            page.write_text(made, encoding="utf-8")
    if options.check and outdated:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
