"""What `oes-fast compare` found, for docs/comparisons.md: a committed result, its plots and its tables.

    python -m benchmarks.comparison at256/compare.json more/compare.json --name comparison-256

Of a method, image and density that several comparisons have, that of most seeds is taken. Times are left
out: cells that run beside each other say little of them; benchmarks.steps measures steps by turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.report import write_result
from benchmarks.table_text import RESULTS, ROOT, Result, caption, load, table
from oes_fast.bench.environment import environment

PICTURES = ("psnr", "densities")
IMAGES_WIDTH = 960  # pixels that the images side by side are reduced to
FIGURES = ("noisy", "masked", "peak", "peak_step", "end", "average", "ssim")
COUNTS = ("seeds", "collapsed", "diverged")
LABELS = {
    "dense_dip": "dense DIP",
    "deep_decoder": "Deep Decoder",
    "imp": "IMP",
    "oes": "OES",
    "snip": "SNIP",
}
LABELS |= {"grasp": "GraSP", "synflow": "SynFlow", "sgld": "SGLD", "nlm": "non-local means", "bm3d": "BM3D"}
LABELS |= {"tv": "total variation"}


def brief(row: Result) -> Result:
    """A row of compare.json without curves and times, rounded."""
    key = {name: row[name] for name in ("image", "method", "density", *COUNTS)}
    return key | {name: {n: rounded(v) for n, v in row[name].items()} for name in FIGURES}


def rounded(value: float | None) -> float | None:
    """To 4 digits behind the point."""
    return value if value is None else round(value, 4)


def merged(found: Iterable[Result]) -> list[Result]:
    """The rows of all, each once: that of most seeds."""
    rows: dict[tuple[Any, ...], Result] = {}
    for result in found:
        for row in result["rows"]:
            key = row["image"], row["method"], row["density"]
            if key not in rows or rows[key]["seeds"] < row["seeds"]:
                rows[key] = brief(row)
    return list(rows.values())


def decibels(figure: Result, digits: int = 2) -> str:
    """Mean, and where there are several seeds the spread."""
    if figure["mean"] is None:
        return ""
    text = f"{figure['mean']:.{digits}f}"
    return text if figure["spread"] is None else f"{text} ± {figure['spread']:.{digits}f}"


def label(method: str) -> str:
    """The method as the page calls it."""
    return LABELS.get(method, method)


def cells_of(rows: Iterable[Result], image: str) -> list[list[object]]:
    """The lines of an image's table, under :data:`HEADER`."""
    lines: list[list[object]] = []
    for row in rows:
        if row["image"] != image:
            continue
        density = "" if row["density"] is None else f"{100 * row['density']:g} %"
        wrong = f"{row['collapsed']} of {row['seeds']} flat" if row["collapsed"] else ""
        step = row["peak_step"]["mean"]
        figures = [decibels(row[name]) for name in ("masked", "peak")]
        figures += ["" if step is None else f"{step:.0f}"]
        figures += [decibels(row["end"]), decibels(row["average"]), decibels(row["ssim"], 3), wrong]
        lines.append([label(row["method"]), density, row["seeds"], *figures])
    return lines


HEADER = ["method", "kept", "seeds", "mask alone", "peak", "at step", "end", "average", "SSIM, end", ""]


def comparison_at(size: int) -> str:
    """Methods against each other on images of one size, a table an image."""
    name = f"comparison-{size}"
    result = load(name)
    found = []
    for image in result["images"]:
        noisy = next(row["noisy"]["mean"] for row in result["rows"] if row["image"] == image)
        lines = cells_of(result["rows"], image)
        found.append(f"{image.capitalize()}, noisy image {noisy:.2f} dB:\n\n{table(HEADER, lines)}")
    return caption(name, result, command=False) + "\n" + "\n".join(found)


def comparison_cells() -> str:
    """What a cell of the comparison takes, from the steps it is made of, the published way and ours."""
    name = "comparison-steps-256"
    result = load(name)
    settings = load("comparison-256")["settings"]
    steps = {row["case"]: row for row in result["steps"]}
    rows = []
    for row in result["steps"]:
        if not row["case"].startswith("training, "):
            continue
        method, density = row["case"].removeprefix("training, ").split("-")
        parts = [(settings["train_steps"], row)]
        if method == "oes":
            parts.append((settings["search_steps"], steps["search"]))
        published, ours = (
            sum(count * part["ms"][way]["median"] for count, part in parts) / 1e3
            for way in ("published", "auto")
        )
        rows.append(
            [
                f"{label(method)}, {density} %",
                *(f"{row['ms'][way]['median']:.0f}" for way in ("published", "auto")),
                f"{row['times faster']['auto']['median']:.1f} x",
                f"{published:.0f}",
                f"{ours:.0f}",
                f"{published / ours:.1f} x",
            ]
        )
    header = [
        "mask",
        "published step, ms",
        "oes_fast, ms",
        "faster",
        "published cell, s",
        "oes_fast, s",
        "faster",
    ]
    return f"{caption(name, result)}\n{table(header, rows)}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "results", nargs="+", type=Path, help="compare.json files; plots are those of the first"
    )
    parser.add_argument("--name", required=True, help="of the result, such as comparison-256")
    options = parser.parse_args()
    found = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    settings = {k: v for k, v in found[0]["settings"].items() if k not in ("methods", "seeds", "densities")}
    content = {"environment": environment(), "settings": settings, "images": found[0]["images"]}
    write_result(str(RESULTS / f"{options.name}.json"), content | {"rows": merged(found)})
    for kind in PICTURES:
        picture = options.results[0].with_name(f"{kind}.png")
        if picture.is_file():
            shutil.copyfile(picture, ROOT / "docs" / "images" / f"{options.name}-{kind}.png")
    images = options.results[0].with_name("images.png")
    if images.is_file():
        with Image.open(images) as picture:
            small = picture.convert("RGB")
        small.thumbnail((IMAGES_WIDTH, 4 * IMAGES_WIDTH))
        small.save(ROOT / "docs" / "images" / f"{options.name}-images.jpg", quality=85)


if __name__ == "__main__":
    main()
