"""Networks with several results: entry= says which one is the image, everywhere in the same way."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oes_fast as oes
from oes_fast import analysis, pruning
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


def last_sigmoid(h: Tensor, y: Tensor) -> Tensor:
    return torch.sigmoid(y)


WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "snip": (pruning.snip, {}),
    "snip as it is": (pruning.snip, {"backend": "reference"}),
    "snip published": (pruning.snip, {"published": True}),
    "grasp": (pruning.grasp, {}),
    "grasp as it is": (pruning.grasp, {"backend": "reference"}),
    "grasp published": (pruning.grasp, {"published": True}),
    "synflow": (pruning.synflow, {"rounds": 3, "backend": "torch"}),
    "synflow as it is": (pruning.synflow, {"rounds": 3, "backend": "reference"}),
    "synflow published": (pruning.synflow, {"published": True, "backend": "torch"}),
    "imp": (pruning.imp, {"rounds": 2, "steps": 2, "forward": lambda x: 2 * x}),
    "imp as it is": (pruning.imp, {"rounds": 2, "steps": 2, "backend": "reference"}),
    "oes": (pruning.oes, {"steps": 2}),
}


@pytest.mark.filterwarnings("ignore::oes_fast.OESWarning")  # of a collapse, and of empty layers
@pytest.mark.parametrize(("way", "options"), WAYS.values(), ids=WAYS)
def test_ways_to_a_mask(way: Any, options: dict[str, Any]) -> None:
    net, alone = Several(lambda h, y: (h, last_sigmoid(h, y))), Several(last_sigmoid)
    if "published" not in options:
        options = {"small": "score", **options}
    wanted = way(alone, Z, NOISY, density=0.4, **options)
    found = way(net, Z, NOISY, density=0.4, entry=1, **options)
    assert torch.equal(found.flat, wanted.flat)
    assert found.settings == wanted.settings
    with pytest.raises(oes.InputError, match="got 2, but its output is a tuple of 2"):
        way(net, Z, NOISY, density=0.4, entry=2, **options)
    with pytest.raises(oes.InputError, match="entry: expected an index, a name or None, got bool"):
        way(net, Z, NOISY, density=0.4, entry=True, **options)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_scores_of_a_mask(backend: str) -> None:
    net, alone = Several(KINDS["dict"][0]), image_alone()
    for scores, data in (
        (pruning.snip_scores, (Z, NOISY)),
        (pruning.grasp_scores, (Z, NOISY)),
        (pruning.synflow_scores, (Z,)),
    ):
        wanted = scores(alone, *data, backend=backend)
        torch.testing.assert_close(scores(net, *data, entry="image", backend=backend), wanted)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_figures(backend: str) -> None:
    net, alone = Several(KINDS["tuple"][0]), image_alone()
    for figure, data, options in (
        (analysis.jacobian_norm, (Z,), {"probes": 2, "iterations": 2}),
        (analysis.hessian_eigenvalues, (Z, NOISY), {"k": 1, "tolerance": 1e-1}),
        (analysis.hessian_spectrum, (Z, NOISY), {"probes": 1, "steps": 3}),
        (analysis.sharpness, (Z, NOISY), {"probes": 1, "steps": 1}),
    ):
        options = {"backend": backend, **options}
        assert repr(figure(net, None, *data, entry=1, **options)) == repr(
            figure(alone, None, *data, **options)
        )
        with pytest.raises(oes.OESError, match=r"got a tuple of 2; .* or say which by entry="):
            figure(net, None, *data, **options)
        with pytest.raises(oes.InputError, match="got 2, but its output is a tuple of 2"):
            figure(net, None, *data, entry=2, **options)


def test_dead_channels() -> None:
    net, alone = Several(KINDS["tuple"][0]), image_alone()
    assert analysis.dead_channels(net, entry=1) == analysis.dead_channels(alone)
    assert len(analysis.dead_channels(net, entry=0)) == 1  # the last convolution gives no features
    with pytest.raises(oes.TraceError, match=r"got a tuple of 2; .* or say which by entry="):
        analysis.dead_channels(net)


def test_transferred_masks() -> None:
    options = {"num_channels_down": (4, 4), "filter_size_down": 3}
    noisy = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    net, _ = oes.fresh_generator(noisy, options=options, seed=0)
    mask = pruning.magnitude(net, density=0.5)
    with pytest.raises(oes.InputError, match=r"entry: expected one that .* gives, got 1, .* is a tensor"):
        oes.transfer_mask(mask, noisy, entry=1, steps=1)


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


def test_rounds_know_it(tmp_path: Any) -> None:
    net, path = Several(lambda h, y: (y, y)), tmp_path / "rounds"
    options: dict[str, Any] = {"steps": 2, "densities": [0.5], "checkpoint": path, "small": "score"}
    found = pruning.imp_rounds(net, Z, NOISY, entry=0, **options)
    again = pruning.imp_rounds(net, Z, NOISY, entry=0, resume=True, **options)
    assert torch.equal(found.mask.flat, again.mask.flat)
    for other in (1, None):
        with pytest.raises(oes.CheckpointError, match="entry"):
            pruning.imp_rounds(net, Z, NOISY, entry=other, resume=True, **options)


def test_without_one_the_refusal_names_it() -> None:
    with pytest.raises(oes.TraceError, match=r"got a tuple of 2; wrap .*, or say which by entry="):
        oes.sparsify(Several(KINDS["tuple"][0]))(Z)
