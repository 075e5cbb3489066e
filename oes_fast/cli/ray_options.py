"""Options of commands that may run on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

import typer

from oes_fast._checks import check_number
from oes_fast.batch import Engine, ray_workers
from oes_fast.batch.ray_connection import connected
from oes_fast.cli.settings import find_device
from oes_fast.errors import InputError

_PANEL = "More than one machine"

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS|local",
        show_default=False,
        rich_help_panel=_PANEL,
        help="Run on the Ray cluster at HOST:PORT, or on that which this machine is part of (auto); local "
        "starts one on this machine alone. All machines must see FOLDER and the images under the same names.",
    ),
]
RayCpus = Annotated[
    float | None,
    typer.Option(
        "--ray-cpus",
        metavar="N",
        show_default=False,
        rich_help_panel=_PANEL,
        help="CPUs of the cluster that each image takes, with as many threads.  [default: 1]",
    ),
]
RayGpus = Annotated[
    float | None,
    typer.Option(
        "--ray-gpus",
        metavar="N",
        show_default=False,
        rich_help_panel=_PANEL,
        help="GPUs of the cluster that each image takes: 1, or a share such as 0.5 where several images fit "
        "one.  [default: 0; with --device cuda, 1]",
    ),
]


def ray_device(address: str | None, gpus: float | None, device: str) -> tuple[str, float]:
    """The device to compute on, and how many GPUs each image takes of the cluster.

    On a cluster it does not matter what this machine has.

    Raises:
        InputError: the options do not fit each other, or there is no such device.
    """
    if address is None:
        if gpus is not None:
            raise InputError(f"--ray-gpus: expected --ray beside it, got {gpus:g} alone")
        return str(find_device(device)), 0.0
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"--device: expected auto, cpu or cuda beside --ray, which gives GPUs, got {device!r}"
        )
    number = gpus if gpus is not None else 1.0 if device == "cuda" else 0.0
    if not 0 <= number <= 1 or (device != "auto" and (number > 0) != (device == "cuda")):
        allowed = {"auto": "0 to 1", "cpu": "0", "cuda": "more than 0 and at most 1"}[device]
        raise InputError(f"--ray-gpus: expected {allowed} with --device {device}, got {number:g}")
    return ("cuda" if number else "cpu"), number


@contextmanager
def ray_engine(
    address: str | None, cpus: float | None, gpus: float, *, workers: int, threads: int | None
) -> Iterator[Engine | None]:
    """What runs jobs on the cluster, None without an address; connected while inside.

    Raises:
        InputError: the options do not fit each other.
        OESError: Ray is not installed, or there is no such cluster.
    """
    if address is None:
        if cpus is not None:
            raise InputError(f"--ray-cpus: expected --ray beside it, got {cpus:g} alone")
        yield None
        return
    for name, value, usual in (("workers", workers, 1), ("threads", threads, None)):
        if value != usual:
            raise InputError(f"--{name}: expected --ray-cpus in its place beside --ray, got {value}")
    number = check_number("--ray-cpus", 1.0 if cpus is None else cpus, above=0.0)
    with connected(address):
        yield partial(ray_workers.outcomes, address=address, cpus=number, gpus=gpus)
