"""Networks of every make: wrapped, compiled, sharing parameters, decoders, with other outputs than images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from kernel_backends import EMULATED
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from unseen import Z, hold_against_dense, own

import oes_fast as oes
from oes_fast.copies import copy_network

BACKENDS = ["auto", "reference", "torch", *(name for name in EMULATED if oes.backends()[name])]
NOISY = torch.rand(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def conv(inputs: int = 3, outputs: int = 4, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def layers(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(modules or (conv(), nn.ReLU(), conv(4, 2)))).double()


class Twofold(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def parametrized() -> nn.Module:
    net = layers()
    parametrize.register_parametrization(net[0], "weight", Twofold())
    return net


class Shared(nn.Module):
    """One weight under two names, and one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = conv(3, 3), conv(3, 3), nn.BatchNorm2d(3, eps=0.05)
        self.second.weight = self.first.weight
        self.same, self.out = self.second, conv(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.same(self.norm(self.second(self.norm(self.first(x))))))


class Listed(nn.Module):
    """Parameters in lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({"a": nn.Parameter(torch.rand(4, 3, 1, 1))})
        self.gains = nn.ParameterList([nn.Parameter(torch.rand(4, 1, 1))])
        self.convs = nn.ModuleDict({"out": conv(4, 2)})

    def forward(self, x: Tensor) -> Tensor:
        for gain in self.gains:
            x = F.conv2d(x, self.weights["a"]) * gain
        return self.convs["out"](x)


class Attention(nn.Module):
    """A transformer's layer and a recurrent one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = conv(), nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent, self.out = nn.GRU(4, 4, batch_first=True), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).flatten(2).transpose(1, 2).contiguous()
        h, _ = self.attention(h, h, h)
        rows, _ = self.recurrent(h[:, ::8])
        return self.out((h.view(1, 8, 8, 4) * rows[:, :, None]).permute(0, 3, 1, 2))


def hooked() -> nn.Module:
    net = layers()
    net[0].register_forward_hook(lambda module, args, output: output * 2)
    return net


