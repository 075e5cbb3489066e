"""Networks with several results: entry= says which one is the image, everywhere in the same way."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.baselines import dense_dip, sgld

Z = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NOISY = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
Results = namedtuple("Results", ["features", "image"])
KINDS: dict[str, tuple[Any, Any]] = {
    "tuple": (lambda h, y: (h, y), 1),
    "from the end": (lambda h, y: (h, y), -1),
    "list": (lambda h, y: [y, h], 0),
    "dict": (lambda h, y: {"features": h, "image": y}, "image"),
    "dict of numbers": (lambda h, y: {1: y}, 1),
    "named tuple": (Results, "image"),
    "pieces": (lambda h, y: torch.cat([y, y], 1).chunk(2, 1), 1),
}


class Several(nn.Module):
    def __init__(self, results: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 2, 1),
        )
        self.results = results

    def forward(self, x: Tensor) -> Any:
        h = self.norm(self.first(x))
        return self.results(h, self.last(torch.relu(h)))


def image_alone() -> nn.Module:
    return Several(lambda h, y: y)


@pytest.mark.parametrize(("results", "entry"), KINDS.values(), ids=KINDS)
def test_the_image_is_trained_as_if_it_were_alone(results: Any, entry: Any) -> None:
    net, alone = Several(results), image_alone()
    mask = oes.Mask.from_flat(net, torch.ones(sum(p.numel() for p in net.parameters()), dtype=torch.bool))
    torch.testing.assert_close(oes.sparsify(net, entry=entry)(Z), alone(Z))
    for backend in ("reference", "torch"):
        options: dict[str, Any] = {"steps": 3, "backend": backend}
        wanted = oes.train_sparse(alone, mask, Z, NOISY, **options)
        fit = oes.train_sparse(net, mask, Z, NOISY, entry=entry, **options)
        torch.testing.assert_close(fit.output, wanted.output)
        assert fit.backend == backend
        assert isinstance(fit.net, Several)
        found = oes.search_mask(net, Z, NOISY, density=0.5, entry=entry, **options)
        assert torch.equal(
            found.mask.flat, oes.search_mask(alone, Z, NOISY, density=0.5, **options).mask.flat
        )


def test_baselines() -> None:
    net, alone = Several(KINDS["dict"][0]), image_alone()
    for method in (dense_dip, sgld):
        wanted = method(alone, Z, NOISY, steps=2)
        torch.testing.assert_close(method(net, Z, NOISY, entry="image", steps=2).output, wanted.output)


WRONG = {
    "index": ("tuple", 2, r"entry: expected one that Several gives, got 2, but its output is a tuple of 2"),
    "name of a tuple": ("tuple", "image", r"got 'image', but its output is a tuple"),
    "key": ("dict", "output", r"got 'output', but its output is a dict of 'features', 'image'"),
    "index of a dict": ("dict", 0, r"got 0, but its output is a dict"),
    "field": ("named tuple", "output", r"but its output is a Results of 'features', 'image'"),
    "piece": ("pieces", 2, r"got 2, but its output is a tuple of 2"),
}


@pytest.mark.parametrize(("kind", "entry", "reason"), WRONG.values(), ids=WRONG)
def test_refused(kind: str, entry: Any, reason: str) -> None:
    net = Several(KINDS[kind][0])
    for backend in ("auto", "reference", "torch"):
        with pytest.raises(oes.InputError, match=reason):
            oes.search_mask(net, Z, NOISY, density=0.5, steps=1, entry=entry, backend=backend)
    with pytest.raises(oes.InputError, match=reason):
        oes.sparsify(net, entry=entry)(Z)


@pytest.mark.parametrize("entry", [True, 1.0, ["image"]])
def test_no_entry(entry: Any) -> None:
    with pytest.raises(oes.InputError, match="entry: expected an index, a name or None, got"):
        oes.sparsify(image_alone(), entry=entry)
    with pytest.raises(oes.InputError, match="entry: expected an index, a name or None, got"):
        oes.search_mask(image_alone(), Z, NOISY, density=0.5, steps=1, entry=entry)


def test_of_a_tensor() -> None:
    with pytest.raises(oes.InputError, match="got 0, but its output is a tensor"):
        oes.search_mask(image_alone(), Z, NOISY, density=0.5, steps=1, entry=0)


def test_checkpoints_know_it(tmp_path: Any) -> None:
    net, path = Several(lambda h, y: (y, y)), tmp_path / "run"
    options: dict[str, Any] = {"steps": 2, "density": 0.5, "checkpoint": path}
    oes.search_mask(net, Z, NOISY, entry=0, **options)
    oes.search_mask(net, Z, NOISY, entry=0, resume=True, **options)
    with pytest.raises(oes.CheckpointError, match="entry"):
        oes.search_mask(net, Z, NOISY, entry=1, resume=True, **options)


def test_without_one_the_refusal_names_it() -> None:
    with pytest.raises(oes.TraceError, match=r"got a tuple of 2; wrap .*, or say which by entry="):
        oes.sparsify(Several(KINDS["tuple"][0]))(Z)
