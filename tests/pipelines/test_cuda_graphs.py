"""Recorded steps: the bookkeeping with a recorder that only calls again, the recordings on a GPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from kernel_backends import device_of, require
from short_runs import BOTH, outcome, start
from torch import Tensor

import oes_fast as oes
from oes_fast.ops._clock import Clock
from oes_fast.pipelines import cuda_graphs, setup
from oes_fast.pipelines.cuda_graphs import CudaRecorder, GraphedRun, graphed

pytestmark = pytest.mark.cuda_graph


class CallingRecorder:
    """Repeats calls, and counts what it recorded."""

    def __init__(self, fails: bool = False) -> None:
        self.recorded, self.fails, self.warm = 0, fails, 0

    def warm_up(self, call):
        self.warm += 1
        call()

    def rehearse(self, call):
        self.warm_up(call)

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


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_cudnn_tries_its_algorithms_while_a_step_is_recorded(monkeypatch, fails, deterministic):
    seen = []

    class Noting(CountingRun):
        def forward(self, step, *, final):
            seen.append(torch.backends.cudnn.benchmark)
            return super().forward(step, final=final)

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    run = GraphedRun(Noting(), CallingRecorder(fails=fails))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oes.OESWarning)
        run.evaluate(0, final=False)
    *recording, replayed = seen
    assert recording == [not deterministic] * 3
    assert replayed is False
    assert torch.backends.cudnn.benchmark is False


def test_frozen_flags_do_not_keep_a_step_from_being_recorded(monkeypatch):
    class Frozen:
        benchmark = property(
            lambda self: False, lambda self, value: (_ for _ in ()).throw(RuntimeError("frozen"))
        )
        deterministic = False

    monkeypatch.setattr(torch.backends, "cudnn", Frozen())
    recorder = CallingRecorder()
    run = GraphedRun(CountingRun(), recorder)
    run.evaluate(0, final=False)
    assert run.recorded


class Cuda:
    """What torch.cuda keeps of streams, recordings and memory, with recordings that fail as asked.

    Attributes:
        stream: current one.
        pool: the recording that takes the memory, or None.
        random: "recording", or how many random numbers were drawn.
    """

    def __init__(self, monkeypatch, fails=""):
        self.stream, self.pool, self.random, self.mode, self.fails = "caller's", None, 7, 0, fails
        self.modes = []
        cuda, this = torch.cuda, self

        class Graph:
            def capture_begin(self, pool, **_):
                if this.fails == "begin":
                    raise RuntimeError("cannot begin: another recording is under way")
                this.pool, this.random = pool, "recording"

            def capture_end(self):
                # As in torch before 2.12: what is undone comes after what raises.
                if this.fails in ("middle", "end", "kernel"):
                    raise RuntimeError("operation failed due to a previous error during capture")
                this.pool, this.random = None, 7

            def reset(self):
                pass

            def replay(self):
                pass

        class Generator:
            def clone_state(self):
                return this.random

            def graphsafe_set_state(self, state):
                this.random = state

        class Stream:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                self.before, this.stream = this.stream, self.stream

            def __exit__(self, *_):
                this.stream = self.before

        class OwnStream(str):
            def wait_stream(self, other):
                pass

        def set_mode(mode):
            this.mode = {"error": 2}.get(mode, mode)

        def end_allocations(device, pool):
            if this.pool is None:
                raise RuntimeError("not recording to this pool")
            this.pool = None

        self.stream = OwnStream("caller's")
        fakes = {
            "CUDAGraph": Graph, "Stream": lambda device: OwnStream("side"), "stream": Stream,
            "graph_pool_handle": lambda: (0, 1), "current_stream": lambda device=None: this.stream,
            "set_stream": lambda stream: setattr(this, "stream", stream), "synchronize": lambda *_: None,
            "empty_cache": lambda: None, "default_generators": (Generator(),),
            "device": lambda device: Stream(this.stream),
            "get_sync_debug_mode": lambda: this.mode, "set_sync_debug_mode": set_mode,
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocations, raising=False)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)

    def is_as_before(self):
        return (self.stream, self.pool, self.random, self.mode) == ("caller's", None, 7, 0)


CAUSES = {
    "begin": (None, "cannot begin"),
    "middle": (RuntimeError("a layer asks for a number\nmore"), "a layer asks for a number"),
    "end": (None, "due to a previous error"),
}


@pytest.mark.parametrize("fails", CAUSES)
def test_a_recording_that_fails_leaves_nothing_behind(monkeypatch, fails):
    cuda = Cuda(monkeypatch, fails)
    recorder = CudaRecorder(torch.device("cuda", 0))
    cause, message = CAUSES[fails]

    def call():
        assert cuda.stream == "side"
        if cause is not None:
            raise cause

    with pytest.raises(RuntimeError, match=message):
        recorder(call)
    assert cuda.is_as_before()


@pytest.mark.parametrize("fails", CAUSES)
def test_a_run_goes_on_where_recording_fails_and_says_the_cause(monkeypatch, fails):
    cuda = Cuda(monkeypatch, fails)
    plain, inner = CountingRun(), CountingRun()
    run = GraphedRun(inner, CudaRecorder(torch.device("cuda", 0)))
    cause, message = CAUSES[fails]
    forward = inner.forward

    def failing(step, *, final):
        if cuda.pool is not None and cause is not None:
            raise cause
        return forward(step, final=final)

    inner.forward = failing
    with pytest.warns(oes.OESWarning, match=f"recorded as a CUDA graph .*{message}"):
        run.evaluate(0, final=False)
    run.update(0)
    assert cuda.is_as_before()
    plain.evaluate(0, final=False)
    plain.update(0)
    for step in (1, 2):
        for each in (plain, run):
            each.evaluate(step, final=False)
            each.update(step)
    assert not run.recorded
    assert float(inner.w) == float(plain.w)
    assert inner.outputs == plain.outputs


class TritonError(Exception):
    """As Triton's: no RuntimeError, and not always with a text."""


