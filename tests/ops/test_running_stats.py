"""running_stats: every backend against the formula."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import KERNELS, device_of, dtypes_of, require

import oes_fast as oes
from oes_fast.functional import running_stats
from oes_fast.ops import _library
from oes_fast.ops.running_stats import LayerStats, running_stats_of_layers

pytestmark = [pytest.mark.cpu_kernel, pytest.mark.device, pytest.mark.memcheck]

BACKENDS = ["reference", *KERNELS]


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("channels", [None, [4, 1, 2], []])
@pytest.mark.parametrize("with_offset", [False, True])
def test_formula(backend, momentum, channels, with_offset):
    require(backend)
    count = 6 if channels is None else len(channels)
    place = list(range(6)) if channels is None else channels
    dtypes = (torch.float32, torch.float64) if backend == "reference" else dtypes_of(backend)
    for dtype in dtypes:
        device = device_of(backend)
        mean, var, offset = draw(count), draw(count, seed=1).square(), draw(count, seed=2)
        running = [draw(6, seed=3), draw(6, seed=4).square()]
        expected = [r.clone() for r in running]
        for i, c in enumerate(place):
            new = float(mean[i] + offset[i]) if with_offset else float(mean[i])
            expected[0][c] = (1 - momentum) * running[0][c] + momentum * new
            expected[1][c] = (1 - momentum) * running[1][c] + momentum * float(var[i]) * 1.25
        moved = [r.to(dtype).to(device) for r in running]
        running_stats(
            *moved,
            mean.to(dtype).to(device),
            var.to(dtype).to(device),
            channels=None if channels is None else torch.tensor(channels, dtype=torch.int64, device=device),
            offset=offset.to(dtype).to(device) if with_offset else None,
            momentum=momentum,
            correction=1.25,
            backend=backend,
        )
        for ours, theirs in zip(moved, expected, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_registration(backend):
    require(backend)
    vectors = [draw(3).float().to(device_of(backend)) for _ in range(4)]
    place = torch.tensor([2, 0, 1], device=vectors[0].device)
    operator = _library.kernel("running_stats", backend)
    torch.library.opcheck(operator, (*vectors, place, None, 0.1, 1.0))


def draw_layers(numbers, device="cpu"):
    """One layer for each number: it moves every second of so many channels, odd ones without an offset."""
    layers = []
    for seed, count in enumerate(numbers):
        some = len(range(0, count, 2))
        vectors = [draw(n, seed=9 * seed + i).float() for i, n in enumerate([count, count, some, some, some])]
        running_mean, running_var, mean, var, offset = (vector.to(device) for vector in vectors)
        place = torch.arange(0, count, 2, device=device)
        layers.append(
            LayerStats(
                running_mean, running_var.square(), mean, var.square(), place,
                None if seed % 2 else offset, 0.1 + 0.01 * seed, 1.0 + 0.1 * seed,
            )
        )  # fmt: skip
    return layers


@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("numbers", [[], [5], [0, 3], [1, 2, 3, 300], [4, 0, 129, 6, 7, 8, 9, 2, 3]])
def test_many_layers_at_once(backend, numbers):
    require(backend)
    layers = draw_layers(numbers, device_of(backend))
    wanted = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    for (mean, var), layer in zip(wanted, layers, strict=True):
        options = {name: getattr(layer, name) for name in ("channels", "offset", "momentum", "correction")}
        running_stats(mean, var, layer.mean, layer.var, **options, backend=backend)
    running_stats_of_layers(layers)
    for (mean, var), layer in zip(wanted, layers, strict=True):
        torch.testing.assert_close(layer.running_mean, mean, rtol=0, atol=0)
        torch.testing.assert_close(layer.running_var, var, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["triton"])
def test_a_layer_that_comes_twice_is_moved_twice(backend):
    require(backend)
    first, second = draw_layers([6, 6], device_of(backend))
    second = second._replace(running_mean=first.running_mean, running_var=first.running_var)
    wanted = [first.running_mean.clone(), first.running_var.clone()]
    for layer in (first, second):
        options = {name: getattr(layer, name) for name in ("channels", "offset", "momentum", "correction")}
        running_stats(*wanted, layer.mean, layer.var, **options, backend=backend)
    running_stats_of_layers([first, second])
    torch.testing.assert_close([first.running_mean, first.running_var], wanted, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["triton"])
def test_registration_of_many_layers(backend):
    require(backend)
    columns = zip(*draw_layers([4, 5], device_of(backend)), strict=True)
    operator = _library.kernel("running_stats_of_layers", backend)
    torch.library.opcheck(operator, tuple(map(list, columns)))


V = torch.zeros(3)
BAD = [
    ("running_mean", {"running_mean": torch.zeros(3, 1)}),
    ("running_mean", {"running_mean": torch.zeros(6)[::2]}),
    ("running_var", {"running_var": torch.zeros(2)}),
    ("mean", {"mean": torch.zeros(2)}),
    ("mean", {"mean": V.double()}),
    ("var", {"var": torch.zeros(2)}),
    ("channels", {"channels": torch.zeros(3)}),
    ("channels", {"channels": torch.zeros(2, dtype=torch.int64)}),
    ("offset", {"offset": torch.zeros(2)}),
    ("momentum", {"momentum": 1.5}),
    ("correction", {"correction": 0.0}),
]


@pytest.mark.parametrize(("name", "changes"), BAD)
def test_bad_arguments_are_named(name, changes):
    good = {"running_mean": V.clone(), "running_var": V.clone(), "mean": V, "var": V}
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        running_stats(**(good | changes))
