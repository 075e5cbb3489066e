"""From scores to a mask: the density asked for is the density kept, for each scope and small parameters."""

from __future__ import annotations

import warnings

import networks
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.pruning.select import SCOPES, SMALL, choose, empty_layers, quotas

QUIET = pytest.mark.filterwarnings("ignore::oes_fast.EmptyLayerWarning")


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1, bias=False))


def scores_of(net: nn.Module, seed: int, *, values: int = 2**20) -> torch.Tensor:
    """Random scores; few values give many ties."""
    generator = torch.Generator().manual_seed(seed)
    numel = sum(p.numel() for p in net.parameters())
    return torch.randint(values, (numel,), generator=generator).double()


@QUIET
@given(st.data(), st.floats(0.01, 1.0), st.sampled_from(SCOPES), st.sampled_from(SMALL), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_density_asked_for_is_kept(data, density, scope, small, seed):
    net, _ = data.draw(networks.networks())
    numel = sum(p.numel() for p in net.parameters())
    few = oes.pruning.small_parameters(net)
    keep = round(density * numel)
    assume(keep >= 1 and (small == "score" or keep >= int(few.sum())))
    scores = scores_of(net, seed, values=data.draw(st.sampled_from([1, 3, 2**20])))
    mask = oes.pruning.select(net, scores, density, scope=scope, small=small, seed=seed)

    assert mask.kept == keep
    mask.check(net)
    if small == "keep":
        assert bool(mask.flat[few].all())
    competing = ~few if small == "keep" else torch.ones_like(few)
    pieces = (
        [torch.arange(numel)] if scope == "global" else torch.arange(numel).split(FlatLayout.of(net).sizes)
    )
    for places in pieces:
        here = places[competing[places]]
        kept, dropped = scores[here[mask.flat[here]]], scores[here[~mask.flat[here]]]
        if kept.numel() and dropped.numel():
            assert kept.min() >= dropped.max()
        if scope == "tensor" and here.numel():  # the same share, within one weight
            share = (keep - int((~competing).sum())) / int(competing.sum())
            assert abs(kept.numel() - share * here.numel()) < 1 + 1e-9


@given(st.lists(st.tuples(st.integers(1, 400), st.floats(0.01, 3)), min_size=1, max_size=9), st.data())
@settings(max_examples=200, deadline=None)
def test_quotas_are_proportional_and_exact(tensors, data):
    sizes, weights = [size for size, _ in tensors], [weight for _, weight in tensors]
    keep = data.draw(st.integers(0, sum(sizes)))
    found = quotas(sizes, weights, keep)
    assert sum(found) == keep
    assert all(0 <= n <= size for n, size in zip(found, sizes, strict=True))
    # By bisection for the factor c of min(1, c * weight), in place of capping tensor after tensor.
    low, high = 0.0, 1 / min(weights)
    for _ in range(200):
        c = (low + high) / 2
        total = sum(size * min(1, c * w) for size, w in tensors)
        low, high = (c, high) if total < keep else (low, c)
    for n, (size, w) in zip(found, tensors, strict=True):
        assert abs(n - size * min(1, high * w)) < 1 + 1e-6


def test_quotas_have_room():
    assert quotas([10, 10, 10], [1.0] * 3, 15) == [5, 5, 5]
    assert quotas([10, 10, 10], [1.0] * 3, 16) == [6, 5, 5]
    assert quotas([10, 10, 10], [1.0] * 3, 16, room=[2, 10, 10]) == [2, 7, 7]
    assert quotas([10, 10], [1.0, 1.0], 11, room=[1, 10]) == [1, 10]


def test_erdos_renyi_kernel_shares():
    net = nn.Sequential(nn.Conv2d(8, 16, 5, bias=False), nn.Conv2d(16, 16, 3, bias=False))
    mask = oes.pruning.select(net, scores_of(net, 0), 0.1, scope="erdos_renyi_kernel")
    found = [int(view.sum()) for view in FlatLayout.of(net).views(mask.flat).values()]
    shares = [(8 + 16 + 5 + 5) / (8 * 16 * 5 * 5), (16 + 16 + 3 + 3) / (16 * 16 * 3 * 3)]
    total = 8 * 16 * 25 + 16 * 16 * 9
    scale = round(0.1 * total) / (34 + 38)
    for n, share, size in zip(found, shares, (3200, 2304), strict=True):
        assert abs(n - scale * share * size) < 1
    # A layer that would get more than it has is kept whole, and the others share the rest.
    net = nn.Sequential(nn.Conv2d(64, 64, 3, bias=False), nn.Conv2d(64, 2, 1, bias=False))
    mask = oes.pruning.select(net, scores_of(net, 0), 0.5, scope="erdos_renyi_kernel")
    assert mask.layer_density(net)["1.weight"] == 1.0
    assert mask.kept == round(0.5 * (64 * 64 * 9 + 128))


def test_equal_scores_are_chosen_among_as_logits_are():
    net = small_net()
    numel = sum(p.numel() for p in net.parameters())
    for seed in (0, 7):
        mask = oes.pruning.select(net, torch.zeros(numel), 0.5, small="score", seed=seed)
        assert torch.equal(mask.flat, oes.Mask.from_logits(net, torch.zeros(numel), 0.5, seed=seed).flat)
    scores = scores_of(net, 0, values=3)
    by_logits = oes.Mask.from_logits(net, scores.float(), 0.5, seed=3)
    assert torch.equal(oes.pruning.select(net, scores, 0.5, small="score", seed=3).flat, by_logits.flat)


def test_infinite_scores_are_first_and_last():
    net = small_net()
    scores = scores_of(net, 0)
    scores[:10], scores[10:20] = float("inf"), -float("inf")
    mask = oes.pruning.select(net, scores, 0.5, small="score")
    assert bool(mask.flat[:10].all())
    assert not bool(mask.flat[10:20].any())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("small", SMALL)
def test_a_mask_within_a_mask(scope, small):
    net = oes.models.skip(4, 3, num_channels_down=(6, 8), filter_size_down=3, seed=0)
    among = None
    for number, density in enumerate((0.8, 0.5, 0.49, 0.3, 0.29, 0.28, 0.2)):
        flat = choose(net, scores_of(net, number), density, scope=scope, small=small, seed=0, among=among)
        assert int(flat.sum()) == round(density * flat.numel())
        if among is not None:
            assert not bool((flat & ~among).any())
        among = flat


class Own(nn.Module):
    """Parameters that no layer of torch's names."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.rand(4, 3))
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.number = nn.Parameter(torch.rand(()))


def test_small_parameters():
    kinds = {
        "conv": (nn.Conv2d(2, 1, 1), {"weight"}),
        "transposed": (nn.ConvTranspose2d(2, 3, 3), {"weight"}),
        "linear": (nn.Linear(2, 1), {"weight"}),
        "depthwise": (nn.Conv2d(1, 1, 1), {"weight"}),
        "masked": (oes.MaskedConv2d(2, 3, 3), {"weight"}),
        "norms": (nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.LayerNorm([3, 4])), set()),
        "own": (Own(), {"matrix"}),
        "activation": (nn.PReLU(5), set()),
        "weight norm": (
            nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), {"parametrizations.weight.original1"},
        ),
    }  # fmt: skip
    for kind, (net, weights) in kinds.items():
        small = FlatLayout.of(net).views(oes.pruning.small_parameters(net))
        assert {name for name, view in small.items() if not bool(view.any())} == weights, kind
    pruned = small_net()
    nn.utils.prune.random_unstructured(pruned[0], "weight", 0.5)
    small = FlatLayout.of(pruned).views(oes.pruning.small_parameters(pruned))
    assert not bool(small["0.weight_orig"].any())
    published = oes.models.skip(seed=0)
    vectors = sum(p.numel() for p in published.parameters() if p.ndim == 1)
    assert int(oes.pruning.small_parameters(published).sum()) == vectors == 5683


def test_layers_that_lose_everything_are_named_once():
    net = small_net()
    scores = torch.zeros(sum(p.numel() for p in net.parameters()))
    views = FlatLayout.of(net).views(scores)
    for name in ("0.weight", "1.bias"):
        views[name].fill_(1)
    with pytest.warns(oes.EmptyLayerWarning) as caught:
        mask = oes.pruning.select(net, scores, 224 / scores.numel(), small="score")
    assert [str(w.message) for w in caught] == [
        "mask: nothing is kept of 2 layers, 1.weight, 3.weight: no signal passes there; a higher density or "
        "another scope may help"
    ]
    assert caught[0].filename == __file__
    assert empty_layers(net, mask.flat) == ["1.weight", "3.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oes.pruning.select(net, scores, 0.9, scope="tensor")
        oes.pruning.select(net, scores, 1.0)


def test_settings_are_kept():
    net = small_net()
    mask = oes.pruning.select(
        net, scores_of(net, 0), 0.5, scope="tensor", small="score", seed=4, method="mine"
    )
    assert mask.settings == {
        "density": 0.5, "scope": "tensor", "small": "score", "seed": 4, "method": "mine",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"density": 0.0}, "density: expected a finite number > 0.0 and <= 1.0, got 0.0"),
        ({"density": 1.5}, "density: expected a finite number > 0.0 and <= 1.0, got 1.5"),
        ({"density": float("nan")}, "density: expected a finite number"),
        ({"density": "half"}, "density: expected a number, got str"),
        ({"density": 0.001, "small": "score"}, "density: expected to keep one weight of 256 at least"),
        ({"density": 0.05}, 'density: expected 0.09375 at least, the share of the 24 small parameters'),
        ({"scope": "layer"}, "scope: expected one of global, tensor, erdos_renyi_kernel, got 'layer'"),
        ({"small": "drop"}, "small: expected one of keep, score, got 'drop'"),
        ({"seed": -1}, "seed: expected an integer >= 0 and < 18446744073709551616, got -1"),
        ({"scores": torch.rand(255)}, r"scores: expected shape \(256\), got \(255,\)"),
        ({"scores": [1.0] * 256}, "scores: expected a torch.Tensor, got list"),
        ({"scores": torch.full((256,), float("nan"))}, "scores: expected numbers, got 256 NaN of 256"),
        ({"net": nn.ReLU()}, "net: expected a network with parameters, got one without any"),
        ({"among": torch.ones(256)}, "among: expected dtype bool, got float32"),
        ({"among": torch.arange(256) < 9}, "among: expected 128 weights at least, got 9"),
        ({"among": torch.arange(256) < 250, "density": 0.9}, "among: expected all small parameters"),
    ],
)  # fmt: skip
def test_refusals(change, said):
    arguments = {"net": small_net(), "scores": torch.rand(256), "density": 0.5} | change
    if "among" in change and "density" in change:
        arguments["among"] = torch.ones(256, dtype=torch.bool).index_fill(0, torch.tensor([216]), False)
    with pytest.raises(oes.InputError, match=said):
        oes.pruning.select(**arguments)
