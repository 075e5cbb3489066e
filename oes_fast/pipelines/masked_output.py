"""The image of a network's weights under a mask, as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oes_fast.copies import copy_network
from oes_fast.flat import flatten, unflatten_
from oes_fast.mask import Mask
from oes_fast.pipelines.inputs import ordinary


@torch.no_grad()
def masked_output(net: nn.Module, mask: Mask, z: Tensor) -> Tensor:
    """What the network gives for z with the weights that the mask drops at 0, without any training.

    Args:
        net: generator; left alone. A copy runs in training mode, as trainings do.
        mask: which weights to keep.
        z: input, shape [1, C, H, W].

    Returns:
        Image [1, C', H', W'].

    Raises:
        MaskMismatchError: the mask belongs to another network.
    """
    mask.check(net)
    masked = copy_network(net).train()
    unflatten_(masked, flatten(net) * mask.flat.to(z.device))
    image: Tensor = masked(ordinary(z))
    return image
