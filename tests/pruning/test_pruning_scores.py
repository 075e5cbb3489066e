"""Every score against its formula in a few lines of PyTorch on the dense network, in float64."""

from __future__ import annotations

import copy
from contextlib import suppress

import networks
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, skip_unless_available, unchanged
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.reference.philox import TIE_BREAK, random_bits

OPTIONS = [
    {},
    {"num_channels_skip": 2, "pad": "zero", "downsample_mode": "stride", "act_fun": "ELU"},
    {"upsample_mode": "bilinear", "downsample_mode": "max", "need1x1_up": True},
]


def function(net: nn.Module, z: Tensor):
    """The image of a flat vector of weights, in the mode that the network is in."""
    layout = FlatLayout.of(net)
    return lambda w: torch.func.functional_call(copy.deepcopy(net), layout.views(w), (z,))


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def tiny(activation: nn.Module | None = None) -> tuple[nn.Module, Tensor, Tensor]:
    """51 parameters, a batch norm among them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(3), activation or nn.Tanh(),
        nn.Conv2d(3, 1, 1), nn.Sigmoid(),
    ).double()  # fmt: skip
    nn.init.uniform_(net[1].weight, 0.5, 1.5)
    nn.init.uniform_(net[1].bias, -0.5, 0.5)
    return net, torch.rand(1, 2, 6, 5).double(), torch.rand(1, 1, 6, 5).double()


# ---- random and magnitude


def test_random_scores_are_uniform_and_seeded(problem):
    net = oes.models.skip(4, 3, num_channels_down=(16, 16), seed=0)
    scores = oes.pruning.random_scores(net, seed=3)
    assert torch.equal(scores, oes.pruning.random_scores(copy.deepcopy(net), seed=3))
    assert not torch.equal(scores, oes.pruning.random_scores(net, seed=4))
    assert scores.unique().numel() > 0.99 * scores.numel()
    share = torch.histc(scores / 2**32, 10, 0, 1) / scores.numel()
    assert (share - 0.1).abs().max() < 0.02
    half = oes.pruning.random(net, density=0.5, seed=3).flat
    assert not bool((oes.pruning.random(net, density=0.2, seed=3).flat & ~half).any())
    # Not those of the noise of a search, or of the choice among equal scores, under the same seed.
    assert not torch.equal(half, oes.pruning.select(net, torch.zeros_like(scores), 0.5, seed=3).flat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_magnitude(make_problem, dtype):
    net = make_problem(dtype=dtype).net
    assert torch.equal(oes.pruning.magnitude_scores(net), flat(net).abs())
    mask = oes.pruning.magnitude(net, density=0.4, small="score")
    views = FlatLayout.of(net).views(mask.flat)
    norms = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name in norms:  # a scale starts at 1, a shift at 0
        assert bool(views[f"{name}.weight"].all())
        assert not bool(views[f"{name}.bias"].any())
    kept, dropped = flat(net).abs()[mask.flat], flat(net).abs()[~mask.flat]
    assert kept.min() >= dropped.max()


# ---- SNIP


@pytest.mark.parametrize("backend", ["auto", "reference", "torch", "cpu"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.filterwarnings("ignore::oes_fast.EmptyLayerWarning")
def test_snip(make_problem, options, backend):
    if backend != "auto":
        skip_unless_available(backend)
    net, _, z, noisy, _ = make_problem(**options)
    w = flat(net).requires_grad_()
    (g,) = torch.autograd.grad(((function(net.train(), z)(w) - noisy) ** 2).mean(), w)
    with unchanged(net, z, noisy):
        scores = oes.pruning.snip_scores(net, z, noisy, backend=backend)
    assert_close(scores, (g * w).abs().detach(), 1e-10)
    mask = oes.pruning.snip(net, z, noisy, density=0.4, backend=backend, small="score")
    assert (g * w).abs()[mask.flat].min() >= (g * w).abs()[~mask.flat].max() * (1 - 1e-9)


def test_snip_is_the_change_of_the_loss_to_first_order():
    net, z, noisy = tiny()
    w, G = flat(net), function(net, z)
    scores = oes.pruning.snip_scores(net, z, noisy)
    h = 1e-6
    for i in (0, 17, 40, w.numel() - 1):
        step = torch.zeros_like(w)
        step[i] = h * w[i]  # towards zero and away
        change = ((G(w - step) - noisy) ** 2).mean() - ((G(w + step) - noisy) ** 2).mean()
        assert float(scores[i]) == pytest.approx(abs(float(change)) / (2 * h), rel=1e-6, abs=1e-10)


# ---- GraSP


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_grasp_by_the_full_hessian(backend):
    net, z, noisy = tiny()
    w, G = flat(net), function(net, z)

    def loss(w: Tensor) -> Tensor:
        return ((G(w) - noisy) ** 2).mean()

    g = torch.func.grad(loss)(w)
    H = torch.autograd.functional.hessian(loss, w)
    with unchanged(net, z, noisy):
        scores = oes.pruning.grasp_scores(net, z, noisy, backend=backend)
    assert_close(scores, -w * (H @ g), 1e-9)
    # The paper prunes the largest.
    competing = ~oes.pruning.small_parameters(net)
    mask = oes.pruning.grasp(net, z, noisy, density=0.5, backend=backend)
    kept, dropped = scores[competing & mask.flat], scores[competing & ~mask.flat]
    assert kept.max() <= dropped.min()
    assert kept.min() < 0 < dropped.max()


def test_the_sign_of_grasp_is_that_of_the_gradient_flow():
    """Removing a weight of positive score makes the gradient's norm grow."""
    net, z, noisy = tiny()
    w, G = flat(net), function(net, z)

    def flow(w: Tensor) -> Tensor:
        return torch.func.grad(lambda v: ((G(v) - noisy) ** 2).mean())(w).square().sum()

    scores = oes.pruning.grasp_scores(net, z, noisy)
    for i in [int(scores.argmax()), int(scores.argmin()), 3]:
        step = torch.zeros_like(w)
        step[i] = 1e-5 * w[i]
        removed, added = float(flow(w - step)), float(flow(w + step))
        assert (removed - added) / 2e-5 == pytest.approx(2 * float(scores[i]), rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_grasp_on_generators(make_problem, options):
    net, _, z, noisy, _ = make_problem(**options)
    w = flat(net).requires_grad_()
    G = function(net.train(), z)
    (g,) = torch.autograd.grad(((G(w) - noisy) ** 2).mean(), w, create_graph=True)
    (Hg,) = torch.autograd.grad(g, w, g.detach())
    assert_close(oes.pruning.grasp_scores(net, z, noisy), (-w * Hg).detach(), 1e-8)


@pytest.mark.parametrize("backend", ["cpu", "triton", "cuda"])
def test_grasp_refuses_backends_without_a_second_derivative(problem, backend):
    with pytest.raises(oes.BackendError, match='backend: expected "auto", "torch" or "reference"'):
        oes.pruning.grasp(problem.net, problem.z, problem.noisy, density=0.5, backend=backend)


# ---- SynFlow


def flows(net: nn.Module, z: Tensor, kept: Tensor) -> Tensor:
    """|w| dR/d|w| of a network that does not end with a sigmoid."""
    linear = copy.deepcopy(net).double().eval()
    w = (flat(net).double().abs() * kept).requires_grad_()
    R = torch.func.functional_call(linear, FlatLayout.of(net).views(w), (torch.ones_like(z).double(),)).sum()
    return (w * torch.autograd.grad(R, w)[0]).detach()


@pytest.mark.parametrize("backend", ["auto", "reference", "torch", "cpu"])
@pytest.mark.parametrize("options", OPTIONS[:2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_synflow_scores(make_problem, options, backend, dtype):
    if backend != "auto":
        skip_unless_available(backend)
    net, mask, z, _, _ = make_problem(dtype=dtype, **options)
    without = copy.deepcopy(net)[:-1]  # the sigmoid is left out
    with unchanged(net, z):
        scores = oes.pruning.synflow_scores(net, z, mask.flat, backend=backend, verify=False)
    assert scores.dtype == torch.float64
    # A crop behind the network does not come into it: 32 x 32 fits.
    assert_close(scores, flows(without, z, mask.flat), 1e-12)


def test_synflow_by_the_product_of_matrices():
    """The paper's formula, of two layers without bias."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 4, 1, bias=False), nn.Sigmoid()
    )
    A, B = net[0].weight.detach().double().abs()[..., 0, 0], net[2].weight.detach().double().abs()[..., 0, 0]
    into, out = A.sum(1), B.sum(0)  # of each of the three hidden channels
    pixels = 5 * 4
    expected = torch.cat([(pixels * out[:, None] * A).flatten(), (pixels * B * into[None]).flatten()])
    scores = oes.pruning.synflow_scores(net, torch.rand(1, 2, 5, 4))
    assert_close(scores, expected)
    first, second = scores.split([6, 12])
    assert float(first.sum()) == pytest.approx(float(second.sum()))  # conservation, the paper's theorem 1


@pytest.mark.parametrize("small", ["keep", "score"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_synflow_in_rounds(make_problem, small, scope):
    net, _, z, noisy, _ = make_problem()
    without, density, rounds = copy.deepcopy(net)[:-1], 0.25, 7
    few = oes.pruning.small_parameters(net)
    kept = torch.ones_like(few)
    sizes = FlatLayout.of(net).sizes
    # Equal scores, those of shifts and of channels without a scale, are chosen among by the seed.
    place = random_bits(0, 0, few.numel(), stream=TIE_BREAK).argsort().argsort()

    def largest(scores: Tensor, places: Tensor, number: int) -> Tensor:
        return places[
            sorted(range(len(places)), key=lambda i: (-scores[places[i]], place[places[i]]))[:number]
        ]

    for k in range(1, rounds + 1):
        scores = flows(without, z, kept)
        count = round(density ** (k / rounds) * few.numel())
        chosen = few.clone() if small == "keep" else torch.zeros_like(few)
        competing = kept & ~chosen
        count -= int(chosen.sum())
        if scope == "global":
            chosen[largest(scores, competing.nonzero().flatten(), count)] = True
        else:
            pieces = [
                p for p in torch.arange(few.numel()).split(sizes) if small == "score" or not bool(few[p[0]])
            ]
            total = sum(map(len, pieces))
            exact = [count * len(p) / total for p in pieces]
            whole = [int(e) for e in exact]
            for i in sorted(range(len(pieces)), key=lambda i: whole[i] - exact[i])[: count - sum(whole)]:
                whole[i] += 1
            for p, n in zip(pieces, whole, strict=True):
                chosen[largest(scores, p[competing[p]], n)] = True
        kept = chosen
    mask = oes.pruning.synflow(net, z, noisy, density=density, rounds=rounds, small=small, scope=scope)
    assert torch.equal(mask.flat, kept)
    assert mask.kept == int(kept.sum()) == round(density * few.numel())


@pytest.mark.filterwarnings("ignore::oes_fast.EmptyLayerWarning")
def test_synflow_loses_no_layer_where_magnitude_does(make_problem):
    net, _, z, _, _ = make_problem(num_channels_down=(8, 16, 16), dtype=torch.float32)
    density = 0.06
    lost = [
        [name for name, share in mask.layer_density(net).items() if share == 0]
        for mask in (
            oes.pruning.synflow(net, z, density=density),
            oes.pruning.magnitude(net, density=density),
        )
    ]
    assert lost[0] == []
    assert lost[1] != []


class Functional(nn.Module):
    """Sigmoids that are no modules, the last of them cropped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 1, 1)
        self.squashed = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(F.sigmoid(self.first(x)))
        return (x.sigmoid() if self.squashed else x)[..., 1:, :-1]


class Normed(nn.Module):
    """Norms of every kind, which take the signal of ones away."""

    def __init__(self, *, normed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 1)
        self.norms = nn.Sequential(
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.InstanceNorm2d(4, affine=True),
            nn.GroupNorm(2, 4),
            nn.LayerNorm([4, 3, 3]),
            nn.RMSNorm([3, 3]),
            nn.InstanceNorm2d(4),
            nn.BatchNorm2d(4),
        )
        for parameter in self.norms.parameters():
            nn.init.uniform_(parameter, -1, 1)
        self.norms[-1].running_mean += 3
        self.out = nn.Conv2d(4, 1, 1)
        self.normed = normed

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.normed:
            return self.out(self.norms(x))
        for norm in self.norms:
            if getattr(norm, "weight", None) is not None:
                channels = isinstance(norm, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d)
                shape = (-1, 1, 1) if channels else norm.weight.shape
                x = x * norm.weight.view(shape)
                if not isinstance(norm, nn.RMSNorm):
                    x = x + norm.bias.view(shape)
        return self.out(x)


@pytest.mark.filterwarnings("ignore::oes_fast.OESWarning")
def test_synflow_of_other_networks():
    torch.manual_seed(0)
    net, z = Functional(), torch.rand(1, 2, 4, 4)
    plain = copy.deepcopy(net)
    plain.squashed = False
    everything = torch.ones(13, dtype=torch.bool)
    assert_close(oes.pruning.synflow_scores(net, z), flows(plain, z, everything))

    z = torch.rand(1, 2, 3, 3)
    scores = oes.pruning.synflow_scores(Normed(normed=True), z)
    plain = Normed(normed=False)
    assert_close(scores, flows(plain, z, torch.ones_like(scores)), 1e-4)  # a variance of 1 + eps
    assert (scores > 0).all()

    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.Sigmoid())  # [1, C], no image
    scores = oes.pruning.synflow_scores(net, torch.rand(1, 5))
    assert_close(scores, flows(net[:-1], torch.rand(1, 5), torch.ones_like(scores)))

    shared = nn.Sigmoid()  # runs twice: only the last run is left out
    net = nn.Sequential(nn.Conv2d(2, 3, 1), shared, nn.Conv2d(3, 1, 1), shared)
    scores = oes.pruning.synflow_scores(net, z)
    assert_close(scores, flows(net[:-1], z, torch.ones_like(scores)))


def test_synflow_without_a_signal():
    net = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(3, 1, 1, bias=False))
    nn.init.zeros_(net[0].weight)
    with pytest.raises(oes.InputError, match="net: expected a signal from an input of ones"):
        oes.pruning.synflow(net, torch.rand(1, 2, 4, 4), density=0.5)


# ---- networks at random


def with_batch_of_one(net: nn.Module, z: Tensor) -> Tensor:
    z = z[:1]
    with torch.no_grad():
        output = copy.deepcopy(net).train()(z)
    assume(output.numel() > 0 and bool(output.isfinite().all()))
    return z


@given(st.data())
@settings(max_examples=8, deadline=None)
@pytest.mark.filterwarnings("ignore::oes_fast.OESWarning")
def test_rewritten_networks_give_the_scores_of_dense_ones(data):
    net, z = data.draw(networks.networks())
    z = with_batch_of_one(net, z)
    noisy = torch.rand_like(copy.deepcopy(net).train()(z).detach())
    for score, arguments in (
        (oes.pruning.snip_scores, (net, z, noisy)),
        (oes.pruning.grasp_scores, (net, z, noisy)),
        (oes.pruning.synflow_scores, (net, z)),
    ):
        with suppress(oes.InputError):  # no signal from an input of ones: a relu that nothing passes
            dense = score(*arguments, backend="reference")
            assert_close(score(*arguments, verify=False), dense, 1e-7)
