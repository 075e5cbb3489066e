"""Networks as people bring them: published generators, other packages' networks, the makes of common code."""

from __future__ import annotations

from collections.abc import Callable

import optional_packages
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oes_fast as oes


class Bottleneck(nn.Module):
    """As torchvision's: inplace activations, one module for all of them, `out += identity`."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = 2 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    """An encoder of such blocks, and back up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(True))
        self.layers = nn.Sequential(Bottleneck(4, 4), Bottleneck(8, 4, 2), Bottleneck(8, 4))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.stem(x))
        return torch.sigmoid(self.head(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class Block(nn.Module):
    """A decoder's block as in segmentation models: up-sampled, concatenated, convolved twice."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()

        def layers(channels: int) -> nn.Sequential:
            conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

        self.conv1, self.conv2 = layers(inputs + skip), layers(outputs)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        height, width = (2 * x.shape[2], 2 * x.shape[3]) if skip is None else skip.shape[2:]
        x = F.interpolate(x, size=(height, width), mode="nearest")
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.conv2(self.conv1(x))


class Segmentation(nn.Module):
    """Features of an encoder in a list, and a decoder that reads them from the last to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
                nn.Sequential(nn.MaxPool2d(2), Bottleneck(4, 3)),
                nn.Sequential(nn.MaxPool2d(2), Bottleneck(6, 4)),
            ]
        )
        self.blocks = nn.ModuleList([Block(8, 6, 6), Block(6, 4, 4)])
        self.head = nn.Sequential(nn.Dropout(0.0), nn.Conv2d(4, 3, 3, padding=1), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for stage in self.encoder:
            features.append(stage(features[-1]))
        skips = features[1:][::-1]
        x = skips[0]
        for number, block in enumerate(self.blocks):
            x = block(x, skips[number + 1] if number + 1 < len(skips) else None)
        return self.head(x)


class Functional(nn.Module):
    """Parameters in functions, layers made in forward, slices and pieces of channels, changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 4, 3, 3) / 6), nn.Parameter(torch.randn(8) / 6)
        self.up = nn.Parameter(torch.randn(4, 4, 2, 2) / 4)
        self.gamma, self.beta = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(4) / 4)
        self.slope = nn.Parameter(torch.tensor([0.2]))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
        self.last = nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.weight, self.bias)
        one, other = h.chunk(2, dim=1)
        one = F.batch_norm(one, self.mean, self.var, self.gamma, self.beta, self.training, 0.1, 1e-3)
        other = F.group_norm(other, 2, self.gamma, self.beta, 1e-3)
        low = nn.AvgPool2d(2)(F.leaky_relu(one, 0.1, inplace=True))
        y = F.prelu(F.conv_transpose2d(low, self.up, stride=2), self.slope)
        y += nn.Upsample(scale_factor=2, mode="bilinear")(F.max_pool2d(other, 2))
        y.add_(h[:, :4]).mul_(0.5)
        h = torch.concat((y.relu(), F.instance_norm(h[:, 2:6], eps=1e-3).sigmoid()), dim=-3)
        h = F.dropout(h, 0.5, training=False)[..., 1:-1, 1:-1]
        return F.tanh(F.pixel_shuffle(self.last(F.gelu(h)), 2))


def monai_unet(**options: int) -> nn.Module:
    nets = optional_packages.monai().networks.nets
    return nets.UNet(2, 4, 3, channels=(4, 6, 8), strides=(2, 2), **options)


def monai_basic_unet() -> nn.Module:
    return optional_packages.monai().networks.nets.BasicUNet(2, 4, 3, features=(4, 4, 6, 6, 8, 4))


def deepinv_unet(*, batch_norm: bool) -> nn.Module:
    models = optional_packages.deepinv().models
    return models.UNet(4, 3, scales=2, channels_per_scale=(4, 6), batch_norm=batch_norm)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "oes skip": lambda: oes.models.skip(
        4, 3, num_channels_down=(4, 6), num_channels_skip=2, filter_size_down=3, seed=0
    ),
    "oes unet": lambda: oes.models.MODELS["unet"].make(4, 3, feature_scale=16, seed=0),
    "oes resnet": lambda: oes.models.MODELS["resnet"].make(4, 3, num_blocks=2, num_channels=4, seed=0),
    "oes deep decoder": lambda: oes.models.deep_decoder(2, 3, num_channels=4, seed=0),
    "oes conv decoder": lambda: oes.models.MODELS["conv_decoder"].make(
        4, 3, size=(32, 32), in_size=16, num_layers=3, seed=0
    ),
    "residual": Residual,
    "segmentation": Segmentation,
    "functional": Functional,
    "deepinv UNet": lambda: deepinv_unet(batch_norm=True),
    "deepinv UNet without norms": lambda: deepinv_unet(batch_norm=False),
    "monai UNet": monai_unet,
    "monai UNet of residual units": lambda: monai_unet(num_res_units=2),
    "monai BasicUNet": monai_basic_unet,
}
