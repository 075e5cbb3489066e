"""Layers, live channels and overlap of masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import unchanged
from scipy.stats import hypergeom
from torch import nn

import oes_fast as oes
from oes_fast.analysis import dead_channels, layer_densities, overlap
from oes_fast.flat import FlatLayout


def random_mask(net: nn.Module, density: float, seed: int) -> oes.Mask:
    count = sum(p.numel() for p in net.parameters())
    return oes.Mask.from_flat(net, torch.rand(count, generator=torch.Generator().manual_seed(seed)) < density)


class TestLayerDensities:
    def test_layers_are_in_order_and_add_up(self, problem):
        found = layer_densities(problem.net, problem.mask)
        assert [layer.name for layer in found][:3] == [
            "conv 1: 3x3, 4 > 4",
            "conv 2: 3x3, 4 > 4",
            "conv 3: 3x3, 4 > 6",
        ]
        assert [layer.name for layer in found][-3:] == [
            "convolution bias",
            "batch norm scale",
            "batch norm bias",
        ]
        assert sum(layer.kept for layer in found) == problem.mask.kept
        assert sum(layer.count for layer in found) == problem.mask.flat.numel()
        assert all(layer.density == layer.kept / layer.count for layer in found)
        by_tensor = list(problem.mask.layer_density(problem.net).values())
        assert found[0].density == pytest.approx(by_tensor[0])

    def test_everything_is_kept_without_a_mask(self, problem):
        found = layer_densities(problem.net)
        assert {layer.density for layer in found} == {1.0}
        assert sum(layer.count for layer in found) == problem.mask.flat.numel()

    def test_every_kind_of_layer_has_a_name(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.gain = nn.Parameter(torch.ones(3))
                self.values = nn.ParameterList([nn.Parameter(torch.ones(2))])

        shared = nn.Linear(4, 4, bias=False)
        net = nn.Sequential(
            nn.Linear(5, 4),
            shared,
            shared,
            nn.ConvTranspose2d(4, 6, 3),
            nn.Conv1d(6, 2, 5),
            nn.GroupNorm(2, 4),
            Own(),
        )
        found = {layer.name: layer.count for layer in layer_densities(net)}
        assert found == {
            "linear 1: 5 > 4": 20,
            "linear 2: 4 > 4": 16,
            "transposed conv 1: 3x3, 4 > 6": 216,
            "conv 1: 5, 6 > 2": 60,
            "linear bias": 4,
            "transposed convolution bias": 6,
            "convolution bias": 2,
            "GroupNorm weight": 4,
            "GroupNorm bias": 4,
            "Own gain": 3,
            "ParameterList 0": 2,
        }

    def test_pruned_networks_keep_their_names(self):
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        names = [layer.name for layer in layer_densities(net)]
        torch.nn.utils.prune.random_unstructured(net[0], "weight", 0.5)
        assert sorted(layer.name for layer in layer_densities(net)) == sorted(names)

    def test_a_mask_of_another_network_is_refused(self, problem):
        with pytest.raises(oes.MaskMismatchError):
            layer_densities(nn.Conv2d(2, 3, 3), problem.mask)
        with pytest.raises(oes.InputError, match=r"net: expected a torch\.nn\.Module"):
            layer_densities("net", problem.mask)
        with pytest.raises(oes.InputError, match=r"mask: expected an oes_fast\.Mask or None, got a tensor"):
            layer_densities(problem.net, problem.mask.flat)


class TestDeadChannels:
    @pytest.fixture
    def net(self):
        return nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.LeakyReLU(0.2), nn.Conv2d(5, 1, 1)
        )

    def test_channels_die_in_every_way(self, net):
        kept = oes.Mask.from_flat(net, torch.ones(sum(p.numel() for p in net.parameters()))).to_dict(net)
        kept["0.weight"][0] = kept["0.bias"][0] = False  # nothing of the filter is left
        kept["1.weight"][1] = False  # the norm gives its shift
        kept["3.weight"][:, 2] = False  # nothing reads it
        first, last = dead_channels(net, oes.Mask.from_dict(net, kept))
        assert (first.name, first.channels) == ("conv 1: 3x3, 2 > 5", 5)
        assert (first.alive, first.constant, first.dead, first.empty) == (2, 0, 3, 1)
        assert (last.alive, last.constant, last.dead, last.empty) == (1, 0, 0, 0)
        for channel, changes in enumerate([False, False, False, True, True]):
            other = net_with(net, kept)
            z = torch.rand(1, 2, 8, 8)
            before = other(z)
            with torch.no_grad():
                other[0].weight[channel] += 1.0
            if channel > 0:  # an empty filter would not stay so
                assert bool((other(z) != before).any()) == changes, channel

    def test_constant_channels_are_counted_apart(self):
        net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1))
        kept = oes.Mask.from_flat(net, torch.ones(sum(p.numel() for p in net.parameters()))).to_dict(net)
        kept["0.weight"][1] = False  # the bias is left
        first = dead_channels(net, oes.Mask.from_dict(net, kept))[0]
        assert (first.alive, first.constant, first.dead, first.empty) == (2, 1, 0, 0)

    def test_all_are_alive_without_a_mask(self, problem):
        with unchanged(problem.net):
            found = dead_channels(problem.net)
        assert len(found) == 7
        assert all(each.alive == each.channels for each in found)

    def test_the_size_of_the_image_does_not_matter(self, problem):
        found = dead_channels(problem.net, problem.mask)
        assert dead_channels(problem.net, problem.mask, problem.z) == found
        assert dead_channels(problem.net.eval(), problem.mask) == found
        problem.net.train()

    def test_the_published_network_needs_no_weights(self):
        state = torch.get_rng_state()
        net = oes.models.skip(32, 1, device="meta")
        found = dead_channels(net, random_mask(net, 0.05, 0))
        assert len(found) == len(layer_densities(net)) - 3 == 19
        assert torch.equal(torch.get_rng_state(), state)

    def test_what_cannot_be_traced_is_refused(self):
        class Branches(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(1, 1, 1)

            def forward(self, x):
                return self.conv(x) if float(x.sum()) > 0 else x

        with pytest.raises(oes.TraceError):
            dead_channels(Branches())
        with pytest.raises(oes.InputError, match="z: expected an input for a network without a Conv2d"):
            dead_channels(nn.Linear(3, 3))


def net_with(net: nn.Module, kept: dict[str, torch.Tensor]) -> nn.Sequential:
    """A copy with the mask's zeros in place."""
    other = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.LeakyReLU(0.2), nn.Conv2d(5, 1, 1)
    )
    other.load_state_dict({n: v * kept[n] if n in kept else v for n, v in net.state_dict().items()})
    return other


