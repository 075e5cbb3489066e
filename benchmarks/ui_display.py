"""What the page of ``oes-fast ui`` costs a run: steps that are watched beside steps that are not.

    python -m benchmarks.ui_display --json benchmarks/results/ui-display.json

The run is one of a server, in a process of its own. Blocks of its steps are watched and not watched in turn.
While a block is watched, a page is open: it asks for what it shows as often as a browser, which draws nothing
here.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from benchmarks.report import write_result
from benchmarks.table_text import Result, caption, load, measured, table, two
from benchmarks.timer import summary
from oes_fast.bench.environment import environment
from oes_fast.cli.watched import Watch, run_watched
from oes_fast.pipelines.loop import StepInfo
from oes_fast.ui.form import Form
from oes_fast.ui.page import FAST_SECONDS, SLOW_SECONDS
from oes_fast.ui.run import DONE, Run
from oes_fast.ui.server import Site, site

NAME = "ui-display"
WAYS = ("not watched", "watched")  # in turn
SETTLES = 10  # one step of so many, those at the beginning of a block, is not timed: a page may be asking yet
_TIMES = "times.json"  # of a run, in its folder


class Turns:
    """Watches blocks of a training's steps in turn, and times them.

    Args:
        watch: of the server, which sees the steps of a block that is watched.
        open_page: set while there is a page.
        steps: of a block.
    """

    def __init__(self, watch: Watch, open_page: Event, steps: int) -> None:
        self._watch, self._open_page, self._steps = watch, open_page, steps
        self._began = self._seen = 0.0
        self.blocks: list[float] = []  # milliseconds a step
        self.hooks: list[float] = []  # of which the server's watch took

    def begin(
        self, net: nn.Module, first: Tensor, shown: Callable[[Tensor], Tensor], density: float | None
    ) -> None:
        """See :class:`oes_fast.cli.watched.Watch`."""
        self._watch.begin(net, first, shown, density)

    def see(self, info: StepInfo) -> bool:
        """See :class:`oes_fast.cli.watched.Watch`."""
        block, step = divmod(info.step, self._steps)
        settled = max(self._steps // SETTLES, 1)
        watched = block % len(WAYS) == WAYS.index("watched")
        if step == 0:
            (self._open_page.set if watched else self._open_page.clear)()
        stops, began = False, time.perf_counter()
        if watched or info.step == info.steps:
            stops = self._watch.see(info)
        now = time.perf_counter()
        self._seen += now - began
        if step == settled:
            self._began, self._seen = now, 0.0
        if step == self._steps - 1:
            timed = (step - settled) / 1e3
            self.blocks.append((now - self._began) / timed)
            self.hooks.append(self._seen / timed)
        return stops


def run_in_turns(open_page: Event, steps: int, arguments: Sequence[str], watch: Any) -> int:
    """The command that the server runs: the command line, watched in turns."""
    turns = Turns(watch, open_page, steps)
    code = run_watched(arguments, turns)
    Path(_TIMES).write_text(json.dumps([turns.blocks, turns.hooks]), "utf-8")
    return code


class Page:
    """Asks a server for what an open page shows.

    Args:
        served: the server.
    """

    def __init__(self, served: Site) -> None:
        self._address = served.address
        with urllib.request.urlopen(f"{self._address}/config", timeout=60) as answer:
            found = json.load(answer)["dependencies"]
        self._functions = {each["api_name"]: (each["id"], len(each["inputs"])) for each in found}
        self.seconds = 0.0  # of the processor, which answering took this process

    def ask(self, name: str) -> None:
        """Have one of the page's functions called; the server knows what this page has seen."""
        number, inputs = self._functions[name]
        body = {"data": [None] * inputs, "fn_index": number, "session_hash": "benchmark"}
        request = urllib.request.Request(
            f"{self._address}/gradio_api/run/predict",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        began = time.process_time()
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
        self.seconds += time.process_time() - began

    def look(self, run: Run, open_page: Event) -> None:
        """As a browser does, while the page is open, until the run is over."""
        self.ask("loaded")  # the page finds the run that is under way
        due = {"_look": (FAST_SECONDS, 0.0), "_look_closely": (SLOW_SECONDS, 0.0)}
        while not run.over:
            if not open_page.wait(0.1):
                continue
            for name, (seconds, last) in due.items():
                if time.monotonic() - last >= seconds:
                    due[name] = seconds, time.monotonic()
                    self.ask(name)
            time.sleep(0.02)


def measure(*, image: str, size: int, threads: int, steps: int, rounds: int) -> dict[str, Any]:
    """Time ``rounds`` blocks of ``steps`` steps of each way, after one of each that does not count.

    Raises:
        RuntimeError: the run did not end as it should.
    """
    open_page = get_context("spawn").Event()
    form = Form(
        picture=image, sigma=0.1, size=size, mask_from="profile", threads=threads,
        train_steps=len(WAYS) * (rounds + 1) * steps,
    )  # fmt: skip
    command = partial(run_in_turns, open_page, steps)
    with (
        tempfile.TemporaryDirectory(prefix="oes-fast-benchmark-") as folder,
        patch.dict(os.environ, {"OES_FAST_CACHE_DIR": folder}),  # runs and choices are not the user's
        site(command, port=0, models=("skip",), threads=threads) as served,
    ):
        thread = threading.Thread(target=served.serve, daemon=True)
        thread.start()
        while not served.server.started:
            time.sleep(0.01)
        page, run = Page(served), served.queue.submit(form.prepare)
        while run.frame is None and not run.over:
            time.sleep(0.01)
        page.look(run, open_page)
        served.server.should_exit = True
        thread.join(10)
        if run.state != DONE:
            raise RuntimeError(f"run: expected it to end, got {run.state}: {run.said}")
        found = json.loads((run.folder / _TIMES).read_text("utf-8"))
    watched_seconds = sum(found[0][WAYS.index("watched") :: len(WAYS)]) * steps / 1e3
    blocks, hooks = (each[len(WAYS) :] for each in found)
    times = {way: summary(blocks[index :: len(WAYS)]) for index, way in enumerate(WAYS)}
    watched, alone = times["watched"], times["not watched"]
    return {
        "image": image,
        "size": size,
        "threads": threads,
        "steps of a block": steps,
        "rounds": rounds,
        "server, share of a core": page.seconds / watched_seconds,
        "ms a step": times,
        "of which frames": summary(hooks[WAYS.index("watched") :: len(WAYS)]),
        "times as long": {key: watched[key] / alone[key] for key in ("min", "median")},
    }


def tables() -> str:
    """What was measured, for docs/ui.md."""
    return "\n".join(_table(name, load(name)) for name in measured(f"{NAME}*")) or "Not measured yet."


def _table(name: str, result: Result) -> str:
    header = ["image", "threads", *(f"{way}, ms a step" for way in WAYS), "of which frames, ms"]
    header += ["slower by, %", "server, % of a core"]
    times = result["ms a step"]
    slower = {key: 100 * (ratio - 1) for key, ratio in result["times as long"].items()}
    cells = [f"{result['size']} x {result['size']}", result["threads"], *(two(times[way], 2) for way in WAYS)]
    cells.append(two(result["of which frames"], 2))
    cells += [two(slower, 1), f"{100 * result['server, share of a core']:.1f}"]
    return f"{caption(name, result)}\n{table(header, [cells])}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default="astronaut", help="picture of scikit-image")
    parser.add_argument("--size", type=int, default=256, help="image side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="of a block")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    given = {name: value for name, value in vars(options).items() if name != "json"}
    found = measure(**given)
    for way in WAYS:
        print(f"{way}: {two(found['ms a step'][way], 2)} ms a step, minimum (median)", flush=True)
    print(f"times as long: {two(found['times as long'], 3)}")
    if options.json:
        write_result(options.json, {"environment": environment(), **found})


if __name__ == "__main__":
    main()
