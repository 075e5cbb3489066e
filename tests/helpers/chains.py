"""Networks that run as chains, and what one evaluation of them gives."""

from __future__ import annotations

import torch
from kernel_backends import device_of
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.rewrite import SparseGenerator

Case = tuple[dict[str, object], tuple[int, int], float]  # options of the generator, image, density


def networks(
    case: Case, dtype: torch.dtype, seed: int = 0, backend: str = "cpu"
) -> tuple[SparseGenerator, SparseGenerator, Tensor]:
    """(plain PyTorch, a backend's kernels, input) of one case, where the backend takes tensors."""
    options, size, density = case
    options = {"num_channels_down": (8, 12), "filter_size_down": 3, "seed": seed} | options
    net = oes.models.skip(4, options.pop("outputs", 3), **options).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():  # betas start at 0, where activations have their kink
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(dtype)
    mask = torch.rand(FlatLayout.of(net).numel, generator=generator) < density
    mask = oes.Mask.from_flat(net, mask)
    net, z = net.to(device_of(backend)), oes.noise_input(4, size, seed=seed, dtype=dtype)
    plain, fast = (oes.sparsify(net, mask, backend=name, verify=False).train() for name in ("torch", backend))
    return plain, fast, z.to(device_of(backend))


def differentiate(net: SparseGenerator, z: Tensor, seed: int = 1) -> list[Tensor]:
    """Output, gradient of the weights, running statistics."""
    output = net(z)
    direction = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(output)
    (grad,) = torch.autograd.grad((output * direction).sum(), net.weights)
    return [output.detach(), grad, *(buffer.clone() for _, buffer in net.dense_buffers())]


def agree(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Fail where one of the tensors is farther off than ``tolerance`` of its largest element."""
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.isfinite(ours).all()
        scale = 1 + float(theirs.double().abs().max()) if theirs.numel() else 1.0
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)


def one_conv(act: nn.Module, bias: bool = True) -> nn.Sequential:
    """A convolution with norm and activation, and one to three channels behind it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), act, nn.Conv2d(8, 3, 1, bias=bias)
    ).double()


def kept(net: nn.Module, *dropped: tuple[str, object]) -> oes.Mask:
    """A mask that keeps all but the given indices of parameters."""
    keep = torch.ones(FlatLayout.of(net).numel, dtype=torch.bool)
    for name, index in dropped:
        FlatLayout.of(net).views(keep)[name][index] = False
    return oes.Mask.from_flat(net, keep)