class TestOverlap:
    @pytest.mark.parametrize("densities", [(0.3, 0.3), (0.05, 0.6), (0.98, 0.2), (0.001, 0.001)])
    def test_figures_are_those_of_their_formulas(self, problem, densities):
        a, b = (random_mask(problem.net, density, seed) for seed, density in enumerate(densities))
        found = overlap(a, b, problem.net)
        first, second = a.flat.numpy(), b.flat.numpy()
        both, either = int(np.sum(first & second)), int(np.sum(first | second))
        assert (found.count, found.kept, found.shared) == (len(first), (a.kept, b.kept), both)
        assert found.jaccard == pytest.approx(both / max(either, 1))
        assert found.share == pytest.approx((both / max(a.kept, 1), both / max(b.kept, 1)))
        chance = hypergeom(len(first), a.kept, b.kept)
        assert found.expected == pytest.approx(chance.mean())
        assert found.deviation == pytest.approx(chance.std(), abs=1e-9)

    def test_layers_add_up(self, problem):
        a, b = random_mask(problem.net, 0.3, 0), random_mask(problem.net, 0.6, 1)
        found = overlap(a, b, problem.net)
        names = [layer.name for layer in layer_densities(problem.net, a)]
        assert [layer.name for layer in found.layers] == names
        assert sum(layer.shared for layer in found.layers) == found.shared
        assert sum(layer.count for layer in found.layers) == found.count
        kept = [sum(layer.kept[i] for layer in found.layers) for i in (0, 1)]
        assert tuple(kept) == found.kept
        expected = sum(layer.kept[0] * layer.kept[1] / layer.count for layer in found.layers)
        assert found.expected_by_layer == pytest.approx(expected)
        assert overlap(a, b).expected_by_layer is None
        assert overlap(a, b).layers == ()

    def test_shuffled_masks_share_what_their_layers_make_them(self):
        """Layers as dense as each other's, and nothing else in common."""
        net = nn.Sequential(nn.Conv2d(8, 20, 5), nn.Conv2d(20, 20, 5))
        kept = {n: torch.full(p.shape, n == "0.weight") for n, p in net.named_parameters()}
        kept["1.weight"].view(-1)[::10] = True
        mask = oes.Mask.from_dict(net, kept)
        found = overlap(mask.shuffled(net, seed=1), mask.shuffled(net, seed=2), net)
        assert found.shared == pytest.approx(found.expected_by_layer, rel=0.05)
        assert found.shared > found.expected + 10 * found.deviation

    def test_equal_masks_share_everything(self, problem):
        found = overlap(problem.mask, problem.mask, problem.net)
        assert (found.jaccard, found.share) == (1.0, (1.0, 1.0))
        nothing = oes.Mask.from_flat(problem.net, torch.zeros(problem.mask.flat.numel()))
        found = overlap(nothing, problem.mask)
        assert (found.jaccard, found.share, found.deviation) == (0.0, (0.0, 0.0), 0.0)

    def test_masks_of_two_networks_are_refused(self, problem):
        other = random_mask(nn.Conv2d(2, 3, 3), 0.5, 0)
        with pytest.raises(oes.MaskMismatchError, match="mask_b: expected a mask of the network"):
            overlap(problem.mask, other)
        with pytest.raises(oes.MaskMismatchError):
            overlap(problem.mask, problem.mask, nn.Conv2d(2, 3, 3))
        with pytest.raises(oes.InputError, match=r"mask_a: expected an oes_fast\.Mask"):
            overlap(problem.mask.flat, problem.mask)


def test_channels_of_transposed_convolutions_are_counted():
    net, z = oes.models.generator("dcgan", (2, 20, 20), seed=0, num_input_channels=3, ndf=4)
    count = sum(p.numel() for p in net.parameters())
    views = FlatLayout.of(net).views(torch.ones(count, dtype=torch.bool))
    views["0.weight"][:, 1] = False  # a filter of the first, and what the batch norm behind it makes of none
    views["1.bias"][1] = False
    views["3.weight"][:, 0] = False
    mask = oes.Mask.from_dict(net, views)
    found = {each.name: each for each in dead_channels(net, mask, z)}
    first, second, third = found.values()
    assert list(found) == [layer.name for layer in layer_densities(net)[:3]]
    assert (first.channels, first.alive, first.empty) == (4, 3, 1)
    assert (second.channels, second.alive, second.empty) == (4, 3, 1)
    assert (third.channels, third.alive, third.empty) == (2, 2, 0)
