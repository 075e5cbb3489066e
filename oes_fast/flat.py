"""All parameters of a network as one vector, in parameters() order: the form in which masks are published."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from oes_fast.errors import InputError


@dataclass(frozen=True)
class FlatLayout:
    """Where each parameter of a network lies in the flat vector.

    Attributes:
        names: of the parameters, in parameters() order.
        shapes: of each.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, net: nn.Module) -> FlatLayout:
        """The layout of ``net``'s parameters.

        Raises:
            InputError: the network has no parameters, parameters of several dtypes or devices, or lazy ones.
        """
        if not isinstance(net, nn.Module):
            raise InputError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
        named = dict(net.named_parameters())
        if not named:
            raise InputError("net: expected a network with parameters, got one without any")
        for name, parameter in named.items():
            if is_lazy(parameter):
                raise InputError(
                    f"net: expected parameters with values, got a lazy one, {name}: call the network once"
                )
        kinds = {(p.dtype, p.device) for p in named.values()}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise InputError(f"net: expected parameters of one dtype on one device, got {found}")
        return cls(tuple(named), tuple(p.shape for p in named.values()))

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each parameter."""
        return [shape.numel() for shape in self.shapes]

    @property
    def numel(self) -> int:
        """Number of elements of all parameters."""
        return sum(self.sizes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters as views of ``flat`` [numel], by name."""
        pieces = flat.split(self.sizes)
        return {n: v.view(s) for n, v, s in zip(self.names, pieces, self.shapes, strict=True)}

    @property
    def fingerprint(self) -> str:
        """Names the architecture by its parameter shapes in order: "<count>-<12 hex digits of SHA-256>".

        Weights do not enter, so that a mask found on one initialisation can be used on another.
        """
        text = ";".join("x".join(map(str, shape)) for shape in self.shapes)
        return f"{self.numel}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def check_network(net: object) -> nn.Module:
    """``net``, if it is a network with parameters that can be given to it one by one.

    Raises:
        InputError: it is no torch.nn.Module, is wrapped for several devices, or see :meth:`FlatLayout.of`.
    """
    if not isinstance(net, nn.Module):  # asked for by FlatLayout.of as well, but modules() comes first
        raise InputError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    wrapper = next((m for m in net.modules() if isinstance(m, _WRAPPERS)), None)
    if wrapper is not None:
        raise InputError(
            f"net: expected a network as it is, got {type(wrapper).__name__}: hand over its module"
        )
    if isinstance(net, torch.jit.ScriptModule):
        raise InputError("net: expected a network as it is, got TorchScript: hand over what it was made from")
    FlatLayout.of(net)
    return net


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def fixed_parameters(net: nn.Module) -> list[str]:
    """Names of the parameters that a training leaves as they are, in parameters() order.

    Those with ``requires_grad`` off; none where all are, as in a network that was prepared for inference:
    that says nothing of a training.
    """
    fixed = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    return fixed if any(parameter.requires_grad for parameter in net.parameters()) else []


def flatten(net: nn.Module) -> Tensor:
    """A copy of all parameters as one vector [numel], without gradient."""
    FlatLayout.of(net)
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def unflatten_(net: nn.Module, flat: Tensor) -> None:
    """Copy the vector [numel] into the parameters of ``net``.

    Raises:
        InputError: another number of elements than the network has.
    """
    layout = FlatLayout.of(net)
    if flat.shape != (layout.numel,):
        raise InputError(f"flat: expected shape ({layout.numel},), got {tuple(flat.shape)}")
    views = layout.views(flat)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(views[name])


def fingerprint(net: nn.Module) -> str:
    """See :attr:`FlatLayout.fingerprint`.

    Example:
        >>> oes.fingerprint(torch.nn.Conv2d(2, 3, 3)) == oes.fingerprint(torch.nn.Conv2d(2, 3, 3))
        True
    """
    return FlatLayout.of(net).fingerprint