@pytest.mark.parametrize("error", [TritonError("out of resource: shared memory"), TritonError()])
def test_errors_of_triton_are_no_reason_to_stop(monkeypatch, error):
    Cuda(monkeypatch)
    inner = CountingRun()
    forward, calls = inner.forward, []

    def failing(step, *, final):
        calls.append(step)
        if len(calls) == 2:
            raise error
        return forward(step, final=final)

    inner.forward = failing
    run = GraphedRun(inner, CudaRecorder(torch.device("cuda", 0)))
    with pytest.warns(oes.OESWarning, match=str(error) or "TritonError"):
        run.evaluate(0, final=False)
    assert not run.recorded
    assert inner.outputs == [0.0]


def test_the_last_step_of_the_warm_up_may_not_wait(monkeypatch):
    cuda = Cuda(monkeypatch)
    inner, modes = CountingRun(), []
    forward = inner.forward

    def watched(step, *, final):
        modes.append(cuda.mode)
        return forward(step, final=final)

    inner.forward = watched
    run = GraphedRun(inner, CudaRecorder(torch.device("cuda", 0)))
    run.evaluate(0, final=False)
    assert run.recorded
    assert modes == [0, 0, 2, 0]
    assert cuda.is_as_before()


def test_a_step_that_waits_is_named_and_the_mode_is_put_back(monkeypatch):
    cuda = Cuda(monkeypatch)
    inner = CountingRun()
    update = inner.update

    def waits(step):
        if cuda.mode == 2:
            raise RuntimeError("called a synchronizing CUDA operation")
        update(step)

    inner.update = waits
    run = GraphedRun(inner, CudaRecorder(torch.device("cuda", 0)))
    with pytest.warns(oes.OESWarning, match="called a synchronizing CUDA operation"):
        run.evaluate(0, final=False)
    assert not run.recorded
    assert cuda.is_as_before()
    assert float(inner.w) == 0.0


def test_a_second_ctrl_c_is_no_failed_recording(monkeypatch):
    cuda = Cuda(monkeypatch, "middle")

    def call():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CudaRecorder(torch.device("cuda", 0))(call)
    assert cuda.is_as_before()


