"""How much a mask keeps of every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oes_fast._checks import described
from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout, check_network
from oes_fast.mask import Mask

_ROWS = {  # layers whose weights have a row each, by the word for them
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.Conv3d: "conv",
    nn.ConvTranspose1d: "transposed conv",
    nn.ConvTranspose2d: "transposed conv",
    nn.ConvTranspose3d: "transposed conv",
    nn.Linear: "linear",
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Layer:
    """How much a mask keeps of one layer, or of one kind of small parameter.

    Attributes:
        name: such as "conv 3: 5x5, 16 > 32", counted in parameters() order.
        kept: weights kept.
        count: weights there are.
        density: share kept.
    """

    name: str
    kept: int
    count: int
    density: float


def layer_densities(net: nn.Module, mask: Mask | None = None) -> list[Layer]:
    """Every convolution's weights (or linear layer's) by itself, the small parameters together by kind.

    Args:
        net: the network the mask is for; on any device, "meta" too: its weights do not count.
        mask: which weights are kept, None for all.

    Returns:
        Layers in parameters() order, then the kinds of small parameters. Their counts add up to those of the
        network.

    Raises:
        MaskMismatchError: the mask belongs to another network.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> keep = torch.arange(sum(p.numel() for p in net.parameters())) % 4 == 0
        >>> oes.analysis.layer_densities(net, oes.Mask.from_flat(net, keep))[0]
        Layer(name='conv 1: 3x3, 4 > 8', kept=72, count=288, density=0.25)
    """
    flat = flat_mask(net, mask)
    views = FlatLayout.of(net).views(flat)
    groups: dict[str, list[Tensor]] = {}
    for parameter, name in row_names(net).items():
        groups.setdefault(name, []).append(views[parameter])
    found = []
    for name, tensors in groups.items():
        kept, count = sum(int(t.sum()) for t in tensors), sum(t.numel() for t in tensors)
        found.append(Layer(name, kept, count, kept / count if count else 0.0))
    return found


def row_names(net: nn.Module) -> dict[str, str]:
    """The row that every parameter is counted in, by the parameter's name; big layers come first."""
    big: dict[str, str] = {}
    small: dict[str, str] = {}
    counts: dict[str, int] = {}
    for full_name, parameter in net.named_parameters():
        path, _, key = full_name.rpartition(".")
        module = net.get_submodule(path)
        key = key.removesuffix("_orig")  # torch.nn.utils.prune
        kind = next((word for layer, word in _ROWS.items() if isinstance(module, layer)), None)
        if kind is not None and key == "weight":
            counts[kind] = counts.get(kind, 0) + 1
            big[full_name] = f"{kind} {counts[kind]}: {_shape(module, parameter)}"
        elif isinstance(module, _NORMS):
            small[full_name] = f"batch norm {'scale' if key == 'weight' else key}"
        else:
            words = {"conv": "convolution", "transposed conv": "transposed convolution"}
            name = type(module).__name__ if kind is None else words.get(kind, kind)
            small[full_name] = f"{name} {key}"
    return big | small


def flat_mask(net: nn.Module, mask: Mask | None) -> Tensor:
    """The mask's booleans [numel] on the CPU, checked against the network; all True for None.

    Raises:
        InputError: ``mask`` is none, or ``net`` is no network.
        MaskMismatchError: it belongs to another network.
    """
    check_network(net)
    if mask is None:
        return torch.ones(FlatLayout.of(net).numel, dtype=torch.bool, device="cpu")
    if not isinstance(mask, Mask):
        raise InputError(f"mask: expected an oes_fast.Mask or None, got {described(mask)}")
    mask.check(net)
    return mask.flat


def _shape(module: nn.Module, weight: Tensor) -> str:
    """ "5x5, 16 > 32": size of the kernel, channels read and written."""
    outputs, inputs = weight.shape[:2]
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        inputs, outputs = outputs, inputs
    kernel = "x".join(map(str, weight.shape[2:]))
    return f"{kernel}, {inputs} > {outputs}" if kernel else f"{inputs} > {outputs}"
