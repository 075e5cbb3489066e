"""What a copy of a convolution takes over: its weights and the mask of a pruned one, and nothing unseen.

A copy that leaves something out is another function, or trains as another one. So whatever stands between the
parameters and the output beside pruning is refused by name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune

from oes_fast._checks import FLOAT_DTYPES
from oes_fast.errors import InputError

DTYPES = (*FLOAT_DTYPES, torch.float16, torch.bfloat16)

_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
    "_state_dict_hooks": "state dict hook",
    "_state_dict_pre_hooks": "state dict pre-hook",
    "_load_state_dict_pre_hooks": "load state dict pre-hook",
    "_load_state_dict_post_hooks": "load state dict post-hook",
}
# Hooks of torch.nn.utils that compute a weight from others, and what undoes them.
_NORMS = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}


class PlainConv2d(NamedTuple):
    """What a convolution computes with.

    Attributes:
        weight: [O, C / groups, kH, kW], zero where pruned.
        bias: [O], or None.
        mask: bool of the shape of ``weight``: which weights pruning or a mask keeps; None for all.
        trained: which of weight and bias require a gradient.
    """

    weight: Tensor
    bias: Tensor | None
    mask: Tensor | None
    trained: tuple[bool, bool]

    @classmethod
    @torch.no_grad()
    def of(cls, conv: nn.Conv2d, known: type[nn.Conv2d]) -> PlainConv2d:
        """Read a convolution.

        Args:
            conv: torch.nn.Conv2d, pruned by torch.nn.utils.prune or not, or a ``known`` one.
            known: the masked layer, whose buffer ``mask`` is read as well.

        Raises:
            InputError: something in it cannot be kept, named.
        """
        _check_class(conv, known)
        pruned = _pruned(conv)
        _check_hooks(conv)
        masked = isinstance(conv, known)
        parameters = {("weight_orig" if "weight" in pruned else "weight"), "bias"}
        if "bias" in pruned:
            parameters |= {"bias_orig"}
        buffers = {f"{name}_mask" for name in pruned} | ({"mask"} if masked else set())
        for kind, found, expected in (
            ("parameter", conv._parameters, parameters),
            ("buffer", conv._buffers, buffers),
            ("module", conv._modules, set()),
        ):
            for name in found:
                if name not in expected:
                    raise InputError(f"conv: expected a plain convolution, got one with a {kind} {name!r}")
        if "bias" in pruned and not _zeros_and_ones(conv, "bias").all():
            raise InputError(
                "conv: expected a whole bias, got a pruned one (bias_mask), which a copy would train; "
                'torch.nn.utils.prune.remove(conv, "bias") makes it a plain one'
            )
        weight = _parameter(conv, "weight_orig" if "weight" in pruned else "weight")
        name = "bias_orig" if "bias" in pruned else "bias"
        bias = None if conv._parameters.get(name) is None else _parameter(conv, name)
        mask = _zeros_and_ones(conv, "weight") if "weight" in pruned else None
        if masked:
            own = conv._buffers["mask"]
            assert own is not None
            mask = own.bool() if mask is None else mask & own.bool()
        values = weight.detach() if mask is None else torch.where(mask, weight.detach(), 0)
        trained = weight.requires_grad, bias is not None and bias.requires_grad
        return cls(values, None if bias is None else bias.detach(), mask, trained)


def _check_class(conv: nn.Conv2d, known: type[nn.Conv2d]) -> None:
    kind = type(conv)
    if parametrize.is_parametrized(conv):
        names = ", ".join(conv.parametrizations)  # type: ignore[arg-type]
        raise InputError(
            f"conv: expected plain parameters, got a parametrization of {names}; "
            "torch.nn.utils.parametrize.remove_parametrizations makes them plain"
        )
    own = known if issubclass(kind, known) else nn.Conv2d
    for method in ("forward", "_conv_forward", "__call__", "_call_impl"):
        changed = getattr(kind, method) is not getattr(own, method)
        if changed or method in conv.__dict__:
            raise InputError(
                f"conv: expected what torch.nn.Conv2d does, got {kind.__name__} with a {method} of its own"
            )


def _pruned(conv: nn.Conv2d) -> set[str]:
    """Names of the tensors that torch.nn.utils.prune prunes."""
    hooks = conv._forward_pre_hooks.values()
    return {hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)}


def _check_hooks(conv: nn.Conv2d) -> None:
    for name, parameter in conv.named_parameters(recurse=False):
        if isinstance(parameter, UninitializedParameter):
            raise InputError(
                f"conv: expected initialised parameters, got a lazy {name}; run conv once before"
            )
    for hook in conv._forward_pre_hooks.values():
        undo = _NORMS.get(type(hook).__name__)
        if undo is not None:
            raise InputError(
                f"conv: expected a plain weight, got one that {type(hook).__name__} computes; "
                f"torch.nn.utils.{undo}(conv) makes it plain"
            )
    for store, kind in _HOOKS.items():
        for hook in getattr(conv, store, {}).values():
            if not isinstance(hook, prune.BasePruningMethod):
                name = getattr(hook, "__name__", type(hook).__name__)
                raise InputError(f"conv: expected no hooks, got a {kind} ({name}), which a copy would lack")
    for name, parameter in conv.named_parameters(recurse=False):
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise InputError(f"conv: expected no hooks, got one of the gradient of {name}")


def _parameter(conv: nn.Conv2d, name: str) -> Tensor:
    parameter = conv._parameters.get(name)
    if parameter is None:
        raise InputError(f"conv: expected a parameter {name!r}, got none")
    if parameter.dtype not in DTYPES:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise InputError(
            f"conv: expected a {name} of dtype {wanted}, got {str(parameter.dtype).removeprefix('torch.')}"
        )
    return parameter


def _zeros_and_ones(conv: nn.Conv2d, name: str) -> Tensor:
    """The mask that pruning keeps for a tensor, bool."""
    values = getattr(conv, f"{name}_mask").detach()
    mask = values != 0
    if not torch.equal(mask.to(values.dtype), values):
        raise InputError(f"conv: expected a {name}_mask of zeros and ones, got other values")
    return mask
