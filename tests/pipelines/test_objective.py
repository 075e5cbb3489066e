"""What runs compare with what: the seam for other operators and losses, and the fused loss behind it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, build_problem, skip_unless_available
from kernel_backends import EMULATED
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout, flatten, unflatten_
from oes_fast.functional import gumbel_mask, mask_kl
from oes_fast.pipelines.functions import make_function
from oes_fast.pipelines.objective import SquaredError, evaluate, zero_loss
from oes_fast.pipelines.search import SearchRun
from oes_fast.pipelines.train_run import TrainRun
from oes_fast.rewrite.run.context import FusedLoss

pytestmark = pytest.mark.usefixtures("unverified")

BACKENDS = ("reference", "torch", "cpu", *EMULATED)


@dataclass
class Reduced:
    """An image seen at half the size, a quarter of its pixels missing, by the mean absolute difference."""

    target: Tensor
    known: Tensor
    asked: list[str] = field(default_factory=list)

    def measured(self, image):
        return self.known * F.avg_pool2d(image, 2)

    def check(self, output):
        self.asked.append("check")
        return output

    def loss(self, image):
        return (self.measured(image) - self.target).abs().mean()

    def fused_loss(self):
        return None

    def settings(self):
        return {}

    def words(self):
        return {}


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 20), density=0.7)


@pytest.fixture
def reduced(small):
    known = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(4)) < 0.75
    return Reduced(known * F.avg_pool2d(small.noisy, 2), known)


def masked_net(problem):
    """The dense network with the weights that the mask drops at zero."""
    net = copy.deepcopy(problem.net)
    unflatten_(net, flatten(net) * problem.mask.flat)
    return net.train()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_takes_another_operator_and_loss(small, reduced, backend):
    skip_unless_available(backend)
    function, chosen = make_function(small.net, small.z, small.mask, backend)
    run = TrainRun(function, reduced, 1e-2, None, chosen)
    net, mask = masked_net(small), small.mask.flat
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(4):
        output = run.evaluate(step, final=False)
        expected = net(small.z)
        loss = (reduced.known * F.avg_pool2d(expected, 2) - reduced.target).abs().mean()
        assert_close(output, expected.detach(), rtol=1e-9)
        assert float(run.objective()) == pytest.approx(float(loss.detach()), rel=1e-9)
        run.update(step)
        optimizer.zero_grad()
        loss.backward()
        for parameter, kept in zip(net.parameters(), FlatLayout.of(net).views(mask).values(), strict=True):
            parameter.grad.mul_(kept)
        optimizer.step()
    assert reduced.asked == ["check"] * 4
    assert_close(flatten(function.to_net(run.weights.detach())), flatten(net), rtol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_search_takes_another_operator_and_loss(small, reduced, backend):
    skip_unless_available(backend)
    function, chosen = make_function(small.net, small.z, None, backend)
    run = SearchRun(function, reduced, chosen, density=0.3, lr=0.1, kl=1e-4, temperature=0.2, seed=5)
    w0 = flatten(small.net)
    logits = torch.zeros_like(w0, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for step in range(3):
        run.evaluate(step, final=False)
        weights = gumbel_mask(w0, logits, seed=5, step=step, temperature=0.2, backend="reference")
        views = FlatLayout.of(small.net).views(weights)
        image = torch.func.functional_call(small.net.train(), views, small.z)
        loss = reduced.loss(image) + 1e-4 * mask_kl(logits, density=0.3)
        assert float(run.objective()) == pytest.approx(float(loss.detach()), rel=1e-9)
        run.update(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_close(run.logits, logits.detach(), rtol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_squared_error_is_taken_along_where_it_can_be(small, backend):
    skip_unless_available(backend)
    objective = SquaredError(small.noisy)
    assert objective.measured(small.clean) is small.clean
    assert objective.fused_loss() is not objective.fused_loss()
    function, _ = make_function(small.net, small.z, small.mask, backend)
    weights = function.initial_weights().requires_grad_()
    image, loss = evaluate(objective, function, weights, update_stats=False)
    (grad,) = torch.autograd.grad(loss, weights)
    fused = FusedLoss(small.noisy)
    same = function(weights, update_stats=False, fused_loss=fused)
    assert (fused.loss is not None) == (backend in ("cpu", "cuda"))
    assert torch.equal(image, same)
    apart = function(weights, update_stats=False)
    by_itself = F.mse_loss(apart, small.noisy)
    if fused.loss is None:
        assert torch.equal(loss, by_itself)
    else:  # the loss of the evaluation is the one taken along, bit for bit
        assert torch.equal(loss, fused.loss)
        assert torch.equal(grad, torch.autograd.grad(fused.loss, weights)[0])
    assert_close(loss, by_itself, rtol=1e-12)
    assert_close(grad, torch.autograd.grad(by_itself, weights)[0], rtol=1e-9)
    assert float(objective.loss(image.detach())) == pytest.approx(float(loss.detach()), rel=1e-12)


def test_what_a_checkpoint_knows_of_it(small):
    objective, other = SquaredError(small.noisy), SquaredError(small.noisy + 1)
    assert objective.settings().keys() == objective.words().keys() == {"noisy"}
    assert objective.settings() == SquaredError(small.noisy.clone()).settings() != other.settings()
    assert objective.words()["noisy"] == "20 x 16 pixels of 3 channels"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            (1, 2),
            r"^net: .*the noisy image's shape \(1, 3, 16, 20\) .*, got a tuple of 2; wrap",
        ),
        (torch.ones(1, 3, 16, 19, dtype=torch.float64), r"got \(1, 3, 16, 19\)$"),
        (torch.ones(1, 3, 16, 20), r"torch.float64, got torch\.float32$"),
    ],
    ids=["tuple", "shape", "dtype"],
)
def test_outputs_that_do_not_fit(small, output, message):
    with pytest.raises(oes.InputError, match=message):
        SquaredError(small.noisy).check(output)


def test_a_loss_without_a_gradient_is_refused(small, reduced):
    class Detached(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, z):
            return self.net(z).detach()

    function, _ = make_function(Detached(small.net), small.z, None, "reference")
    weights = function.initial_weights()
    for objective in (SquaredError(small.noisy), reduced):
        with torch.no_grad():
            evaluate(objective, function, weights.requires_grad_(), update_stats=False)
        evaluate(objective, function, weights.detach(), update_stats=False)
        with pytest.raises(oes.InputError, match=r"^net: expected an output with a gradient"):
            evaluate(objective, function, weights.requires_grad_(), update_stats=False)


def test_before_the_first_evaluation(small):
    loss = zero_loss(SquaredError(small.noisy))
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss == 0
