"""What all ways to a mask have in common: one signature, the density kept, networks of any kind, refusals."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from conftest import unchanged
from torch import nn

import oes_fast as oes
from oes_fast.pruning.select import SCOPES, SMALL

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.OESWarning")
METHODS = list(oes.pruning.METHODS)
QUICK = {"imp": {"rounds": 2, "steps": 3}, "oes": {"steps": 3}, "synflow": {"rounds": 5}}


def prune(method: str, net: nn.Module, z: torch.Tensor, noisy: torch.Tensor, **options: object) -> oes.Mask:
    return oes.pruning.METHODS[method](net, z, noisy, **(QUICK.get(method, {}) | options))


@pytest.mark.parametrize("method", METHODS)
def test_the_signature(method):
    function = oes.pruning.METHODS[method]
    assert function is getattr(oes.pruning, method)
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:3] == ["net", "z", "noisy"]
    assert parameters["density"].default is inspect.Parameter.empty
    assert parameters["scope"].default == "global"
    assert parameters["small"].default == ("score" if method == "oes" else "keep")
    assert parameters["seed"].default == 0
    assert all(p.kind is not p.POSITIONAL_OR_KEYWORD for p in list(parameters.values())[3:])


@pytest.mark.parametrize(
    ("scope", "small"), [*((scope, SMALL[0]) for scope in SCOPES), *((SCOPES[0], s) for s in SMALL[1:])]
)
@pytest.mark.parametrize("method", METHODS)
def test_the_density_asked_for_is_kept(problem, method, scope, small, tmp_path):
    net, _, z, noisy, _ = problem
    numel = sum(p.numel() for p in net.parameters())
    options = {} if method in ("random", "magnitude") else {"verify": False}
    with unchanged(net, z, noisy):
        mask = prune(method, net, z, noisy, density=0.237, scope=scope, small=small, seed=5, **options)
    assert mask.kept == round(0.237 * numel)
    few = oes.pruning.small_parameters(net)
    # Erdos and Renyi's share of a vector is the largest there is.
    assert bool(mask.flat[few].all()) == (small == "keep" or scope == "erdos_renyi_kernel")
    assert {name: mask.settings[name] for name in ("method", "density", "scope", "small", "seed")} == {
        "method": method, "density": 0.237, "scope": scope, "small": small, "seed": 5,
    }  # fmt: skip
    mask.save(tmp_path / "mask.safetensors")
    again = oes.Mask.load(tmp_path / "mask.safetensors", net)
    assert torch.equal(again.flat, mask.flat)
    assert again.settings == json.loads(json.dumps(dict(mask.settings)))


@pytest.mark.parametrize("method", METHODS)
def test_everything_is_kept_of_density_1(problem, method):
    if method == "oes":  # whose density is a probability, too
        pytest.skip("a search has a density below 1")
    options = {} if method in ("random", "magnitude") else {"verify": False}
    assert prune(method, problem.net, problem.z, problem.noisy, density=1.0, **options).density == 1.0


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "imp"])
def test_float32_gives_nearly_the_mask_of_float64(make_problem, method):
    net, _, z, noisy, _ = make_problem()
    exact = prune(method, net, z, noisy, density=0.3, verify=False).flat
    net, z, noisy = net.float(), z.float(), noisy.float()
    assert int((prune(method, net, z, noisy, density=0.3, verify=False).flat ^ exact).sum()) <= 4


class Own(nn.Module):
    """A network of its own: a linear layer, a grouped convolution, a branch that no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.grouped = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 4)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.grouped(torch.tanh(self.linear(x))))
        if float(x.detach().sum()) > 1e6:
            x = x * 0
        return torch.sigmoid(self.out(x))


NETWORKS = {
    "untraceable": (Own(), (1, 2, 5, 6), (1, 1, 5, 6)),
    "decoder": (
        nn.Sequential(
            nn.Conv2d(3, 5, 1), nn.Upsample(scale_factor=2), nn.ReLU(), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)
        ),
        (1, 3, 4, 4),
        (1, 2, 8, 8),
    ),
    "of a vector": (
        nn.Sequential(nn.Linear(4, 18), nn.Tanh(), nn.Unflatten(1, (2, 3, 3)), nn.Conv2d(2, 1, 1)),
        (1, 4),
        (1, 1, 3, 3),
    ),
    "frozen": (
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)).requires_grad_(False),
        (1, 2, 5, 6),
        (1, 1, 5, 6),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_networks_of_any_kind(method, kind, dtype):
    net, z_shape, shape = NETWORKS[kind]
    net = net.to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    z, noisy = torch.rand(z_shape, generator=generator), torch.rand(shape, generator=generator)
    z, noisy = z.to(dtype), noisy.to(dtype)
    with unchanged(net, z, noisy):
        mask = prune(method, net, z, noisy, density=0.6)
    assert mask.kept == round(0.6 * sum(p.numel() for p in net.parameters()))
    with torch.inference_mode():  # gradients are taken wherever it is called
        again = prune(method, net, z, noisy, density=0.6)
    assert torch.equal(again.flat, mask.flat)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"density": 1.2}, "density: expected a finite number > 0.0 and <= 1.0, got 1.2"),
        ({"density": -0.1}, "density: expected a finite number > 0.0 and <= 1.0, got -0.1"),
        ({"density": 0.01, "small": "keep"}, r"density: expected .* at least, the share of the"),
        ({"scope": "layers"}, "scope: expected one of global, tensor, erdos_renyi_kernel, got 'layers'"),
        ({"small": True}, "small: expected one of keep, score, got True"),
        ({"seed": 2**64}, "seed: expected an integer >= 0"),
    ],
)
def test_refused_options(problem, method, change, said):
    with pytest.raises(oes.InputError, match=said):
        prune(method, problem.net, problem.z, problem.noisy, **({"density": 0.5} | change))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
