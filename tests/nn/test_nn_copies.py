"""MaskedConv2d.from_dense: what it takes over, and what it refuses by name."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import unchanged
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import oes_fast as oes


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(**options):
    conv = nn.Conv2d(4, 6, 3, padding=1, **options)
    with torch.no_grad():
        for index, parameter in enumerate(conv.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=index))
    return conv


PRUNED = {
    "unstructured": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "random": lambda conv: prune.random_unstructured(conv, "weight", 0.8),
    "structured": lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=1),
    "custom": lambda conv: prune.custom_from_mask(conv, "weight", draw(*conv.weight.shape, seed=3) > 0),
    "twice": lambda conv: prune.l1_unstructured(prune.l1_unstructured(conv, "weight", 0.3), "weight", 0.5),
    "global": lambda conv: prune.global_unstructured([(conv, "weight")], prune.L1Unstructured, amount=0.4),
    "identity": lambda conv: prune.identity(conv, "weight"),
    "a whole bias": lambda conv: prune.identity(prune.l1_unstructured(conv, "weight", 0.5), "bias"),
}


@pytest.mark.parametrize("kind", PRUNED)
@pytest.mark.parametrize("given", [False, True])
def test_a_pruned_layer_passes_on_its_mask(kind, given):
    conv, x = make(), draw(2, 4, 7, 6)
    PRUNED[kind](conv)
    extra = draw(6, 4, 3, 3, seed=8) > 0 if given else None
    with unchanged(x):
        layer = oes.MaskedConv2d.from_dense(conv, extra)
    pruned = conv.weight_mask.bool()
    assert torch.equal(layer.mask, pruned if extra is None else pruned & extra)
    assert (layer.weight[~layer.mask] == 0).all()
    assert torch.equal(layer.weight[layer.mask], conv.weight_orig[layer.mask])
    if extra is None:
        torch.testing.assert_close(layer(x), conv(x))
    assert sorted(layer.state_dict()) == ["bias", "mask", "weight"]
    assert not layer._forward_pre_hooks
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in layer.parameters())


def test_a_pruned_layer_is_read_as_it_trained():
    """The attribute ``weight`` is that of the last call: stale after a step of an optimizer."""
    conv, x = make(), draw(1, 4, 7, 6)
    prune.l1_unstructured(conv, "weight", 0.5)
    conv(x)
    with torch.no_grad():
        conv.weight_orig.add_(1)
    layer = oes.MaskedConv2d.from_dense(conv)
    torch.testing.assert_close(layer(x), conv(x))
    assert conv._forward_pre_hooks  # left alone
    conv.weight_orig.requires_grad_(False)
    layer = oes.MaskedConv2d.from_dense(conv.eval())
    assert (layer.weight.requires_grad, layer.bias.requires_grad, layer.training) == (False, True, False)


def test_pruning_made_permanent_keeps_all():
    conv = make()
    prune.remove(prune.l1_unstructured(conv, "weight", 0.5), "weight")
    layer = oes.MaskedConv2d.from_dense(conv)
    assert layer.mask.all()
    assert torch.equal(layer.weight, conv.weight)


def test_a_masked_layer_passes_on_its_mask():
    mask, other = draw(6, 4, 3, 3, seed=2) > 0, draw(6, 4, 3, 3, seed=3) > 0
    layer = oes.MaskedConv2d.from_dense(make(bias=False), mask)
    assert torch.equal(oes.MaskedConv2d.from_dense(layer).mask, mask)
    again = oes.MaskedConv2d.from_dense(layer, other)
    assert torch.equal(again.mask, mask & other)
    assert again.bias is None
    prune.custom_from_mask(layer, "weight", other)
    assert torch.equal(oes.MaskedConv2d.from_dense(layer).mask, mask & other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    conv, x = make(dtype=dtype), draw(1, 4, 7, 6).to(dtype)
    assert torch.equal(oes.MaskedConv2d.from_dense(conv)(x), conv(x))


def test_a_lazy_layer_after_its_first_call_and_a_plain_subclass():
    class Named(nn.Conv2d):
        pass

    lazy, x = nn.LazyConv2d(6, 3), draw(1, 4, 7, 6)
    expected = lazy(x)
    assert torch.equal(oes.MaskedConv2d.from_dense(lazy)(x), expected)
    conv = Named(4, 6, 3)
    assert torch.equal(oes.MaskedConv2d.from_dense(conv)(x), conv(x))


def test_a_layer_on_meta():
    layer = oes.MaskedConv2d.from_dense(nn.Conv2d(4, 6, 3, device="meta"))
    assert layer.weight.is_meta
    assert "kept=?" in repr(layer)


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Gain(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(1))


def with_(change, **options):
    def build():
        conv = make(**options)
        result = change(conv)
        return result if isinstance(result, nn.Module) else conv

    return build


def gradient_hook(conv):
    conv.weight.register_hook(lambda grad: 2 * grad)


def forward_of_its_own(conv):
    conv.forward = lambda x: x


def fractions(conv):
    prune.custom_from_mask(conv, "weight", torch.full_like(conv.weight, 0.5))


REFUSED = {
    "pruned bias": (with_(lambda c: prune.l1_unstructured(c, "bias", 0.5)), "bias_mask"),
    "mask of fractions": (with_(fractions), "weight_mask"),
    "weight_norm": (with_(nn.utils.weight_norm), "remove_weight_norm"),
    "weight_norm without a bias": (with_(nn.utils.weight_norm, bias=False), "remove_weight_norm"),
    "spectral_norm": (with_(nn.utils.spectral_norm), "remove_spectral_norm"),
    "weight_norm, parametrized": (with_(parametrizations.weight_norm), "parametrization of weight"),
    "spectral_norm, parametrized": (with_(parametrizations.spectral_norm), "parametrization of weight"),
    "a parametrized bias": (
        with_(lambda c: parametrize.register_parametrization(c, "bias", nn.Identity())),
        "parametrization of bias",
    ),
    "lazy": (lambda: nn.LazyConv2d(6, 3), "lazy weight"),
    "forward hook": (with_(lambda c: c.register_forward_hook(print) and None), "forward hook"),
    "forward pre-hook": (with_(lambda c: c.register_forward_pre_hook(print) and None), "forward pre-hook"),
    "backward hook": (with_(lambda c: c.register_full_backward_hook(print) and None), "backward hook"),
    "gradient hook": (with_(gradient_hook), "gradient of weight"),
    "own forward": (lambda: OwnForward(4, 6, 3), "OwnForward with a forward"),
    "own convolution": (lambda: OwnConvolution(4, 6, 3), "OwnConvolution with a _conv_forward"),
    "forward of one layer": (with_(forward_of_its_own), "with a forward of its own"),
    "own parameter": (lambda: Gain(4, 6, 3), "parameter 'gain'"),
    "own buffer": (with_(lambda c: c.register_buffer("scale", torch.ones(1))), "buffer 'scale'"),
    "own module": (with_(lambda c: c.add_module("extra", nn.ReLU())), "module 'extra'"),
    "complex": (lambda: nn.Conv2d(4, 6, 3, dtype=torch.complex64), "complex64"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_copy_would_lack_is_refused_by_name(kind):
    build, words = REFUSED[kind]
    conv = build()
    before = copy.copy(conv.__dict__)
    with pytest.raises(oes.InputError, match=f"^conv: .*{words}"):
        oes.MaskedConv2d.from_dense(conv)
    assert conv.__dict__.keys() == before.keys()


def test_a_bad_mask_is_named_before_anything_is_copied():
    for mask in (torch.ones(6, 4, 3, 3), torch.ones(6, 4, 3, dtype=torch.bool), [True]):
        with pytest.raises(oes.InputError, match=r"^mask: "):
            oes.MaskedConv2d.from_dense(make(), mask)
