"""``oes-fast ui``."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import torch
import typer

from oes_fast._checks import check_integer
from oes_fast.cli import options as o
from oes_fast.cli.console import EXIT_OK
from oes_fast.cli.model import DEFAULT, NAMES
from oes_fast.cli.watched import run_watched


def ui(
    port: Annotated[
        int, typer.Option(metavar="N", help="Port of 127.0.0.1 to listen on; 0 for any that is free.")
    ] = 7860,
    threads: o.Threads = None,
) -> int:
    """Open a page on which an image is restored before your eyes: drop one, watch, stop when it is best.

    The page is for the browser of this machine alone, at the address that is printed, and works without a
    network. Runs belong to this command, not to the page: a page that is closed or loaded again finds them.
    They wait for each other. Ctrl-C deletes those that have ended; those that have not can go on when the
    command is started again.
    """
    from oes_fast.ui.server import site

    check_integer("--port", port, minimum=0, below=2**16)
    if threads is not None:
        check_integer("--threads", threads, minimum=1, below=2**15)
    models = tuple(sorted(NAMES, key=lambda name: name != DEFAULT))
    with site(run_watched, port=port, models=models, threads=threads or torch.get_num_threads()) as page:
        print(f"The page is at {page.address}; Ctrl-C ends it.", flush=True)
        with suppress(KeyboardInterrupt):  # the way to end it
            page.serve()
    return EXIT_OK
