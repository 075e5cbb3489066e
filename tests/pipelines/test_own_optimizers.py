"""An optimiser of the caller's own in a training: against plain PyTorch, resumed, refused."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from conftest import assert_close, build_problem, skip_unless_available
from kernel_backends import EMULATED
from torch.optim import LBFGS, SGD, Adagrad, AdamW, RMSprop

import oes_fast as oes
from oes_fast.flat import flatten, unflatten_
from oes_fast.io.files import load_tensors
from oes_fast.pipelines import setup
from oes_fast.pipelines.cuda_graphs import GraphedRun
from oes_fast.pipelines.optimizer_state import load_optimizer_state, optimizer_state

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")

OPTIMIZERS = {
    "sgd": lambda w: SGD(w, lr=0.5, momentum=0.9, nesterov=True),
    "adamw": lambda w: AdamW(w, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda w: RMSprop(w, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda w: Adagrad(w, lr=1e-2),
    "lbfgs": lambda w: LBFGS(w, lr=0.5, max_iter=3, history_size=4),
    "lbfgs with a search": lambda w: LBFGS(w, max_iter=2, line_search_fn="strong_wolfe"),
}
STEPS = 5


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 20), density=0.5)


def train(problem, optimizer, **changes):
    net, mask, z, noisy, clean = problem
    options = {"steps": STEPS, "backend": "reference", "record_every": 1, "clean": clean, "verify": False}
    options |= changes
    return oes.train_sparse(net, mask, z, noisy, optimizer=optimizer, **options)


def by_torch(problem, optimizer):
    """Losses: one flat leaf of all weights, of which the mask keeps some."""
    net = copy.deepcopy(problem.net).train()
    kept = flatten(net)[problem.mask.flat].requires_grad_()
    steps = optimizer([kept])
    buffers = [buffer for _, buffer in net.named_buffers()]

    def loss():
        flat = torch.zeros(problem.mask.flat.numel(), dtype=kept.dtype).masked_scatter(
            problem.mask.flat, kept
        )
        parts = flat.split([p.numel() for p in net.parameters()])
        weights = {n: x.view_as(p) for (n, p), x in zip(net.named_parameters(), parts, strict=True)}
        output = torch.func.functional_call(net, weights, problem.z)
        return (output - problem.noisy).square().mean()

    losses = []
    for _ in range(STEPS):
        losses.append(float(loss().detach()))
        after_one = [buffer.clone() for buffer in buffers]

        def closure():
            steps.zero_grad()
            value = loss()
            value.backward()
            return value

        steps.step(closure)
        for buffer, value in zip(buffers, after_one, strict=True):
            buffer.copy_(value)
    return losses, kept.detach()


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *((b, n) for b in ("reference", "cpu") for n in OPTIMIZERS),
        *((b, "sgd") for b in ("torch", *EMULATED)),
    ],
)
def test_it_is_that_of_torch_on_the_kept_weights(small, backend, name):
    skip_unless_available(backend)
    losses, kept = by_torch(small, OPTIMIZERS[name])
    fit = train(small, OPTIMIZERS[name], backend=backend)
    assert fit.history.loss[:-1] == pytest.approx(losses, rel=1e-7)
    found = flatten(fit.net)
    assert_close(found[small.mask.flat], kept, rtol=1e-5)
    assert torch.equal(found[~small.mask.flat], torch.zeros_like(found[~small.mask.flat]))


class Restless(torch.optim.Optimizer):
    """Moves what has no gradient as well."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p += 0.01


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_dropped_weights_stay_zero_whatever_it_does(small, backend):
    skip_unless_available(backend)
    fit = train(small, Restless, backend=backend)
    found, start = flatten(fit.net), flatten(small.net)
    assert (found[~small.mask.flat] == 0).all()
    assert_close(found[small.mask.flat], start[small.mask.flat] + 0.01 * STEPS, rtol=1e-12)


