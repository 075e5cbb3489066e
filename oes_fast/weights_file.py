"""Files of a network's weights, for networks that no seed gives: the rewound ones of lottery tickets."""

from __future__ import annotations

import os

import torch
from torch import nn

from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout, check_network
from oes_fast.io.files import load_tensors, save_tensors

_FORMAT = "oes_fast weights 1"


def save_weights(path: str | os.PathLike[str], net: nn.Module) -> None:
    """Write parameters and buffers as a safetensors file, atomically.

    Args:
        path: file to write.
        net: any network with parameters.

    Raises:
        InputError: ``net`` is no network with parameters.
        OutputError: the file cannot be written; an older file of that name is left as it was.
    """
    fingerprint = FlatLayout.of(check_network(net)).fingerprint
    save_tensors(path, net.state_dict(), {"format": _FORMAT, "fingerprint": fingerprint})


def load_weights(path: str | os.PathLike[str], net: nn.Module) -> None:
    """Read parameters and buffers that :func:`save_weights` wrote into ``net``, whose dtypes they take.

    Args:
        path: file to read.
        net: a network of the same class as the one written; changed in place, or left alone on an error.

    Raises:
        InputError: no such file, another file, or the weights of another network.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise InputError(
            f"{path}: expected a file of weights ({_FORMAT}), got {metadata.get('format', 'another file')}"
        )
    own = check_network(net).state_dict()
    wrong = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
    if wrong:
        raise InputError(
            f"{path}: expected the weights of the network {FlatLayout.of(net).fingerprint}, got those of "
            f"{metadata.get('fingerprint')}, which differ in {wrong[0]}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
