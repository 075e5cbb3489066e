"""Single operations: the rows that pytest-benchmark wrote, as a result, and the tables made of them.

    pytest benchmarks --ignore benchmarks/bench_steps.py --benchmark-json=rows.json
    python -m benchmarks.operations rows.json

Of each row the result keeps what :mod:`benchmarks.report` notes in it, and the least and median time.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import write_result
from benchmarks.table_text import RESULTS, Result, caption, load, table

NAME = "operations-cpu"
MADE_BY = "pytest benchmarks --ignore benchmarks/bench_steps.py"  # or some of its rows
MEMORY_BOUND = {  # name in the result: what the page calls it
    "gumbel_mask[{}-{}]": "`gumbel_mask`, 3,008,867 weights",
    "mask_update[{}--{}]": "`mask_update`, 3,008,867 weights",
    "mask_update[{}-kl_value-{}]": "`mask_update` with the KL value",
    "masked_adam[{}-3008867-{}]": "`masked_adam`, 3,008,867 weights",
    "masked_adam[{}-150443-{}]": "`masked_adam`, 150,443 weights",
    "batch_norm_act[{}-forward-{}]": "`batch_norm_act`, forward",
    "batch_norm_act[{}-backward-{}]": "`batch_norm_act`, backward",
    "output_head[{}-{}]": "`output_head`, forward and backward",
}
CONVOLUTIONS = {  # operation and pass in the result: what the page calls it
    ("sparse_conv2d", "forward"): "`sparse_conv2d`, forward",
    ("sparse_conv2d", "input_gradient"): "`sparse_conv2d`, input gradient, without the first layer",
    ("sparse_conv2d", "weight_gradient"): "`sparse_conv2d`, weight gradient",
    ("sparse_up_conv2d", "forward"): "`sparse_up_conv2d`, forward",
    ("sparse_up_conv2d", "backward"): "`sparse_up_conv2d`, both gradients",
}
FIRST_LAYER = "32to"  # its input needs no gradient
PARTS = ("forward", "input_gradient", "weight_gradient")


def compact(found: dict[str, Any]) -> Result:
    """A result of what pytest-benchmark wrote: times in ms, the environment once."""
    rows = []
    environments = []
    for each in found["benchmarks"]:
        info = dict(each["extra_info"])
        environments.append(info.pop("environment"))
        times = {name: round(1e3 * each["stats"][name], 4) for name in ("min", "median")}
        rows.append({"name": each["name"], "ms": times, **info})
    if any(each != environments[0] for each in environments):
        raise SystemExit("expected rows of one machine, got several")
    date = datetime.datetime.fromisoformat(found["datetime"]).date().isoformat()
    return {"date": date, "command": MADE_BY, "environment": environments[0], "benchmarks": rows}


def parameters(entry: Result) -> list[str]:
    """Those of a row's test."""
    names: list[str] = entry["name"].split("[")[1].removesuffix("]").split("-")
    return names


def summed(rows: Sequence[Result]) -> tuple[float, float, float]:
    """Of rows together: ms, GMAC/s, times faster than dense."""
    total: float = sum(row["ms"]["median"] for row in rows)
    rate: float = sum(row["GMAC/s"] * row["ms"]["median"] for row in rows) / total
    return total, rate, sum(row["dense ms"] for row in rows) / total


def convolutions() -> str:
    """Sparse convolutions beside dense ones, summed over the layers of a network."""
    result = load(NAME)
    rows = []
    for (operation, kind), title in CONVOLUTIONS.items():
        for threads in (1, 2):
            found = []
            for entry in result["benchmarks"]:
                if not entry["name"].startswith(f"test_{operation}["):
                    continue
                layer, made, count = parameters(entry)
                first = kind == "input_gradient" and layer.startswith(FIRST_LAYER)
                if made == kind and int(count) == threads and not first:
                    found.append(entry)
            total, rate, faster = summed(found)
            shares = [100 * entry["share of sgemm"] for entry in found]
            rows.append(
                [
                    title,
                    len(found),
                    threads,
                    f"{total:.1f}",
                    f"{rate:.1f}",
                    f"{min(shares):.0f} % to {max(shares):.0f} %",
                    f"{faster:.1f} x",
                ]
            )
    header = ["operation", "layers", "threads", "ms", "GMAC/s", "of sgemm, by layers", "faster than dense"]
    return f"{caption(NAME, result)}\n{table(header, rows)}"


def by_density() -> str:
    """All three passes of a sparse convolution beside the dense ones: times faster, by size and density."""
    result = load(NAME)
    totals: dict[tuple[str, str, str], list[Result]] = {}
    for entry in result["benchmarks"]:
        if entry["name"].startswith("test_sparse_conv2d_by_density["):
            size, density, part, threads = parameters(entry)
            assert part in PARTS
            totals.setdefault((threads, density, size), []).append(entry)
    sizes = sorted({size for _, _, size in totals}, key=int)
    lines: list[list[object]] = []
    for threads in ("1", "2"):
        for density in sorted({density for _, density, _ in totals}, key=float):
            cells = []
            for size in sizes:
                _, rate, faster = summed(totals[threads, density, size])
                cells.append(f"{faster:.1f} x, {rate:.0f}")
            lines.append([f"{100 * float(density):g} %", threads, *cells])
    header = ["weights kept", "threads", *(f"{size} px" for size in sizes)]
    return f"{caption(NAME, result, command=False)}\n{table(header, lines)}"


def memory_bound() -> str:
    """Operations that one pass over memory bounds, beside the reference."""
    result = load(NAME)
    found = {entry["name"]: entry for entry in result["benchmarks"]}
    rows = []
    for pattern, title in MEMORY_BOUND.items():
        for threads in (1, 2):
            ours, reference = (
                found["test_" + pattern.format(backend, threads)] for backend in ("cpu", "reference")
            )
            median = ours["ms"]["median"]
            rows.append(
                [
                    title,
                    threads,
                    f"{median:.2f}",
                    f"{ours['GB/s']:.1f}",
                    f"{100 * ours['share of copy, median']:.0f} %",
                    f"{reference['ms']['median'] / median:.1f} x",
                ]
            )
    header = ["operation", "threads", "ms", "GB/s", "of copy", "faster than the reference"]
    return f"{caption(NAME, result, command=False)}\n{table(header, rows)}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path, help="file of pytest-benchmark's --benchmark-json")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{NAME}.json", help="where to write")
    options = parser.parse_args()
    write_result(str(options.json), compact(json.loads(options.rows.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
