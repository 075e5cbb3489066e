"""The process that makes the runs of a server, one after another: what it tells, and what it is told."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from oes_fast.analysis.layers import row_names
from oes_fast.flat import FlatLayout
from oes_fast.pipelines.loop import StepInfo

FRAME_SECONDS = 0.2  # from one frame to the next, at least
LAYER_SECONDS = 0.5  # and from one look at the layers to the next
# Of the run's time that frames may take, and that looks at the layers may: the next one waits for it.
SHARE, LAYER_SHARE = 0.02, 0.01
_SAMPLE = 8  # one logit of so many decides where a mask is cut: sorting all of them takes as long as a step

Picture = npt.NDArray[np.uint8]  # [H, W] or [H, W, 3]
# Runs the command line with arguments, watched by the second; gives the exit code. To be pickled.
Command = Callable[[Sequence[str], Any], int]


class Order(Enum):
    """What a run is told while it runs."""

    PAUSE = "pause"
    GO = "go"
    STOP = "stop"


@dataclass(frozen=True)
class Began:
    """The run knows what to restore.

    Attributes:
        first: what it begins with.
    """

    first: Picture


@dataclass(frozen=True)
class Frame:
    """What a run looks like at a step.

    Attributes:
        phase: "search" or "train".
        step: updates made, of ``steps``.
        steps: to make.
        output: image of this step.
        average: running average of the images, or None.
        loss: objective.
        psnr: in dB, None where the clean image is not known.
        psnr_average: of the average.
        rate: steps a second of this phase, None at its beginning.
        layers: name and share of the weights kept of each layer, about, were the search to end here; None
            where it was not looked at.
    """

    phase: str
    step: int
    steps: int
    output: Picture
    average: Picture | None
    loss: float
    psnr: float | None
    psnr_average: float | None
    rate: float | None
    layers: tuple[tuple[str, float], ...] | None


@dataclass(frozen=True)
class Paused:
    """The run waits (True), or goes on (False)."""

    paused: bool


@dataclass(frozen=True)
class Ended:
    """The command has ended.

    Attributes:
        code: its exit code.
        said: what it printed on stderr.
        spent: share of the steps' time that frames took.
    """

    code: int
    said: str
    spent: float


class Watcher:
    """Looks on at a command for the server at the other end of a pipe.

    A frame is sent when it is time for one, and no step waits for it: those between two frames are not shown.

    Args:
        pipe: to the server.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._shown: Callable[[Tensor], Tensor] = lambda image: image
        self._layers: Layers | None = None
        self._phase = ""
        self._began = self._first_step = 0.0
        self._next = self._next_layers = 0.0
        self._stop = False
        self._start = time.monotonic()
        self._waited = self._spent = 0.0

    @property
    def spent(self) -> float:
        """Share of the time, pauses left out, that frames took."""
        return self._spent / max(time.monotonic() - self._start - self._waited, 1e-9)

    def begin(
        self, net: nn.Module, first: Tensor, shown: Callable[[Tensor], Tensor], density: float | None
    ) -> None:
        """See :class:`oes_fast.cli.watched.Watch`."""
        self._shown = shown
        self._layers = None if density is None else Layers(net, density)
        self._start = time.monotonic()
        self._pipe.send(Began(picture(first)))

    def see(self, info: StepInfo) -> bool:
        """See :class:`oes_fast.cli.watched.Watch`."""
        now = time.monotonic()
        if info.phase != self._phase:
            self._phase, self._began, self._first_step = info.phase, now, info.step
            self._next = now
        ending = self._stop
        while self._pipe.poll():
            self._obey(self._pipe.recv(), info)
        if ending or info.step == info.steps or time.monotonic() >= self._next:
            self._send(info)  # the last one whatever the time: it is what the result is of
        return self._stop

    def _obey(self, order: Order, info: StepInfo) -> None:
        if order is Order.STOP:
            self._stop = True
        if order is not Order.PAUSE:
            return
        self._send(info)
        self._pipe.send(Paused(True))
        began = time.monotonic()
        while (order := self._pipe.recv()) is Order.PAUSE:
            pass
        self._stop = order is Order.STOP
        waited = time.monotonic() - began
        self._waited += waited
        self._began += waited
        self._pipe.send(Paused(False))

    def _send(self, info: StepInfo) -> None:
        began = time.monotonic()
        made, seconds = info.step - self._first_step, began - self._began
        layers = None
        logits = info.logits if self._layers is not None and info.step > 0 else None  # all alike at first
        if logits is not None and (began >= self._next_layers or info.step == info.steps):
            assert self._layers is not None
            layers = self._layers.kept(logits)
            now = time.monotonic()
            self._next_layers = now + max(LAYER_SECONDS, (now - began) / LAYER_SHARE)
            self._spent += now - began
            began = now
        average = info.average
        frame = Frame(
            info.phase,
            info.step,
            info.steps,
            picture(self._shown(info.output)),
            None if average is None else picture(self._shown(average)),
            info.loss,
            info.psnr,
            info.psnr_average,
            made / seconds if made and seconds > 0 else None,
            layers,
        )
        self._pipe.send(frame)
        now = time.monotonic()
        cost = now - began
        self._spent += cost
        self._next = now + max(FRAME_SECONDS, cost / SHARE)


class Layers:
    """The layers of a network, about as a search that ended now would keep them.

    Args:
        net: the network.
        density: share of its weights to keep.
    """

    def __init__(self, net: nn.Module, density: float) -> None:
        layout, names = FlatLayout.of(net), row_names(net)
        self._sizes = layout.sizes
        self._rows = [names[name] for name in layout.names]
        self._names = list(dict.fromkeys(names.values()))
        self._density = density

    def kept(self, logits: Tensor) -> tuple[tuple[str, float], ...]:
        """Name and share kept of each, big layers first.

        Args:
            logits: of the search, [number of parameters].
        """
        sample = logits.reshape(-1)[::_SAMPLE]
        count = min(max(round(self._density * sample.numel()), 1), sample.numel())
        least = torch.topk(sample, count, sorted=False).values.min()
        found: dict[str, list[int]] = {name: [0, 0] for name in self._names}
        for row, part in zip(self._rows, (logits >= least).split(self._sizes), strict=True):
            found[row][0] += int(part.sum())
            found[row][1] += part.numel()
        return tuple((name, kept / count) for name, (kept, count) in found.items() if count)


def picture(image: Tensor) -> Picture:
    """uint8 [H, W] or [H, W, 3] of an image [1, 1 or 3, H, W] in 0..1."""
    levels = image.detach()[0].clamp(0, 1).mul(255).round().to(torch.uint8)
    planes: Picture = levels.permute(1, 2, 0).contiguous().cpu().numpy()
    return planes[..., 0] if planes.shape[-1] == 1 else planes


def work(pipe: Connection, command: Command) -> None:
    """Make the runs that come through ``pipe``, each as (arguments, folder to make it in), until it closes.

    Args:
        pipe: to the server.
        command: what runs the command line.
    """
    for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to all its processes; the server decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            given = pipe.recv()
            if isinstance(given, Order):  # for a run that had ended by itself
                continue
            arguments, folder = given
            pipe.send(_ended(pipe, command, arguments, folder))


def _ended(pipe: Connection, command: Command, arguments: Sequence[str], folder: Path) -> Ended:
    os.chdir(
        folder
    )  # the results name their files as they would for who repeats the command beside the image
    watcher = Watcher(pipe)
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = command(arguments, watcher)
    return Ended(code, said.getvalue(), watcher.spent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
