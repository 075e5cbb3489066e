"""Networks whose results are joined, and how they run as chains: for the tests of chains that are graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from chains import agree
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.rewrite import SparseGenerator, ir


class Residual(nn.Module):
    """Convolutions around which an image is added, with norms and without."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(4, channels, 3, padding=1, padding_mode="reflect"), nn.LeakyReLU(0.2)
        )
        self.one = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )
        self.two = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate"),
            nn.ELU(0.7),
            nn.BatchNorm2d(channels),
        )
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 3, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.one(x)
        x = x + self.two(x)
        return self.last(x)


class Unet(nn.Module):
    """Down and up again with concatenations, a PReLU, and the input added in the end."""

    def __init__(
        self,
        pool: str = "max",
        up: str = "nearest",
        norm: bool = True,
        size: tuple[int, int] = (16, 24),
    ) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            between = [nn.BatchNorm2d(outputs)] if norm else []
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), *between, nn.ReLU())

        self.down = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2, ceil_mode=True)
        if up == "nearest":
            self.ups = nn.ModuleList(nn.Upsample(scale_factor=2) for _ in range(2))
        else:
            sizes = (-(-size[0] // 2), -(-size[1] // 2)), size
            self.ups = nn.ModuleList(
                nn.Upsample(size=each, mode="bilinear", align_corners=up == "corners") for each in sizes
            )
        self.a, self.b, self.c = block(3, 5), block(5, 7), block(7, 6)[:-1]
        self.act = nn.PReLU(6)
        self.d, self.e = block(6 + 7, 5), block(5 + 5, 4)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(self.down(a))
        c = self.act(self.c(self.down(b)))
        d = self.d(torch.cat([self.ups[0](c), b], 1))
        return self.last(self.e(torch.cat([a, self.ups[1](d)], 1))) + x


def decoder(align: bool | None = None) -> nn.Module:
    """Bilinear up-sampling between pointwise convolutions."""
    layers: list[nn.Module] = []
    for _ in range(2):
        up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align)
        layers += [nn.Conv2d(4, 4, 1, bias=False), up, nn.ReLU(), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers, nn.Conv2d(4, 3, 1), nn.Sigmoid())


def transposed() -> nn.Module:
    """Transposed convolutions, pixel shuffle, one slope for all channels, norms of images and of groups."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.InstanceNorm2d(6),
        nn.PReLU(),
        nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1),
        nn.GroupNorm(4, 8),
        nn.SiLU(),
        nn.PixelShuffle(2),
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 3, 1),
    )


class Named(NamedTuple):
    """A network and the shape of its input."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]


def _skip(**options: object) -> Callable[[], nn.Module]:
    channels = {"num_channels_down": (5, 7), "num_channels_skip": 3, "filter_size_down": 3, "seed": 0}
    return lambda: oes.models.skip(4, 3, **(channels | options))


NETWORKS = {
    "residual": Named(Residual, (1, 4, 19, 22)),
    "unet": Named(Unet, (1, 3, 16, 24)),
    "unet without norms": Named(lambda: Unet(norm=False), (1, 3, 16, 24)),
    "unet of odd sizes": Named(lambda: Unet("avg", "sizes", size=(17, 21)), (1, 3, 17, 21)),
    "unet with corners": Named(lambda: Unet("avg", "corners", norm=False, size=(17, 22)), (1, 3, 17, 22)),
    "decoder": Named(decoder, (1, 4, 6, 7)),
    "decoder with corners": Named(lambda: decoder(True), (1, 4, 6, 7)),
    "transposed": Named(transposed, (1, 3, 12, 14)),
    "skip": Named(_skip(), (1, 4, 24, 32)),
    "skip of odd sizes": Named(_skip(pad="zero", downsample_mode="max"), (1, 4, 23, 29)),
    "skip bilinear": Named(_skip(upsample_mode="bilinear", downsample_mode="stride"), (1, 4, 24, 20)),
}


def perturbed(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64, its parameters moved: betas start where activations have their kink."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.double().parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return net.train()


def rewritten_pair(
    net: nn.Module, density: float, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[SparseGenerator, SparseGenerator]:
    """On plain PyTorch and on the C++ kernels, with a random mask."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(FlatLayout.of(net).numel, generator=generator) < density
    mask = oes.Mask.from_flat(net, keep) if density < 1 else None
    plain, fast = (
        oes.sparsify(net.to(dtype), mask, backend=name, verify=False).train() for name in ("torch", "cpu")
    )
    return plain, fast


def evaluated(net: SparseGenerator, z: Tensor, seed: int = 1) -> list[Tensor]:
    """Image, gradients of weights and input, running statistics."""
    z = z.clone().requires_grad_()
    image = net(z)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)
    grads = torch.autograd.grad((image * direction).sum(), (net.weights, z), allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, (net.weights, z), strict=True)]
    return [image.detach(), *grads, *(buffer.clone() for _, buffer in net.dense_buffers())]


def check(
    net: nn.Module, z: Tensor, density: float, seed: int = 0, tolerance: float = 1e-10
) -> SparseGenerator:
    """Two steps on the kernels against PyTorch, with a gradient of the input and with a constant input."""
    plain, fast = rewritten_pair(net, density, seed)
    for _ in range(2):
        expected = evaluated(plain, z)
        agree(evaluated(fast, z), expected, tolerance)
        for each in (plain, fast):
            with torch.no_grad():
                each.weights -= 0.05 * expected[1] / (1e-9 + expected[1].norm())
    direction = torch.ones_like(z)[:, :1]
    found = [
        torch.autograd.grad((each(z) * direction.mean()).sum(), each.weights)[0] for each in (plain, fast)
    ]
    agree([found[1]], [found[0]], tolerance)
    return fast


def chains(net: SparseGenerator, z: Tensor) -> tuple[int, Sequence[ir.Node]]:
    """How many chains there are, and the convolutions alive that are in none."""
    plan = net.plan(z)
    outside = [
        node
        for node in plan.graph.nodes
        if isinstance(node.stage, ir.Conv | ir.UpConv)
        and node not in plan.chained
        and node not in plan.input_only
        and len(plan.alive[node].varying)
    ]
    return len(plan.chains), outside