@pytest.mark.parametrize("name", ["lbfgs", "adamw"])
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_without_weights_it_makes_no_step(small, name, backend):
    skip_unless_available(backend)
    empty = oes.Mask.from_flat(small.net, torch.zeros_like(small.mask.flat))
    fit = train(small._replace(mask=empty), OPTIMIZERS[name], backend=backend)
    assert fit.steps == STEPS
    assert not flatten(fit.net).any()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_interrupted_it_goes_on_bit_for_bit(name, backend, tmp_path):
    skip_unless_available(backend)
    problem = build_problem(size=(16, 20), density=0.5, dtype=torch.float32)
    options = {"backend": backend, "schedule": "cosine", "input_noise": 0.02, "seed": 4, "average": 0.9}
    whole = train(problem, OPTIMIZERS[name], **options)
    options |= {"checkpoint": tmp_path / "checkpoint", "resume": True}
    assert train(problem, OPTIMIZERS[name], callback=lambda info: info.step == 2, **options).interrupted
    rest = train(problem, OPTIMIZERS[name], **options)
    assert torch.equal(rest.output, whole.output)
    assert torch.equal(rest.average, whole.average)
    assert torch.equal(flatten(rest.net), flatten(whole.net))


def test_the_schedule_multiplies_its_rates(small):
    rates = []

    class Seen(SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    train(small, lambda w: Seen(w, lr=2.0), schedule="linear")
    assert rates == pytest.approx([2.0, 1.6, 1.2, 0.8, 0.4])


def test_dense_dip_takes_one(small):
    options = {"steps": 3, "record_every": 1, "backend": "reference"}
    fit = oes.baselines.dense_dip(
        small.net, small.z, small.noisy, optimizer=lambda w: AdamW(w, lr=1e-3, weight_decay=0.0), **options
    )
    adam = oes.baselines.dense_dip(small.net, small.z, small.noisy, lr=1e-3, **options)
    assert fit.history.loss == pytest.approx(adam.history.loss, rel=1e-9)


class Scaled(SGD):
    """Has settings outside of its groups."""

    rule = "plain"

    def __init__(self, params, *, scale, ramp=(0, 1)):
        super().__init__(params, lr=0.1)
        self.scale, self._ramp = scale, ramp
        self.calls = []  # no number: may change


class Other(Scaled):
    rule = "other"


@pytest.mark.parametrize(
    ("of", "this", "says"),
    [
        (
            lambda w: Scaled(w, scale=1.0), lambda w: Scaled(w, scale=1.5),
            r"with _ramp=\(0, 1\), rule='plain', scale=1\.0, this run has .* scale=1\.5",
        ),
        (
            lambda w: Scaled(w, scale=1, ramp=(0, 1)), lambda w: Scaled(w, scale=1, ramp=(0, 2)),
            r"_ramp=\(0, 1\).*_ramp=\(0, 2\)",
        ),
        (lambda w: Scaled(w, scale=1), lambda w: Other(w, scale=1), "rule='plain'.* rule='other'"),
        (None, "sgd", r"with optimizer = None, this run has torch\.optim\.sgd\.SGD\("),
        ("sgd", None, r"with optimizer = torch\.optim\.sgd\.SGD\(.*, this run has None"),
        ("sgd", "adamw", "with optimizer = "),
        ("sgd", lambda w: SGD(w, lr=0.25, momentum=0.9, nesterov=True), r"lr=0\.5.* this run has .*lr=0\.25"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_one_is_refused(small, of, this, says, tmp_path):
    options = {"checkpoint": tmp_path / "checkpoint", "resume": True}
    train(small, OPTIMIZERS.get(of, of), **options)
    assert train(small, OPTIMIZERS.get(of, of), **options).steps == STEPS  # the same goes on
    with pytest.raises(oes.CheckpointError, match=says):
        train(small, OPTIMIZERS.get(this, this), **options)


def test_a_checkpoint_holds_tensors_and_text(small, tmp_path):
    path = tmp_path / "checkpoint"
    train(small, OPTIMIZERS["lbfgs"], checkpoint=path)
    tensors, metadata = load_tensors(path)
    layout = bytes(tensors["optimizer.layout"].tolist()).decode()
    assert '"n_iter"' in layout
    assert metadata["settings"]["optimizer"].startswith("torch.optim.lbfgs.LBFGS(")
    assert "lr" not in metadata["settings"]


class Keeper(SGD):
    """Keeps what a checkpoint cannot."""

    def step(self, closure=None):
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["why"] = {"of": [1, re.compile("x")]}


def test_state_of_other_types_is_named(small, tmp_path):
    options = {"checkpoint": tmp_path / "checkpoint", "checkpoint_seconds": 0.0}
    with pytest.warns(oes.CheckpointWarning, match=r"got Pattern as state_dict\(\)\['state'\]\[0\]\['why'\]"):
        train(small, lambda w: Keeper(w, lr=0.1), steps=2, **options)


def test_state_keeps_its_types():
    weights = torch.ones(3, requires_grad=True)
    optimizers = [SGD([weights], lr=0.1) for _ in range(2)]
    values = {
        "wide": torch.arange(3, dtype=torch.float64) / 7, "whole": torch.arange(3), "number": 1e-300,
        "nothing": None, "list": [1, (2.5, None)], "text": "x", "dict": {"a": True, 3: torch.ones(1)},
    }  # fmt: skip
    optimizers[0].state[weights] = values
    load_optimizer_state(optimizers[1], optimizer_state(optimizers[0]))
    found = optimizers[1].state[weights]
    assert repr(found) == repr(values)


def replacing(w):
    class Replacing(SGD):
        def step(self, closure=None):
            self.param_groups[0]["params"][0].data = w[0].detach().clone()

    return Replacing(w, lr=0.1)


@pytest.mark.parametrize(
    ("optimizer", "options", "says"),
    [
        ("sgd", {}, "optimizer: expected a function .* got str"),
        (lambda: None, {}, "optimizer: expected a function .* it raises TypeError"),
        (lambda w: SGD(w, lr=-1.0), {}, "optimizer: .* it raises ValueError: Invalid learning rate"),
        (lambda w: w, {}, "optimizer: expected it to make a torch.optim.Optimizer, got list"),
        (lambda w: SGD([w[0].detach().clone()], lr=0.1), {}, "optimizer: expected one of the weights"),
        (lambda w: 1 / 0, {}, "optimizer: .* it raises ZeroDivisionError: division by zero"),
        (
            lambda w: torch.optim.SparseAdam(w), {},
            r"optimizer: expected one that takes a dense gradient of torch\.float64 and shape \(\d+,\), "
            "SparseAdam raises in step 0 RuntimeError: SparseAdam does not support dense gradients",
        ),
        (replacing, {}, "optimizer: expected one that updates the weights in place, Replacing"),
        (OPTIMIZERS["sgd"], {"lr": 0.1}, "lr: expected none beside optimizer, which has its own, got 0.1"),
        (OPTIMIZERS["sgd"], {"weight_decay": 0.1}, "weight_decay: expected none beside optimizer"),
        (
            lambda w: Adagrad(w, lr=torch.tensor(0.1)), {"schedule": "cosine"},
            "schedule: expected an optimizer whose groups have a number as lr",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(small, optimizer, options, says):
    with pytest.raises(oes.InputError, match=says):
        train(small, optimizer, **options)


@pytest.mark.parametrize("kind", [oes.OESError, KeyError])
def test_what_fails_in_an_evaluation_is_not_its_fault(small, kind):
    calls = []

    def forward(image):
        calls.append(1)
        if len(calls) == 3:
            raise kind("why")
        return 1 * image

    with pytest.raises(oes.OESError, match="why") as caught:
        train(small, OPTIMIZERS["lbfgs"], forward=forward)
    assert "optimizer" not in str(caught.value)


def test_a_first_gradient_that_is_not_finite_is_said(small):
    net = copy.deepcopy(small.net)
    unflatten_(net, flatten(net))
    problem = small._replace(noisy=torch.full_like(small.noisy, 1e200))
    with pytest.raises(oes.OESError, match="not to blame"):
        train(problem, OPTIMIZERS["sgd"])


class Repeating:
    """A recorder that calls again."""

    def warm_up(self, call):
        call()

    rehearse = warm_up

    def __call__(self, call):
        return call


@pytest.mark.cuda_graph
@pytest.mark.parametrize("name", ["sgd", "adamw", "lbfgs"])
def test_recorded_steps_leave_it_out(monkeypatch, small, name):
    whole = train(small, OPTIMIZERS[name], schedule="cosine")
    monkeypatch.setattr(setup, "graphed", lambda steps, *_: GraphedRun(steps, Repeating()))
    recorded = train(small, OPTIMIZERS[name], schedule="cosine")
    assert torch.equal(flatten(recorded.net), flatten(whole.net))