def test_nan_is_refused(make_problem, method):
    net, _, z, noisy, _ = make_problem()
    with torch.no_grad():
        next(net.parameters())[0, 0, 0, 0] = float("nan")
    with pytest.raises(oes.InputError, match="net: expected finite weights"):
        prune(method, net, z, noisy, density=0.5)
    if method != "magnitude":
        net = make_problem().net
        with pytest.raises(oes.InputError, match="z: expected finite values"):
            prune(method, net, z * float("nan"), noisy, density=0.5)
    if method not in ("magnitude", "synflow"):
        with pytest.raises(oes.InputError, match="noisy: expected finite values"):
            prune(method, net, z, noisy * float("inf"), density=0.5)


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "imp", "oes"])
def test_scores_that_are_not_finite_are_refused(make_problem, method):
    net, _, z, noisy, _ = make_problem(dtype=torch.float32, need_sigmoid=False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1e30)
    with pytest.raises(oes.OESError, match=r"NaN|finite"):
        prune(method, net, z, noisy, density=0.5, verify=False)


def test_a_mask_belongs_to_its_network(problem, make_problem):
    other = make_problem(num_channels_down=(4, 8)).net
    mask = oes.pruning.random(other, density=0.5)
    with pytest.raises(oes.MaskMismatchError):
        mask.check(problem.net)
    with pytest.raises(oes.MaskMismatchError):
        oes.train_sparse(problem.net, mask, problem.z, problem.noisy, steps=1)


def test_oes_is_the_search(problem):
    net, _, z, noisy, _ = problem
    options = {"steps": 10, "lr": 0.1, "seed": 3, "verify": False}
    mask = oes.pruning.oes(net, z, noisy, density=0.3, **options)
    found = oes.search_mask(net, z, noisy, density=0.3, **options)
    numel = mask.flat.numel()
    assert found.mask.kept == int(0.3 * numel)
    assert int((mask.flat ^ found.mask.flat).sum()) == round(0.3 * numel) - int(0.3 * numel)
    assert mask.settings["steps"] == 10
    levels = oes.pruning.oes(net, z, noisy, density=0.3, levels=3, steps=3, verify=False)
    assert levels.kept == round(0.3 * numel)
    with pytest.raises(oes.InputError, match=r"mask_option: expected none, .* got 'mean'"):
        oes.pruning.oes(net, z, noisy, density=0.3, mask_option="mean")


def test_every_method_trains(problem):
    net, _, z, noisy, _ = problem
    for method in METHODS:
        options = {} if method in ("random", "magnitude") else {"verify": False}
        mask = prune(method, net, z, noisy, density=0.4, **options)
        fit = oes.train_sparse(net, mask, z, noisy, steps=3, verify=False)
        assert fit.history.loss[-1] < fit.history.loss[0]


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("method", METHODS)
def test_inside_of_the_callers_context(problem, method, context):
    options = {} if method in ("random", "magnitude") else {"verify": False}
    expected = prune(method, *problem[:1], problem.z, problem.noisy, density=0.4, **options)
    with context():
        mask = prune(method, *problem[:1], problem.z, problem.noisy, density=0.4, **options)
    assert torch.equal(mask.flat, expected.flat)
    assert mask.flat.device.type == "cpu"


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_tensors_made_under_inference_mode(make_problem, method, published):
    options = {} if method in ("random", "magnitude") else {"verify": False}
    if published:
        if method == "oes":
            pytest.skip("a search is as published")
        options["published"] = True
    if method == "imp":
        options |= {"rounds": None, "share": 0.4} if published else {}
    with torch.inference_mode():
        net, _, z, noisy, _ = make_problem()
        inside = prune(method, net, z, noisy, density=0.5, **options)
    outside = prune(method, net, z, noisy, density=0.5, **options)  # inference tensors, outside of the mode
    net, _, z, noisy, _ = make_problem()
    expected = prune(method, net, z.requires_grad_(), noisy, density=0.5, **options)
    assert torch.equal(inside.flat, expected.flat)
    assert torch.equal(outside.flat, expected.flat)
    assert z.grad is None
