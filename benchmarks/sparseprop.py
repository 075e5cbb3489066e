"""The published training with its convolutions run by SparseProp (Nikdan et al., ICML 2023). CPU, float32.

What it measures is the kernels: network, loss, masked gradients of everything else and Adam are those of
:class:`oes_fast.bench.published.PublishedTraining`. The package is not a dependency; where it is missing,
:func:`require` says how to get it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.bench.published import PublishedTraining
from oes_fast.errors import BackendError

COMMIT = "df97d8e"  # what the figures were measured with

# Largest kept share of the convolutions that each contestant replaces: its authors' rule, and no rule.
SETTINGS = {"sparseprop": 0.2, "sparseprop-all": 1.0}


class SparsePropTraining(PublishedTraining):
    """Sparse-DIP training where SparseProp's module takes the place of every sparse enough convolution.

    Each such module holds its kept weights alone, so their gradients need no mask. Adam moves them, the
    biases and the other layers as published. A kept weight that starts at exactly zero is lost.

    Args:
        net: the generator with its initial weights, float32 on the CPU; left as it is.
        mask_flat: bool of shape [n], parameters() order.
        z: its input, shape [1, C, H, W].
        noisy: the image, shape [1, C', H, W].
        lr: learning rate of Adam.
        share: replace the convolutions of which no larger share of weights is kept.

    Attributes:
        replaced: names of the convolutions replaced.

    Raises:
        BackendError: the package is missing, or the network is on another device or of another type.
    """

    def __init__(
        self,
        net: nn.Module,
        mask_flat: Tensor,
        z: Tensor,
        noisy: Tensor,
        lr: float = 1e-2,
        share: float = 0.2,
    ) -> None:
        sparse_conv2d = require()
        named = dict(net.named_parameters())
        if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in named.values()):
            raise BackendError("sparseprop: expected a float32 network on the CPU, got another one")
        pieces = mask_flat.split([p.numel() for p in named.values()])
        self.masks = {
            name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)
        }
        super().__init__(net, mask_flat, z, noisy, lr)
        self.replaced = [
            name
            for name, layer in self.net.named_modules()
            if _supported(layer) and self.masks[f"{name}.weight"].float().mean() <= share
        ]
        for name in self.replaced:
            # The other setting, vectorised over the batch, is right only where 8 divides the batch.
            layer = sparse_conv2d.from_dense(self.net.get_submodule(name), vectorizing_over_on=True)
            self.net.set_submodule(name, layer)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=lr)

    def _pieces(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each dense parameter with its piece of the mask."""
        return [(p, self.masks[name]) for name, p in self.net.named_parameters() if name in self.masks]


def require() -> Any:
    """SparseProp's convolution.

    Raises:
        BackendError: the package is missing or does not load.
    """
    try:
        from sparseprop.modules import SparseConv2d
    except ImportError as error:
        raise BackendError(
            f"sparseprop: expected the package of that name, got: {error}; it is built by pip install "
            f"--no-deps --no-build-isolation git+https://github.com/IST-DASLab/sparseprop@{COMMIT} "
            "(in an activated environment with pybind11 and scipy; needs git, g++ and AVX2)"
        ) from error
    return SparseConv2d


def _supported(layer: nn.Module) -> bool:
    """Whether SparseProp computes this convolution at any batch size: it ignores or lacks everything else."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.stride == (1, 1)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.padding[0] == layer.padding[1]
        and layer.kernel_size[0] == layer.kernel_size[1]
    )
