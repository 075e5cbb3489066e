"""Forward operators, losses and weights that do not fit are refused by name."""

from __future__ import annotations

import pytest
import torch
from objectives import WEIGHT, half
from torch import nn

import oes_fast as oes

pytest_plugins = ("objectives",)


class Elsewhere(nn.Module):
    """An operator on another device."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(16, 20, device="meta"))

    def forward(self, image):
        return self.mask * image


def stepping(image):
    image *= 2
    return image


def failing(image):
    raise RuntimeError("no such\nimage")


REFUSED = {
    "number": ({"forward": 3}, r"^forward: expected a function of the image, or an object .*, got int$"),
    "class": ({"forward": nn.Identity}, r"^forward: .*, got the class Identity, not an object of it$"),
    "fails": (
        {"forward": failing},
        r"^forward: expected a function that takes the network's image of shape \(1, 3, 16, 20\), it raises "
        r"RuntimeError: no such image$",
    ),
    "no tensor": ({"forward": lambda x: (x, x)}, r"^forward: .* one tensor, got a tuple of 2$"),
    "shape": (
        {"forward": half},
        r"^forward: .*shape \(1, 3, 16, 20\), got \(1, 3, 8, 10\) of an image \(1, 3, 16, 20\)$",
    ),
    "dtype": ({"forward": lambda x: x.float()}, r"^forward: .* torch.float64, got torch.float32$"),
    "detached": (
        {"forward": lambda x: x.detach()},
        r"^forward: .* with a gradient to the image, got one without",
    ),
    "numpy": (
        {"forward": lambda x: torch.from_numpy(x.numpy())},
        r"^forward: .*it raises RuntimeError: .*numpy",
    ),
    "NaN": (
        {"forward": lambda x: torch.where(x == x.max(), x / 0 - x / 0, x)},
        r"^forward: expected a finite measurement of a finite image, got 1 NaN or infinite of 960$",
    ),
    "in place": ({"forward": stepping}, r"^forward: (expected to leave the image as it is|.*in-?place)"),
    "device": ({"forward": Elsewhere()}, r"^forward: .*(meta)"),
    "loss, number": ({"loss": "L1"}, r"^loss: expected a function of \(measured, noisy\), got str$"),
    "loss, class": ({"loss": nn.L1Loss}, r"^loss: .*, got the class L1Loss, not an object of it$"),
    "loss, shape": (
        {"loss": nn.L1Loss(reduction="none")},
        r"^loss: expected a scalar, got a tensor of shape \(1, 3, 16, 20\); take its mean$",
    ),
    "loss, float": ({"loss": lambda m, y: 0.5}, r"^loss: expected a scalar, one tensor, got float$"),
    "loss, complex": (
        {"loss": lambda m, y: m.mean() + 0j},
        r"^loss: expected a real scalar, got .*complex128$",
    ),
    "loss, detached": ({"loss": lambda m, y: m.detach().mean()}, r"^loss: .* gradient to what is measured"),
    "loss, NaN": (
        {"loss": lambda m, y: m.mean().log() * torch.nan},
        r"^loss: expected a finite number .*, got nan$",
    ),
    "loss, fails": ({"loss": lambda m: m.mean()}, r"^loss: expected a function .*it raises TypeError"),
    "loss, in place": (
        {"loss": lambda m, y: (y.add_(0) - m).mean()},
        r"^loss: expected to leave measured and noisy",
    ),
    "both": ({"loss": nn.L1Loss(), "weight": WEIGHT}, r"^weight: expected none beside loss"),
    "weight, number": ({"weight": 2.0}, r"^weight: expected a torch.Tensor, got float$"),
    "weight, negative": ({"weight": -WEIGHT}, r"^weight: expected finite numbers >= 0, got \d+ negative"),
    "weight, NaN": ({"weight": WEIGHT / 0}, r"^weight: expected finite numbers >= 0, got 960 negative, NaN"),
    "weight, zeros": ({"weight": 0 * WEIGHT}, r"^weight: expected one above 0 at least, got zeros alone$"),
    "weight, dtype": (
        {"weight": WEIGHT.float()},
        r"^weight: expected torch.float64 as noisy, or torch.bool, got",
    ),
    "weight, complex": ({"weight": WEIGHT + 0j}, r"^weight: expected torch.float64 .* got torch.complex128$"),
    "weight, shape": (
        {"weight": WEIGHT[..., :3]},
        r"^weight: .*expands to noisy's \(1, 3, 16, 20\), got \(1, 3, 16, 3\)$",
    ),
    "weight, larger": ({"weight": WEIGHT.expand(2, -1, -1, -1)}, r"^weight: .*got \(2, 3, 16, 20\)$"),
    "weight, device": ({"weight": WEIGHT.to("meta")}, r"^weight: expected a tensor on cpu, got one on meta$"),
    "tv": ({"tv": -0.1}, r"^tv: expected a finite number >= 0.0, got -0.1$"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_said_by_name(small, kind):
    options, message = REFUSED[kind]
    noisy = small.noisy.clone()
    with pytest.raises(oes.InputError, match=message):
        oes.train_sparse(
            small.net, small.mask, small.z, noisy, **options, steps=2, backend="cpu", verify=False
        )
    assert torch.equal(noisy, small.noisy)


@pytest.mark.parametrize(
    ("noisy", "message"),
    [
        (torch.zeros(0, dtype=torch.float64), r"^noisy: expected a number at least, got shape \(0,\)$"),
        (torch.zeros(3), r"^noisy: expected dtype float64 or complex128, got float32$"),
        (
            torch.zeros(3, dtype=torch.complex64),
            r"^noisy: expected dtype float64 or complex128, got complex64$",
        ),
        (torch.full((2,), torch.nan, dtype=torch.complex128), r"^noisy: expected finite values, got 2 NaN"),
        (
            torch.zeros(3, dtype=torch.float64, device="meta"),
            r"^noisy: expected a tensor on cpu, got one on meta",
        ),
        ([1.0], r"^noisy: expected a torch.Tensor, got list$"),
    ],
    ids=["empty", "float32", "complex64", "NaN", "device", "list"],
)
def test_measurements_that_do_not_fit(small, noisy, message):
    with pytest.raises(oes.InputError, match=message):
        oes.train_sparse(small.net, small.mask, small.z, noisy, forward=lambda x: x.flatten()[:3], steps=2)


def test_the_clean_image_is_of_the_networks_shape(small):
    noisy, options = half(small.noisy), {"forward": half, "steps": 1, "backend": "reference"}
    with pytest.raises(
        oes.InputError, match=r"^clean: expected shape \(1, any, 16, 20\), got \(1, 3, 8, 10\)$"
    ):
        oes.train_sparse(small.net, small.mask, small.z, noisy, clean=noisy, **options)
    with pytest.raises(
        oes.InputError, match=r"^clean: .* network's image \(1, 3, 16, 20\), got \(1, 1, 16, 20\)$"
    ):
        oes.train_sparse(small.net, small.mask, small.z, noisy, clean=small.clean[:, :1], **options)
    own = nn.Sequential(small.net, nn.AvgPool2d(2))
    mask = oes.Mask.from_flat(own, small.mask.flat)
    with pytest.raises(
        oes.InputError, match=r"^clean: .* network's image \(1, 3, 8, 10\), got \(1, 3, 16, 20\)$"
    ):
        oes.train_sparse(own, mask, small.z, half(noisy), clean=small.clean, **options)


def test_an_output_that_is_no_image(small):
    class Pair(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, z):
            return self.net(z), z

    with pytest.raises(
        oes.InputError, match=r"^net: expected an image of torch.float64 as output, got a tuple"
    ):
        oes.baselines.dense_dip(
            Pair(small.net), small.z, half(small.noisy), forward=half, steps=1, backend="reference"
        )
    with pytest.raises(
        oes.InputError, match=r"^net: expected an output of the noisy image's shape .*; a forward"
    ):
        oes.baselines.dense_dip(
            nn.Sequential(small.net, nn.AvgPool2d(2)),
            small.z,
            small.noisy,
            tv=1.0,
            steps=1,
            backend="reference",
        )