KINDS: dict[str, Callable[[], nn.Module]] = {
    "parametrized": parametrized,
    "weight_norm": lambda: layers(parametrizations.weight_norm(conv()), conv(4, 2)),
    "spectral_norm": lambda: layers(parametrizations.spectral_norm(conv()), conv(4, 2)),
    "shared": Shared,
    "listed": Listed,
    "attention": Attention,
    "hooked": hooked,
    "graph module": lambda: torch.fx.symbolic_trace(layers()),
    "dropout": lambda: layers(conv(), nn.Dropout2d(0.5), nn.RReLU(), conv(4, 2)),
    "instance norm": lambda: layers(
        conv(), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), conv(4, 2)
    ),
    "shuffle": lambda: layers(conv(3, 8), nn.PixelShuffle(2), nn.AvgPool2d(2), conv(2, 2)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_same_as_dense(make: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    hold_against_dense(make().double().train(training))


OLD_NORMS = {"weight_norm": nn.utils.weight_norm, "spectral_norm": nn.utils.spectral_norm}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("norm", OLD_NORMS.values(), ids=OLD_NORMS)
def test_norms_by_hooks(norm: Callable[[nn.Module], nn.Module], used: bool) -> None:
    torch.manual_seed(0)
    net = layers(norm(conv()), nn.ReLU(), conv(4, 2))
    if used:
        net(Z)
    hold_against_dense(net)
    results = []
    for backend in BACKENDS:
        found = oes.search_mask(net, Z, NOISY, steps=2, density=0.5, backend=backend)
        fit = oes.train_sparse(net, found.mask, Z, NOISY, steps=2, backend=backend)
        torch.testing.assert_close(fit.net(Z), fit.output)
        results.append(fit.output)
    torch.testing.assert_close(results, [results[0]] * len(BACKENDS))


def test_copy_keeps_values_of_tensors_with_a_history() -> None:
    net = layers()
    net.kept = {"list": [net(Z)], "again": None}
    net.kept["again"] = net.kept["list"][0]
    copy = copy_network(net)
    torch.testing.assert_close(copy.kept["list"][0], net.kept["list"][0])
    assert copy.kept["again"] is copy.kept["list"][0]
    assert copy.kept["again"].grad_fn is None
    net.kept = threading.Lock()
    with pytest.raises(oes.InputError, match="net: expected a network that can be copied"):
        oes.sparsify(net)


def with_forward_of_its_own() -> nn.Module:
    net = layers()
    net[0].forward = lambda x: x.repeat(1, 2, 1, 1)[:, :4]
    return net


def with_a_convolution_of_its_own() -> nn.Module:
    net = layers()
    net[0]._conv_forward = lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1) * 2
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "compiled": (lambda: torch.compile(layers(), backend="eager"), oes.TraceError, "torch.compile"),
    "compiled inside": (
        lambda: layers(torch.compile(conv(3, 2), backend="eager")), oes.TraceError, "0 is a module of torch"
    ),
    "scripted": (lambda: torch.jit.script(layers()), oes.InputError, "TorchScript"),
    "scripted inside": (lambda: layers(torch.jit.script(conv(3, 2))), oes.TraceError, "0 is .* TorchScript"),
    "parallel": (lambda: nn.DataParallel(layers()), oes.InputError, "DataParallel: hand over its module"),
    "lazy": (lambda: layers(nn.LazyConv2d(2, 1)), oes.InputError, "lazy one, 0.weight"),
    "no parameters": (lambda: layers(nn.Upsample(scale_factor=2)), oes.InputError, "network with parameters"),
    "no module": (lambda: Z, oes.InputError, "torch.nn.Module, got Tensor"),
    "own convolution": (with_a_convolution_of_its_own, oes.TraceError, "0 has a _conv_forward of its own"),
    "own forward": (with_forward_of_its_own, oes.TraceError, "0 has a forward of its own"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("make", "error", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(make: Callable[[], nn.Module], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        oes.sparsify(make())(Z)
    with pytest.raises(error, match=reason):
        oes.search_mask(make(), Z, NOISY, steps=1, density=0.5, backend="torch")


def test_hooks_on_all_modules() -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        with pytest.raises(oes.TraceError, match="hooks on all modules"):
            oes.sparsify(layers())(Z)
    finally:
        hook.remove()


class Named(NamedTuple):
    """One of the things that networks return."""

    image: Tensor


@dataclass
class Data:
    """Another."""

    out: Tensor


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "dict": (lambda h: {"out": h}, "a dict with 'out'; wrap the network"),
    "ordered dict": (lambda h: OrderedDict(out=h), "OrderedDict with 'out'"),
    "tuple": (lambda h: (h, h), "a tuple of 2; wrap the network"),
    "list": (lambda h: [h], "a list of 1"),
    "named tuple": (lambda h: Named(h), "a Named of 1"),
    "data class": (lambda h: Data(h), "Data; wrap the network"),
    "nothing": (lambda h: None, "got NoneType"),
    "number": (lambda h: 3.0, "got float"),
    "three dimensions": (lambda h: h[0], r"\(2, 8, 8\)"),
    "other size": (lambda h: h[..., 1:], r"\(1, 2, 8, 7\)"),
    "half": (lambda h: h.half(), "got torch.float16"),
    "complex": (lambda h: torch.complex(h, h), "got torch.complex128"),
    "constant": (lambda h: torch.ones(1, 2, 8, 8, dtype=h.dtype), "depend on its parameters|gradient to the"),
}


@pytest.mark.filterwarnings("ignore:.*runs as it is")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("output", "reason"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_that_are_no_image(output: Callable[[Tensor], Any], reason: str, backend: str) -> None:
    net = own(lambda net, x: output(net.out(net.body(x))))
    mask = oes.Mask.from_flat(net, torch.ones(oes.flat.FlatLayout.of(net).numel))
    steps: list[int] = []
    with pytest.raises(oes.OESError, match=reason):
        oes.train_sparse(
            net, mask, Z, NOISY, steps=9, backend=backend, callback=lambda info: steps.append(info.step)
        )
    assert not steps


class Decoder(nn.Module):
    """A small decoder: from numbers to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 64)
        self.rest = nn.Sequential(
            nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Sigmoid()
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.rest(self.first(z.flatten(1)).view(1, 4, 4, 4))


def deep_decoder() -> nn.Module:
    scale = nn.Upsample(scale_factor=2, mode="bilinear")
    return layers(conv(5, 4, 1), scale, nn.ReLU(), nn.BatchNorm2d(4, eps=0.05), conv(4, 2, 1), nn.Sigmoid())


DECODERS = {
    "deep decoder": (deep_decoder, (1, 5, 4, 4)),
    "generator": (lambda: layers(nn.ConvTranspose2d(5, 4, 8), nn.BatchNorm2d(4), conv(4, 2)), (1, 5, 1, 1)),
    "linear": (Decoder, (1, 5, 1, 1)),
}


@pytest.mark.parametrize(("make", "shape"), DECODERS.values(), ids=DECODERS)
def test_decoders(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, z = make().double(), torch.rand(shape, dtype=torch.float64)
    results = []
    for backend in BACKENDS:
        found = oes.search_mask(net, z, NOISY, steps=2, density=0.5, backend=backend)
        fit = oes.train_sparse(net, found.mask, z, NOISY, steps=3, backend=backend)
        assert (fit.backend == "reference") == (backend == "reference")
        results.append(fit.output)
    torch.testing.assert_close(results, [results[0]] * len(BACKENDS))


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1)])
def test_inputs_that_are_no_image_run_on_the_reference(shape: tuple[int, ...]) -> None:
    net, z = Decoder().double(), torch.rand(shape, dtype=torch.float64)
    with pytest.warns(oes.OESWarning, match="needs a z of shape .* on the reference path"):
        found = oes.search_mask(net, z, NOISY, steps=2, density=0.5)
    assert found.backend == "reference"
    with pytest.raises(oes.TraceError, match="needs a z of shape"):
        oes.search_mask(net, z, NOISY, steps=2, density=0.5, backend="torch")
    with pytest.raises(oes.InputError, match="z: expected an input for each of 1 images"):
        oes.search_mask(net, z.repeat(2, *[1] * (len(shape) - 1)), NOISY, steps=2, density=0.5)


def test_a_copy_keeps_what_an_empty_dictionary_carries():
    net = nn.Sequential(nn.Conv2d(3, 3, 1))
    net.notes = OrderedDict()
    net.notes.tag = "kept"
    copied = copy_network(net)
    assert copied.notes.tag == "kept"
    assert copied.notes is not net.notes
    assert copied._forward_hooks is not net._forward_hooks
