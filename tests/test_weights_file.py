"""Files of weights: a network comes back, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_generator import small_generator
from tiny_models import TINY, tiny

import oes_fast as oes
from oes_fast.weights_file import load_weights, save_weights


def test_a_network_comes_back(tmp_path: Path) -> None:
    net, _ = small_generator(torch.rand(1, 3, 16, 16), seed=0)
    other, z = small_generator(torch.rand(1, 3, 16, 16), seed=1)
    other(z)  # running statistics of its own
    save_weights(tmp_path / "a.safetensors", other)
    load_weights(tmp_path / "a.safetensors", net)
    for name, tensor in other.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)


def test_other_files_and_networks_are_refused(tmp_path: Path) -> None:
    net, _ = small_generator(torch.rand(1, 3, 16, 16), seed=0)
    path = tmp_path / "a.safetensors"
    oes.Mask.from_flat(net, [True] * sum(p.numel() for p in net.parameters())).save(path)
    with pytest.raises(oes.InputError, match="expected a file of weights"):
        load_weights(path, net)
    save_weights(path, torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(oes.InputError, match="expected the weights of the network"):
        load_weights(path, net)
    save_weights(path, torch.nn.Conv2d(1, 2, 1))
    with pytest.raises(oes.InputError, match="which differ in weight"):
        load_weights(path, torch.nn.Conv2d(1, 2, 3))


@pytest.mark.parametrize("case", TINY)
def test_every_model_comes_back(case: str, tmp_path: Path) -> None:
    net, z, _ = tiny(case)
    name, options = TINY[case]
    image = net(z)  # running statistics of its own
    other, _ = oes.models.generator(name, image.shape[1:], seed=9, dtype=torch.float64, **options)
    save_weights(tmp_path / "a.safetensors", net)
    load_weights(tmp_path / "a.safetensors", other)
    for key, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor)
