"""Networks whose forward is a drawn program: tensors read several times, changed in place, or not at all."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (what it does, names of its layer, numbers of the tensors it reads, more)
Instruction = tuple[str, str, tuple[int, ...], tuple[Any, ...]]

_KINDS = [
    *("conv", "conv", "conv", "norm", "norm", "act", "act", "again", "again", "up", "pool", "add", "add"),
    *("cat", "cat", "slice", "crop", "in_place", "in_place", "transposed", "grouped", "own"),
]


class Program(nn.Module):
    """Runs instructions, each of which appends a tensor to those that later ones may read."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._draw = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleDict()
        self.program: list[Instruction] = []
        self.size = (self._draw.randint(6, 11), self._draw.randint(6, 11))
        values = [torch.rand(1, 3, *self.size)]
        with torch.no_grad():
            for _ in range(self._draw.randint(4, 12)):
                instruction = self._instruction(values)
                if instruction is not None:
                    self._run(instruction, values)
                    self.program.append(instruction)
        self.last = nn.Conv2d(values[-1].shape[1], 2, 1)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.7, 0.9)
        for module in self.modules():
            if hasattr(module, "eps"):
                module.eps = 0.05  # the dense network amplifies the rounding of constant channels less
        for name, buffer in self.named_buffers():
            buffer.copy_(torch.zeros_like(buffer) if "num" in name else 0.5 + torch.rand(buffer.shape))
        del self._draw

    def forward(self, z: Tensor) -> Tensor:
        """The image [1, 2, H, W]."""
        values = [z]
        for instruction in self.program:
            self._run(instruction, values)
        return self.last(values[-1])

    def _layer(self, layer: nn.Module) -> str:
        name = f"l{len(self.layers)}"
        self.layers[name] = layer
        return name

    def _instruction(self, values: list[Tensor]) -> Instruction | None:
        draw = self._draw
        # The last one more often than others, so that programs are not all dead.
        at = draw.choice([len(values) - 1] * 3 + list(range(len(values))))
        _, c, h, w = values[at].shape
        kind = draw.choice(_KINDS)
        if kind == "conv":
            kernel = draw.choice([1, 3])
            options: dict[str, Any] = {"padding": kernel // 2, "stride": draw.choice([1, 1, 2])}
            options["padding_mode"] = draw.choice(["zeros", "reflect", "replicate", "circular"])
            if min(h, w) <= 2:
                options = {}
                kernel = 1
            layer = nn.Conv2d(c, draw.randint(1, 4), kernel, bias=draw.random() < 0.7, **options)
            return "layer", self._layer(layer), (at,), ()
        if kind == "transposed":
            if max(h, w) > 12:
                return None
            kernel, stride = draw.choice([(2, 2), (3, 2), (4, 2), (3, 1)])
            padding = draw.choice([0, 1])
            extra = draw.choice([0, 1]) if stride == 2 else 0
            layer = nn.ConvTranspose2d(c, draw.randint(1, 3), kernel, stride, padding, extra)
            if (min(h, w) - 1) * stride - 2 * padding + kernel < 2:
                return None
            return "layer", self._layer(layer), (at,), ()
        if kind == "norm":
            if h * w < 2:
                return None
            track = draw.random() < 0.2
            layers = [nn.BatchNorm2d(c)] * 4 + [nn.InstanceNorm2d(c, affine=True, track_running_stats=track)]
            layers += [nn.GroupNorm(draw.choice([g for g in (1, 2, c) if c % g == 0]), c)]
            return "layer", self._layer(draw.choice(layers)), (at,), ()
        if kind == "grouped":
            return "layer", self._layer(nn.Conv2d(c, c, 1, groups=c)), (at,), ()
        if kind == "act":
            layer = draw.choice([nn.ReLU(), nn.ReLU(True), nn.LeakyReLU(0.2), nn.PReLU(c), nn.SiLU(True)])
            more = [nn.PReLU(), nn.Sigmoid(), nn.ELU(), nn.Identity(), nn.Tanh()]
            return "layer", self._layer(draw.choice([layer, *more])), (at,), ()
        if kind == "again":
            fitting = [i for i in self.program if i[0] == "layer" and values[i[2][0]].shape[1] == c]
            if not fitting or min(h, w) < 4:
                return None
            return "layer", draw.choice(fitting)[1], (at,), ()
        if kind == "up":
            if max(h, w) > 12:
                return None
            return "up", "", (at,), (draw.choice(["nearest", "bilinear"]),)
        if kind == "pool":
            return None if min(h, w) < 4 else ("pool", "", (at,), (draw.choice(["avg", "max"]),))
        if kind in ("add", "in_place"):
            same = [i for i, value in enumerate(values) if value.shape == values[at].shape]
            how = draw.choice(["iadd", "add_", "mul_", "relu_", "leaky_relu_"])
            return kind, "", (at, draw.choice(same)), (how,)
        if kind == "cat":
            same = [i for i, value in enumerate(values) if value.shape[2:] == values[at].shape[2:]]
            return "cat", "", (at, draw.choice(same)), ()
        if kind == "slice":
            return None if c < 2 else ("slice", "", (at,), (draw.choice([(0, c), (1, c), (0, c - 1)])))
        if kind == "crop":
            return None if min(h, w) < 5 else ("crop", "", (at,), (draw.randint(0, 1), draw.randint(0, 1)))
        return "own", "", (at,), ()

    def _run(self, instruction: Instruction, values: list[Tensor]) -> None:
        kind, name, at, more = instruction
        x, y = values[at[0]], values[at[-1]]
        if kind == "layer":
            result = self.layers[name](x)
        elif kind == "up":
            result = F.interpolate(x, scale_factor=2, mode=more[0])
        elif kind == "pool":
            result = F.avg_pool2d(x, 2) if more[0] == "avg" else F.max_pool2d(x, 2)
        elif kind == "add":
            result = x + y
        elif kind == "cat":
            result = torch.cat([x, y], 1)
        elif kind == "slice":
            result = x[:, more[0] : more[1]]
        elif kind == "crop":
            result = x[:, :, more[0] :, : x.shape[3] - more[1]]
        elif kind == "own":
            result = x * torch.sigmoid(x)
        elif more[0] == "iadd":
            x += y
            result = x
        elif more[0] == "leaky_relu_":
            result = F.leaky_relu_(x, 0.1)
        else:
            result = x.relu_() if more[0] == "relu_" else getattr(x, more[0])(y if more[0] == "add_" else 0.7)
        values.append(result)
