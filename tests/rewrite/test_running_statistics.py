"""Running statistics of layers that are also, or only, called where the output does not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.copies import copy_network
from oes_fast.flat import flatten, unflatten_
from oes_fast.rewrite.tracing import convert

BACKENDS = [name for name in ("torch", "cpu") if oes.backends()[name]]


class Net(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.other = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 3, 1),
            nn.Conv2d(4, 4, 1),
        )
        self.norm, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=None)
        self.instance = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.does = forward

    def forward(self, z: Tensor) -> Any:
        return self.does(self, z)


CASES: dict[str, Callable[[Any, Tensor], Any]] = {}


def case(function: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    CASES[function.__name__] = function
    return function


@case
def another_entry(s: Any, z: Tensor) -> Any:
    return s.last(s.norm(z)), s.other(s.norm(3 * z))


@case
def discarded_before(s: Any, z: Tensor) -> Any:
    x = s.first(z)
    s.norm(x + 3)
    return s.last(s.norm(x))


@case
def discarded_after(s: Any, z: Tensor) -> Any:
    y = s.last(torch.relu(s.norm(s.first(z))))
    s.norm(s.other(z) - 1)
    return y


@case
def only_discarded(s: Any, z: Tensor) -> Any:
    x = s.first(z)
    s.norm(torch.relu(s.other(x)))
    return s.last(torch.relu(s.second(x)))


@case
def branch_of_several(s: Any, z: Tensor) -> Any:
    x = s.first(z)
    s.second(F.max_pool2d(torch.relu(s.norm(x)), 2))
    return s.last(torch.relu(x))


@case
def cumulative_average(s: Any, z: Tensor) -> Any:
    x = s.second(s.first(z))
    s.second(2 * x + 1)
    return s.last(x)


@case
def instance_norm(s: Any, z: Tensor) -> Any:
    x = s.first(z)
    s.instance(x * x)
    return s.last(s.instance(x))


@case
def by_function(s: Any, z: Tensor) -> Any:
    x = s.first(z)
    F.batch_norm(x + 2, s.norm.running_mean, s.norm.running_var, training=True)
    return s.last(s.norm(x))


@case
def by_function_alone(s: Any, z: Tensor) -> Any:
    x = s.first(z)
    F.batch_norm(x + 2, s.norm.running_mean, s.norm.running_var, None, None, True, 0.3)
    return s.last(s.second(x))


@case
def read_by_code(s: Any, z: Tensor) -> Any:
    x = s.norm(s.first(z))
    return s.last(x + s.norm.running_mean.view(1, -1, 1, 1))


@case
def on_the_input(s: Any, z: Tensor) -> Any:
    s.norm(z)
    return s.last(s.second(s.first(z)))


def compared(net: nn.Module, fast: nn.Module, dense: nn.Module, z: Tensor) -> None:
    for _ in range(2):
        wanted = dense.train()(z)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        torch.testing.assert_close(fast.train()(z), wanted)
    buffers = dict(fast.to_dense().named_buffers())
    for name, buffer in dense.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, msg=lambda m, name=name: f"{name}: {m}")
    with torch.no_grad():
        wanted = dense.eval()(z)
        torch.testing.assert_close(fast.eval()(z), wanted[0] if isinstance(wanted, tuple) else wanted)


@pytest.mark.parametrize(("backend", "density"), [*((name, 0.6) for name in BACKENDS), (BACKENDS[-1], 1.0)])
@pytest.mark.parametrize("forward", CASES.values(), ids=CASES)
def test_as_in_the_dense_network(forward: Callable[..., Any], backend: str, density: float) -> None:
    net = Net(forward).double()
    z = torch.rand(1, 4, 9, 8, dtype=torch.float64)
    # Biases, norms and what reads them last are kept: channels that reach no output have no statistics here.
    keep = torch.cat(
        [
            (torch.rand(p.shape) < (density if p.ndim > 1 and len(p) > 3 else 2)).flatten()
            for p in net.parameters()
        ]
    )
    dense = copy_network(net)
    unflatten_(dense, flatten(net) * keep)
    entry = 0 if forward is another_entry else None
    fast = oes.sparsify(net, oes.Mask.from_flat(net, keep), backend=backend, entry=entry)
    compared(net, fast, dense, z)
    fast.explain((9, 8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_a_training(backend: str) -> None:
    net = Net(another_entry)
    mask = oes.Mask.from_flat(net, torch.ones(flatten(net).numel(), dtype=torch.bool))
    z, noisy = torch.rand(1, 4, 8, 8), torch.rand(1, 3, 8, 8)
    fits = [
        oes.train_sparse(net, mask, z, noisy, steps=3, entry=0, backend=b) for b in ("reference", backend)
    ]
    assert fits[1].backend == backend
    wanted, found = (dict(fit.net.named_buffers()) for fit in fits)
    assert int(wanted["norm.num_batches_tracked"]) == 6
    for name, buffer in wanted.items():
        torch.testing.assert_close(found[name], buffer)


def test_in_evaluation_mode_nothing_is_kept_for_them() -> None:
    net = Net(discarded_before).eval()
    fast = oes.sparsify(net, backend="torch")
    z = torch.rand(1, 4, 8, 8)
    torch.testing.assert_close(fast(z), net(z))
    norms = [n for n in fast.plan(z).graph if n.name == "norm"]
    assert len(norms) == 1


@pytest.mark.parametrize("forward", [discarded_before, only_discarded, by_function_alone, another_entry])
def test_a_trace_that_misses_one_is_refused(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oes_fast.rewrite.tracing.recorded.updates", lambda node, root: False)
    with pytest.raises(oes.TraceError, match=r"changes its buffer norm\.|takes a way that"):
        oes.sparsify(Net(forward), backend="torch", entry=0 if forward is another_entry else None)(
            torch.rand(1, 4, 8, 8)
        )


@pytest.mark.parametrize("forward", [discarded_before, only_discarded, by_function_alone, another_entry])
def test_verification_sees_a_missing_update(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "updates", lambda node, root: False)
    with pytest.raises(oes.VerificationError, match=r"norm\.running_mean|second call"):
        oes.sparsify(Net(forward), backend="torch", entry=0 if forward is another_entry else None)(
            torch.rand(1, 4, 8, 8)
        )
