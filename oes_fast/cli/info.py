"""``oes-fast info``."""

from __future__ import annotations

import platform
import textwrap
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from oes_fast.backends import automatic_order, backends
from oes_fast.cli.console import EXIT_OK
from oes_fast.cli.display import lost_output
from oes_fast.cli.report import versions
from oes_fast.errors import OutputError
from oes_fast.io.files import write_json
from oes_fast.models import MODELS

_INDENT = " " * 16


def describe() -> dict[str, Any]:
    """Versions, devices, threads, backends and models, for JSON."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {name: {"available": s.available, "reason": s.reason} for name, s in backends().items()}
    return {
        "command": "info",
        "versions": versions(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "devices": {"cpu": platform.machine(), **{f"cuda:{i}": name for i, name in enumerate(gpus)}},
        "threads": torch.get_num_threads(),
        "backends": found,
        "auto": automatic_order(),
        "models": {
            model.name: {"dims": model.dims, "help": model.help, "options": model.options}
            for model in MODELS.values()
        },
    }


def info(
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write it as JSON as well.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> int:
    """Print versions, devices, threads, which backends are here or why they are not, and the models.

    For bug reports, and for the options that --model-option takes.
    """
    found = describe()
    if json is not None:
        write_json(json, found)
    if not quiet:
        console = Console(highlight=False, markup=False, soft_wrap=True)
        for name, version in found["versions"].items():
            console.print(f"{name:<12}{version}")
        console.print(f"{'platform':<12}{found['platform']}")
        console.print(f"{'cuda':<12}{found['cuda'] or 'not in this PyTorch'}")
        for name, device in found["devices"].items():
            console.print(f"{name:<12}{device}")
        console.print(f"{'threads':<12}{found['threads']}")
        console.print("backends")
        for name, status in found["backends"].items():
            state = "available" if status["available"] else f"not here: {status['reason']}"
            console.print(f"  {name:<10}{state}")
        console.print('backend "auto" takes the first that is available of')
        for device, order in found["auto"].items():
            console.print(f"  {device:<10}{order}")
        console.print("models and their options")
        for name, model in found["models"].items():
            console.print(f"  {name:<14}{model['help']}")
            options = (f"{key}={_shown(default)}" for key, default in model["options"].items())
            console.print(
                textwrap.fill(", ".join(options), 100, initial_indent=_INDENT, subsequent_indent=_INDENT)
            )
        if (reason := lost_output()) is not None:
            raise OutputError(f"standard output: cannot write: {reason}")
    return EXIT_OK


def _shown(value: object) -> str:
    """As --model-option takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
