"""Parameters as one vector."""

from __future__ import annotations

import pytest
import torch
from conftest import unchanged
from torch import nn

import oes_fast as oes
from oes_fast.flat import FlatLayout, flatten, unflatten_


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 5, bias=False))


def test_order_is_that_of_parameters(net):
    flat = flatten(net)
    assert torch.equal(flat, nn.utils.parameters_to_vector(net.parameters()).detach())
    assert not flat.requires_grad
    layout = FlatLayout.of(net)
    assert list(layout.names) == [name for name, _ in net.named_parameters()]
    assert layout.numel == sum(layout.sizes) == flat.numel() == 54 + 3 + 3 + 3 + 20


def test_flatten_copies(net):
    with unchanged(net):
        flatten(net).zero_()
    one = nn.Linear(3, 1, bias=False)
    flatten(one).zero_()
    assert one.weight.abs().sum() > 0


def test_views_share_memory_and_gradient(net):
    layout = FlatLayout.of(net)
    flat = flatten(net).requires_grad_()
    views = layout.views(flat)
    assert [tuple(v.shape) for v in views.values()] == [tuple(p.shape) for p in net.parameters()]
    views["1.bias"].sum().backward()
    assert flat.grad.sum() == 3
    assert flat.grad[57 + 3 : 57 + 6].sum() == 3
    with torch.no_grad():
        flat.fill_(2)
    assert all((v == 2).all() for v in views.values())


def test_round_trip(net):
    values = torch.arange(83.0)
    net[0].weight.requires_grad_(False)
    unflatten_(net, values)
    assert torch.equal(flatten(net), values)
    assert net[1].weight.requires_grad
    assert not net[0].weight.requires_grad
    assert torch.equal(net[1].weight.detach(), torch.tensor([57.0, 58.0, 59.0]))


def test_shared_parameters_appear_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert FlatLayout.of(net).names == ("0.weight", "0.bias", "1.bias")
    unflatten_(net, torch.arange(15.0))
    assert torch.equal(flatten(net), torch.arange(15.0))


def test_non_contiguous_parameters():
    net = nn.Linear(3, 2, bias=False)
    net.weight = nn.Parameter(torch.arange(6.0).view(3, 2).t())
    assert flatten(net).tolist() == [0, 2, 4, 1, 3, 5]
    unflatten_(net, torch.arange(6.0))
    assert net.weight.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_fingerprint_tells_architectures_apart_and_not_weights():
    def skip(**options):
        return oes.models.skip(2, 3, num_channels_down=(3, 4), **options)

    assert oes.fingerprint(skip(seed=0)) == oes.fingerprint(skip(seed=1).double())
    others = [
        {"num_channels_skip": 1},
        {"filter_size_up": 5},
        {"need_bias": False},
        {"num_channels_up": (4, 3)},
    ]
    assert len({oes.fingerprint(skip(seed=0, **o)) for o in [{}, *others]}) == 5
    count, digest = oes.fingerprint(skip()).split("-")
    assert int(count) == FlatLayout.of(skip()).numel
    assert len(digest) == 12


def test_fingerprint_is_the_same_for_ever():
    assert oes.fingerprint(oes.models.skip(seed=0)) == "3008867-" + PUBLISHED_DIGEST


PUBLISHED_DIGEST = "0433f142478c"


@pytest.mark.parametrize("function", [FlatLayout.of, flatten, oes.fingerprint])
def test_networks_that_have_no_flat_form(function, net):
    with pytest.raises(oes.InputError, match=r"^net: .*without any"):
        function(nn.ReLU())
    net[0].double()
    with pytest.raises(oes.InputError, match=r"^net: .*torch\.float32 on cpu, torch\.float64 on cpu"):
        function(net)


@pytest.mark.parametrize("numel", [82, 84])
def test_unflatten_refuses_another_length(net, numel):
    with unchanged(net), pytest.raises(oes.InputError, match="^flat: .*83.*" + str(numel)):
        unflatten_(net, torch.zeros(numel))
