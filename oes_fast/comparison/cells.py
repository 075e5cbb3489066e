"""The cells of a comparison, and the files in which the result of each is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oes_fast.comparison.classical import CLASSICAL
from oes_fast.comparison.settings import BASELINES, Settings
from oes_fast.errors import InputError
from oes_fast.io.files import write_json
from oes_fast.pipelines.differences import Difference

_FORMAT = "oes_fast comparison cell 1"
_ABSENT: dict[str, Any] = {"model": "skip", "model_options": {}}  # of cells that do not name their network
STARTED, DONE = "started", "done"


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        image: its label.
        method: name of what is compared.
        density: share of the weights to keep, None where there is no mask.
        seed: of weights, input and noise.
    """

    image: str
    method: str
    density: float | None
    seed: int

    @property
    def name(self) -> str:
        """Stem of the cell's files, such as "pepper_oes_0.05_seed0"."""
        density = "" if self.density is None else f"_{self.density:g}"
        return f"{self.image}_{self.method}{density}_seed{self.seed}"

    @property
    def title(self) -> str:
        """For people: "pepper, oes 5 %, seed 0"."""
        return f"{self.image}, {label(self.method, self.density)}, seed {self.seed}"


def label(method: str, density: float | None) -> str:
    """ "oes 5 %", or the method's name alone."""
    return method if density is None else f"{method} {100 * density:g} %"


def grid(images: Sequence[str], settings: Settings) -> list[Cell]:
    """Every cell, in the order in which they run: a whole comparison of the first seed first."""
    return [
        Cell(image, method, density, seed)
        for seed in settings.seeds
        for image in images
        for method in settings.methods
        for density in ((None,) if method in (*BASELINES, *CLASSICAL) else settings.densities)
    ]


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells by what runs in one piece: those of "imp" share the rounds of an image and seed."""
    found: dict[object, list[Cell]] = {}
    for cell in cells:
        key = (cell.image, cell.seed) if cell.method == "imp" else cell
        found.setdefault(key, []).append(cell)
    return list(found.values())


def digest(settings: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of settings that are JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _whole(found: dict[str, Any]) -> bool:
    """Whether a cell's file, which somebody may have edited, has what is read of it."""
    if not isinstance(found.get("settings"), dict) or found.get("state") not in (STARTED, DONE):
        return False
    return found["state"] == STARTED or all(
        isinstance(found.get(k), dict) for k in ("psnr", "ssim", "seconds")
    )


class CellFiles:
    """The files of one cell.

    Args:
        folder: of the whole comparison.
        cell: the cell.
        settings: all that its result depends on, as JSON values.
    """

    def __init__(self, folder: Path, cell: Cell, settings: dict[str, Any]) -> None:
        self.cell = cell
        self.settings = settings
        self._stem = folder / "cells" / cell.name

    def path(self, ending: str) -> Path:
        """The file of that ending, such as ".json" or "_mask.safetensors"."""
        return self._stem.with_name(self._stem.name + ending)

    @property
    def rounds(self) -> Path:
        """Folder for the unfinished rounds of "imp", which all densities of an image and seed share."""
        return self._stem.with_name(f"{self.cell.image}_imp_seed{self.cell.seed}.rounds")

    def read(self) -> dict[str, Any] | None:
        """What is known of the cell, None if nothing.

        Raises:
            InputError: the file is none of a comparison, or of a cell of other settings.
        """
        path = self.path(".json")
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: expected the result of a cell, got {error}; {self._remedy()}"
            ) from error
        if not isinstance(found, dict) or found.get("format") != _FORMAT or not _whole(found):
            raise InputError(f"{path}: expected the result of a cell, got another file; {self._remedy()}")
        if found.get("digest") != digest(self.settings):
            raise InputError(f"{path}: the cell was run {self._clauses(found)}; {self._remedy()}")
        return found

    def write(self, state: str, content: dict[str, Any]) -> None:
        """Write what is known of the cell, atomically."""
        head = {
            "format": _FORMAT,
            "state": state,
            "cell": asdict(self.cell),
            "digest": digest(self.settings),
            "settings": self.settings,
        }
        write_json(self.path(".json"), head | content)

    def _clauses(self, found: dict[str, Any]) -> str:
        before = found["settings"]
        clauses = []
        for key in dict.fromkeys((*self.settings, *before)):
            was, wanted = (values.get(key, _ABSENT.get(key)) for values in (before, self.settings))
            if was == wanted:
                continue
            if key == "image":
                clauses.append("on another image of that name")
            else:
                option = f"--{key.replace('_', '-')}".removesuffix("s" if key == "model_options" else "")
                clauses.append(Difference(key, was, wanted).clause(option))
        return "; ".join(clauses) or "with other settings"

    def _remedy(self) -> str:
        return f"give this comparison another folder (-o), or remove {self._stem}.* and _*"
