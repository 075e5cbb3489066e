"""Masks by the names of the parameters, as dicts hold them and torch.nn.utils.prune keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout, check_network

_SHOWN = 3  # names in a message


def checked_bools(name: str, values: object) -> Tensor:
    """``values`` as bool on the CPU, if they are booleans or numbers that are all 0 or 1.

    Args:
        name: the argument's name, for the message.
        values: tensor of any real dtype, NumPy array or (nested) sequence.

    Raises:
        InputError: another type, or other values.
    """
    tensor = _tensor_of(name, values).detach()
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        raise InputError(f"{name}: expected a dense tensor of 0 and 1 with values, got {_kind(tensor)}")
    tensor = tensor.cpu()
    if tensor.dtype == torch.bool:
        return tensor.clone()
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # torch does not compare 8-bit floats
    kept = tensor == 1
    bad = ~(kept | (tensor == 0))
    if bool(bad.any()):
        example = tensor[bad].flatten()[0].item()
        raise InputError(
            f"{name}: expected only 0 and 1, got {int(bad.sum())} other values of {tensor.numel()}, "
            f"such as {example:g}"
        )
    return kept


def flat_of_dict(net: nn.Module, masks: Mapping[str, Tensor]) -> Tensor:
    """The flat mask [number of parameters] of masks by the names that :func:`parameter_names` gives.

    Raises:
        InputError: no dict, a name that is missing or not one of the network's, a shape other than the
            parameter's, or values other than 0 and 1.
    """
    if not isinstance(masks, Mapping):
        raise InputError(f"masks: expected a dict of masks by parameter name, got {type(masks).__name__}")
    layout = FlatLayout.of(net)
    names = parameter_names(net)
    missing = [name for name in names if name not in masks]
    extra = [name for name in masks if name not in set(names)]
    if missing or extra:
        said = [f"none for {_listed(missing)}"] if missing else []
        said += [f"{_listed(extra)}, which it does not have"] if extra else []
        raise InputError(
            f"masks: expected one for each of the network's {len(names)} parameters, got {' and '.join(said)}"
        )
    pieces = []
    for name, shape in zip(names, layout.shapes, strict=True):
        bools = checked_bools(f"masks[{name!r}]", masks[name])
        if bools.shape != shape:
            raise InputError(
                f"masks[{name!r}]: expected the parameter's shape {tuple(shape)}, got {tuple(bools.shape)}"
            )
        pieces.append(bools.reshape(-1))
    return torch.cat(pieces)


def dict_of_flat(net: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """The inverse of :func:`flat_of_dict`: bool copies in the parameters' shapes."""
    views = FlatLayout.of(net).views(flat)
    return {name: view.clone() for name, view in zip(parameter_names(net), views.values(), strict=True)}


def parameter_names(net: nn.Module) -> tuple[str, ...]:
    """Names of the parameters in parameters() order, without the "_orig" that torch.nn.utils.prune adds."""
    pruned = {f"{name}_orig": name for name in _pruning_masks(net)}
    return tuple(pruned.get(name, name) for name in FlatLayout.of(net).names)


def dict_of_pruned(net: nn.Module) -> dict[str, Tensor]:
    """What torch.nn.utils.prune keeps of each parameter, bool by name; all of those never pruned.

    Raises:
        InputError: a parameter that the network uses in several places is pruned in different ways there, or
            a mask of torch's holds other values than 0 and 1.
    """
    check_network(net)
    pruning = _pruning_masks(net)
    found: dict[int, tuple[str, Tensor]] = {}
    for full_name, parameter in net.named_parameters(remove_duplicate=False):
        name = full_name.removesuffix("_orig") if full_name.removesuffix("_orig") in pruning else full_name
        mask = pruning.get(name)
        bools = (
            torch.ones(parameter.shape, dtype=torch.bool, device="cpu")
            if mask is None
            else checked_bools(f"{name}_mask", mask)
        )
        first, known = found.setdefault(id(parameter), (name, bools))
        if not torch.equal(known, bools):
            raise InputError(
                f"pruned: expected one mask for the parameter that {first} and {name} share, got two"
            )
    return dict(found.values())


def prune_by(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Give ``net`` torch's custom_from_mask for every mask that drops something.

    Parameters stay in their order, which torch would change: what belongs to the network before belongs to it
    afterwards.

    Args:
        net: changed in place.
        masks: bool by name, of every parameter.

    Raises:
        InputError: torch has pruned a parameter already, or cannot: it is held by a list or dict.
    """
    names = dict(zip(map(id, net.parameters()), masks, strict=True))
    places = []
    for path, module in net.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{key}".lstrip(".")
            if key.endswith("_orig") and f"{key.removesuffix('_orig')}_mask" in module._buffers:
                raise InputError(
                    f"net: expected a network not yet pruned by torch.nn.utils.prune, got one with {name}"
                )
            mask = masks[names[id(parameter)]]
            if bool(mask.all()):
                continue
            if isinstance(module, nn.ParameterList | nn.ParameterDict):
                raise InputError(
                    f"net: expected parameters that torch.nn.utils.prune can mask, got {name} in a "
                    f"{type(module).__name__}, which has no forward to mask it in"
                )
            places.append((module, key, mask))
    for module, key, mask in places:
        order = list(module._parameters)
        prune.custom_from_mask(module, key, mask.to(module.get_parameter(key).device))
        # Before other hooks that were there, such as weight_norm's, which computes with the masked parameter.
        hooks = module._forward_pre_hooks
        hooks.move_to_end(next(reversed(hooks)), last=False)
        for each in order:
            kept = f"{each}_orig" if each == key else each
            module._parameters[kept] = module._parameters.pop(kept)


def _pruning_masks(net: nn.Module) -> dict[str, Tensor]:
    """The masks that torch.nn.utils.prune keeps in ``net``, by the names of the parameters."""
    found = {}
    for path, module in net.named_modules():
        buffers = dict(module.named_buffers(recurse=False))
        for key, _ in module.named_parameters(recurse=False):
            name = key.removesuffix("_orig")
            if name != key and f"{name}_mask" in buffers:
                found[f"{path}.{name}".lstrip(".")] = buffers[f"{name}_mask"]
    return found


def _tensor_of(name: str, values: object) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, np.ndarray | Sequence) or isinstance(values, str | bytes):
        raise InputError(f"{name}: expected a tensor of booleans, got {type(values).__name__}")
    try:
        array = np.array(values)
    except ValueError as error:
        raise InputError(f"{name}: expected a tensor of booleans, got {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected booleans, got {type(values).__name__} of {array.dtype}")
    return torch.from_numpy(array if array.dtype.kind == "b" else array.astype(np.float64))


def _kind(tensor: Tensor) -> str:
    where = " on the meta device" if tensor.is_meta else ""
    return f"{tensor.dtype} of layout {str(tensor.layout).removeprefix('torch.')}{where}"


def _listed(names: Sequence[object]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
