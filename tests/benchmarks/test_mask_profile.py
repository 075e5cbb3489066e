"""Two masks layer by layer, on masks that are made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_generator import small_generator

import oes_fast as oes
from benchmarks.mask_profile import compared, correlation, tables


@pytest.fixture
def net():
    """Small; its batch norms have scales of 8 and more."""
    return small_generator(torch.rand(1, 3, 32, 32), seed=0)[0]


def ones(net) -> dict[str, torch.Tensor]:
    """A mask by names that keeps everything."""
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters()}


def of(net, masks: dict[str, torch.Tensor]) -> oes.Mask:
    """The mask of :func:`ones`, changed."""
    return oes.Mask.from_dict(net, masks)


def convolutions(net) -> list[str]:
    """The names of their weights."""
    return [name for name, p in net.named_parameters() if p.ndim == 4]


def test_equal_masks(net):
    keep = (
        torch.rand(sum(p.numel() for p in net.parameters()), generator=torch.Generator().manual_seed(0)) < 0.3
    )
    mask = oes.Mask.from_flat(net, keep)
    found = compared(mask, mask, net)
    assert found["overlap coefficient"] == pytest.approx(1)
    assert found["rank correlation"] == pytest.approx(1)
    assert found["correlation"] == pytest.approx(1)
    assert found["shared"] == mask.kept
    assert found["kept"] == [mask.kept] * 2
    assert found["expected"] == pytest.approx(mask.kept * mask.density, abs=0.06)
    assert sum(layer["weights"] for layer in found["layers"]) == mask.flat.numel()
    assert sum(layer["kept"][0] for layer in found["layers"]) == mask.kept
    assert found["dead channels"][0] == found["dead channels"][1]
    assert "overlap by 100.0 %" in tables(found)


def test_masks_of_two_layers(net):
    first, second = convolutions(net)[:2]
    a, b = ({name: torch.zeros_like(m) for name, m in ones(net).items()} for _ in range(2))
    a[first].flatten()[:30] = True
    a[second].flatten()[:10] = True
    b[first].flatten()[20:40] = True
    b[second].flatten()[:20] = True
    found = compared(of(net, a), of(net, b), net)
    # 3/4 and 1/4 against 1/2 and 1/2
    assert found["overlap coefficient"] == pytest.approx(0.75)
    assert found["shared"] == 20
    assert found["kept"] == [40, 40]
    rows = found["layers"][:2]
    assert [row["kept"] for row in rows] == [[30, 20], [10, 20]]
    assert [row["shared"] for row in rows] == [10, 10]
    expected = [k * m / row["weights"] for (k, m), row in zip(((30, 20), (10, 20)), rows, strict=True)]
    assert [row["expected"] for row in rows] == pytest.approx(expected, abs=0.06)
    assert found["expected by layer"] == pytest.approx(sum(expected), abs=0.06)
    assert found["masked scales"] == [found["scales"]] * 2  # no scale is kept


def test_correlations_of_densities():
    opposite = np.array([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]])
    assert correlation(opposite, ranks=True) == correlation(opposite, ranks=False) == -1
    bent = np.array([[0.1, 0.01], [0.2, 0.04], [0.3, 0.9]])
    assert correlation(bent, ranks=True) == 1
    assert correlation(bent, ranks=False) == pytest.approx(float(np.corrcoef(bent.T)[0, 1]), abs=1e-6)
    swapped = np.array([[0.1, 0.1], [0.2, 0.3], [0.3, 0.2], [0.4, 0.4]])  # 1 - 6 * 2 / (4 * 15)
    assert correlation(swapped, ranks=True) == pytest.approx(0.8)


def test_channels_whose_scale_is_dropped_are_dead(net):
    masks = ones(net)
    modules = dict(net.named_modules())
    norms = [
        name
        for name, module in modules.items()
        if isinstance(module, torch.nn.BatchNorm2d) and module.weight.numel() == 8
    ]
    dropped = f"{norms[0]}.weight"
    masks[dropped][:3] = False
    found = compared(of(net, masks), of(net, ones(net)), net)
    assert found["masked scales"] == [3, 0]
    assert found["scales"] == sum(
        m.weight.numel() for m in modules.values() if isinstance(m, torch.nn.BatchNorm2d)
    )
    lines = [layer for layer in found["layers"] if layer["dead"] is not None]
    assert len(lines) == len(convolutions(net))
    assert found["dead channels"][1] == sum(layer["dead"][1] for layer in lines)


def test_masks_of_one_density_have_no_correlation(net):
    everything = of(net, ones(net))
    found = compared(everything, everything, net)
    assert found["rank correlation"] is found["correlation"] is None
    assert found["overlap coefficient"] == pytest.approx(1)
    assert "rank correlation of undefined" in tables(found)