def test_only_triton_and_cuda_on_a_gpu_are_recorded(monkeypatch):
    run = CountingRun()
    for backend in ("triton", "cuda"):
        assert graphed(run, backend, torch.device("cpu")) is run
    assert graphed(run, "torch", torch.device("cuda")) is run
    monkeypatch.setattr(cuda_graphs, "CudaRecorder", lambda device: CallingRecorder())
    monkeypatch.setattr(run, "clock", lambda: None, raising=False)
    for backend in ("triton", "cuda"):
        assert isinstance(graphed(run, backend, torch.device("cuda")), GraphedRun)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@BOTH
def test_clocked_steps_of_cuda_are_the_plain_ones(make_problem, monkeypatch, run, dtype):
    """All of a recording but the recording itself, on a GPU or emulated."""
    require("cuda")
    device = device_of("cuda")
    p = make_problem(size=(12, 16), dtype=dtype, num_channels_down=(3, 4))
    p = p._replace(net=p.net.to(device), z=p.z.to(device), noisy=p.noisy.to(device), clean=None)
    results, recorded = [], []

    def calling(run, *_):
        recorded.append(GraphedRun(run, CallingRecorder()))
        return recorded[-1]

    for wrap in (lambda run, *_: run, calling):
        monkeypatch.setattr(setup, "graphed", wrap)
        results.append(start(run, p, steps=4, backend="cuda", verify=False))
    assert recorded[0].recorded
    assert torch.equal(outcome(run, results[0]), outcome(run, results[1]))
    assert results[0].history.loss == results[1].history.loss


def sampled(p, backend, **options):
    """Noise on input and weights, and what is kept of the images: what a recording leaves out."""
    noise = {"input_noise": 0.05, "param_noise": 0.1, "burn_in": 0, "sample_every": 1, "seed": 3}
    return oes.baselines.sgld(p.net, p.z, p.noisy, record_every=1, backend=backend, **(noise | options))


def test_clocked_steps_of_cuda_have_the_noise_of_their_step(make_problem, monkeypatch):
    require("cuda")
    device = device_of("cuda")
    p = make_problem(size=(12, 16), num_channels_down=(3, 4))
    p = p._replace(net=p.net.to(device), z=p.z.to(device), noisy=p.noisy.to(device), clean=None)
    results = []
    for wrap in (lambda run, *_: run, lambda run, *_: GraphedRun(run, CallingRecorder())):
        monkeypatch.setattr(setup, "graphed", wrap)
        results.append(sampled(p, "cuda", steps=4, verify=False))
    plain, clocked = results
    assert plain.history.loss == clocked.history.loss
    assert torch.equal(plain.posterior_mean, clocked.posterior_mean)
    assert torch.equal(outcome("train", plain), outcome("train", clocked))
    assert plain.samples == clocked.samples == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_recorded_steps_have_the_noise_of_their_step(make_problem, monkeypatch, backend):
    require(backend)
    p = make_problem(dtype=torch.float32)
    p = p._replace(net=p.net.cuda(), z=p.z.cuda(), noisy=p.noisy.cuda(), clean=None)
    results = []
    for wrap in (setup.graphed, lambda run, *_: run):
        monkeypatch.setattr(setup, "graphed", wrap)
        results.append(sampled(p, backend, steps=20, lr=1e-3))
    assert results[0].history.loss == pytest.approx(results[1].history.loss, rel=1e-3)
    torch.testing.assert_close(results[0].posterior_mean, results[1].posterior_mean, rtol=0, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@BOTH
def test_recorded_pipelines_repeat_the_plain_ones(make_problem, monkeypatch, run, backend):
    require(backend)
    p = make_problem(dtype=torch.float32)
    p = p._replace(net=p.net.cuda(), z=p.z.cuda(), noisy=p.noisy.cuda(), clean=None)
    average = {"average": 0.9} if run == "train" else {}
    losses = []
    for wrap in (setup.graphed, lambda run, *_: run):
        monkeypatch.setattr(setup, "graphed", wrap)
        losses.append(start(run, p, steps=40, backend=backend, **average).history.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
