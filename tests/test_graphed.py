"""Recorded steps: the bookkeeping with a recorder that only calls again, the recordings on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import oes_fast as oes
from oes_fast.ops._clock import Clock
from oes_fast.pipelines.graphed import GraphedRun, graphed


class CallingRecorder:
    """Repeats calls, and counts what it recorded."""

    def __init__(self, fails: bool = False) -> None:
        self.recorded, self.fails, self.warm = 0, fails, 0

    def warm_up(self, call):
        self.warm += 1
        call()

    def __call__(self, call):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.recorded += 1
        return call


class CountingRun:
    """w moves by the step's number; an output is w."""

    phase = "train"

    def __init__(self) -> None:
        self.w = torch.zeros(1)
        self.outputs: list[float] = []
        self.seen: list[int] = []

    def forward(self, step: int | Clock, *, final: bool) -> Tensor:
        self.seen.append(int(step.ticks) if isinstance(step, Clock) else step)
        return self.w.clone()

    def accumulate(self, output: Tensor) -> None:
        self.outputs.append(float(output))

    def evaluate(self, step: int, *, final: bool) -> Tensor:
        output = self.forward(step, final=final)
        self.accumulate(output)
        return output

    def update(self, step: int | Clock) -> None:
        self.w += int(step.ticks) if isinstance(step, Clock) else step

    def objective(self) -> Tensor:
        return self.w.sum()

    def clock(self) -> Clock:
        return Clock("cpu", rows=4)

    def state(self) -> dict[str, Tensor]:
        return {"w": self.w}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.w.copy_(state["w"])


@pytest.mark.parametrize("start", [0, 3])
def test_recorded_steps_are_the_steps(start):
    plain, inner = CountingRun(), CountingRun()
    run = GraphedRun(inner, CallingRecorder())
    for each in (plain, run):
        for step in range(start, start + 6):
            each.evaluate(step, final=False)
            each.update(step)
        each.evaluate(start + 6, final=True)
    assert run.recorded
    assert run.phase == "train"
    assert float(inner.w) == float(plain.w)
    assert inner.outputs == plain.outputs
    assert inner.seen[3:] == plain.seen  # three steps of warm-up, undone


def test_what_cannot_be_recorded_runs_as_it_is():
    plain, inner = CountingRun(), CountingRun()
    run = GraphedRun(inner, CallingRecorder(fails=True))
    with pytest.warns(
        oes.OESWarning, match="train: the step cannot be recorded as a CUDA graph .operation not"
    ):
        run.evaluate(0, final=False)
    run.update(0)
    plain.evaluate(0, final=False)
    plain.update(0)
    for step in (1, 2):
        for each in (plain, run):
            each.evaluate(step, final=False)
            each.update(step)
    assert not run.recorded
    assert float(inner.w) == float(plain.w)
    assert inner.outputs == plain.outputs


def test_only_triton_on_a_gpu_is_recorded():
    run = CountingRun()
    assert graphed(run, "triton", torch.device("cpu")) is run
    assert graphed(run, "torch", torch.device("cuda")) is run


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize("pipeline", ["train", "search"])
def test_recorded_pipelines_repeat_the_plain_ones(make_problem, monkeypatch, pipeline):
    from oes_fast.pipelines import search, train

    p = make_problem(dtype=torch.float32)
    net, z, noisy = p.net.cuda(), p.z.cuda(), p.noisy.cuda()
    losses = []
    for module in (None, train, search):
        if module is not None:
            monkeypatch.setattr(module, "graphed", lambda run, *_: run)
        if pipeline == "train":
            found = oes.train_sparse(
                net, p.mask, z, noisy, steps=40, record_every=1, backend="triton", average=0.9
            )
        else:
            found = oes.search_mask(net, z, noisy, density=0.5, steps=40, record_every=1, backend="triton")
        losses.append(found.history.loss)
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
