"""Networks whose code does more than layers do: the same results as the dense network, or a clear refusal."""

from __future__ import annotations

import copy
import random
import re
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
Z = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """A network whose forward is given as a function."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.relu, self.same, self.fc = nn.ReLU(inplace=True), nn.Identity(), nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(1))
        self.count = 0
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def written(function: Callable[..., Tensor]) -> nn.Module:
    return Written(function).double()


def agree(net: nn.Module, fast: nn.Module) -> None:
    wanted, got = net(Z), fast(Z)
    torch.testing.assert_close(got, wanted, **TOLERANCE)
    wanted.square().sum().backward()
    (grad,) = torch.autograd.grad(got.square().sum(), fast.weights)
    dense = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    torch.testing.assert_close(grad, torch.cat([g.flatten() for g in dense]), **TOLERANCE)
    net.zero_grad()


def random_scale(net: Written, x: Tensor) -> Tensor:
    return net.out(net.conv(x)) * (1 + random.random())


def assigns_buffer(net: Written, x: Tensor) -> Tensor:
    net.scale = net.scale * 0.5
    return net.out(net.conv(x) * net.scale)


def counts(net: Written, x: Tensor) -> Tensor:
    net.count += 1
    return net.out(net.conv(x)) * net.count


def without_gradient(net: Written, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = net.conv(x)
    return net.out(h)


def relu_of_other_name(net: Written, x: Tensor) -> Tensor:
    h = net.conv(x)
    y = net.relu(net.same(h))
    return net.out(y + h)


def relu_of_view(net: Written, x: Tensor) -> Tensor:
    h = net.conv(x)
    y = net.relu(h.view(1, 4, -1, 8))
    return net.out(y + h)


def relu_without_result(net: Written, x: Tensor) -> Tensor:
    h = net.conv(x)
    net.relu(h)
    return net.out(h)


def function_in_place(net: Written, x: Tensor) -> Tensor:
    h = net.conv(x)
    F.leaky_relu(h, 0.2, True)
    return net.out(h)


REFUSED = {
    "torch noise": lambda net, x: net.out(net.conv(x + torch.randn(x.shape, dtype=torch.float64))),
    "python noise": random_scale,
    "assigns a buffer": assigns_buffer,
    "counts": counts,
    "no_grad": without_gradient,
    "in place on a view": relu_of_view,
    "in place on the input": lambda net, x: net.out(net.conv(net.relu(x))),
    "no image": lambda net, x: net.out(net.conv(x)).mean((2, 3)),
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_refused_and_left_as_it_was(function: Callable[..., Tensor]) -> None:
    net = written(function)
    fast = oes.sparsify(net)
    states = torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(oes.TraceError):
            fast(Z)
    assert torch.equal(states, torch.get_rng_state())
    assert fast._net.count == 0
    assert float(fast._net.scale) == 1


def stores(net: Written, x: Tensor) -> Tensor:
    net.seen = net.conv(x)
    return net.out(net.seen)


def gate(net: Written, x: Tensor) -> Tensor:
    h = net.conv(x)
    return net.out(h * torch.sigmoid(net.fc(h.mean((2, 3))))[:, :, None, None])


class Defaults(Written):
    def forward(self, x: Tensor, extra: Tensor | None = None, *, gain: float = 3.0) -> Tensor:
        h = self.conv(x) * gain
        return self.out(h if extra is None else h + extra)


ACCEPTED = {
    "stores an activation": stores,
    "activation of what is no image": gate,
    "norm used twice": lambda net, x: net.out(net.norm(net.norm(net.conv(x)) ** 2)),
    "in place after a layer": lambda net, x: net.out(net.relu(net.norm(net.conv(x)))),
    "in place under another name": relu_of_other_name,
    "in place, result ignored": relu_without_result,
    "function in place": function_in_place,
    "F.relu_": lambda net, x: net.out(F.relu_(net.conv(x))),
}


@pytest.mark.parametrize("function", [*ACCEPTED.values(), None], ids=[*ACCEPTED, "arguments with defaults"])
def test_same_as_dense(function: Callable[..., Tensor] | None) -> None:
    net = Defaults(gate).double() if function is None else written(function)
    fast = oes.sparsify(net)
    for training in (True, True, False):
        agree(net.train(training), fast.train(training))


def test_norm_used_twice_under_a_mask() -> None:
    net = written(ACCEPTED["norm used twice"])
    mask = torch.rand(FlatLayout.of(net).numel, generator=torch.Generator().manual_seed(1)) < 0.5
    fast = oes.sparsify(net, oes.Mask.from_flat(net, mask))
    dense = fast.to_dense()
    for training in (True, True, False):
        torch.testing.assert_close(fast.train(training)(Z), dense.train(training)(Z), **TOLERANCE)


def test_frozen_batch_norm_stays_frozen_until_train() -> None:
    net = written(ACCEPTED["in place after a layer"]).train()
    net.norm.running_mean.uniform_(-1, 1)
    net.norm.eval()
    fast = oes.sparsify(net)
    agree(net, fast)
    agree(net.train(), fast.train())


def test_hooks() -> None:
    net = written(ACCEPTED["in place after a layer"])
    net.register_forward_hook(lambda module, args, output: output * 2)
    net.conv.register_full_backward_pre_hook(lambda module, grads: (grads[0] * 3,))
    agree(net, oes.sparsify(net))
    net.out.weight.register_hook(lambda grad: grad * 2)
    with pytest.raises(oes.TraceError, match="hook"):
        oes.sparsify(net)


def test_parameters_held_fixed_get_no_gradient() -> None:
    net = written(ACCEPTED["in place after a layer"])
    net.conv.requires_grad_(False)
    agree(net, oes.sparsify(net))


def test_buffers_of_any_name() -> None:
    net = written(lambda net, x: net.out(net.conv(x)) * net.weights * net.a__b * net.a.b)
    net.register_buffer("weights", torch.full((1,), 2.0, dtype=torch.float64))
    net.register_buffer("a__b", torch.full((1,), 3.0, dtype=torch.float64))
    net.a = nn.Module()
    net.a.register_buffer("b", torch.full((1,), 5.0, dtype=torch.float64))
    agree(net, oes.sparsify(net))


def test_input_with_other_data() -> None:
    net = written(ACCEPTED["in place after a layer"])
    fast, z = oes.sparsify(net), Z.clone()
    fast(z)
    z.data = torch.rand_like(z)
    torch.testing.assert_close(fast(z), net(z), **TOLERANCE)


def test_inference_mode_leaves_nothing_behind() -> None:
    net = written(ACCEPTED["in place after a layer"])
    fast = oes.sparsify(net)
    with torch.inference_mode():
        torch.testing.assert_close(fast(Z), net(Z), **TOLERANCE)
        made_here = Z.clone()
    agree(net, fast)
    with torch.no_grad():
        torch.testing.assert_close(fast(made_here), net(made_here), **TOLERANCE)


def test_default_device_of_the_caller_does_not_matter() -> None:
    net = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).double()
    with torch.device("meta"):
        got = oes.sparsify(net)(Z)
    torch.testing.assert_close(got, net(Z), **TOLERANCE)


def test_threads_do_not_disturb_each_other() -> None:
    failures: list[BaseException] = []

    def use(net: nn.Module) -> None:
        try:
            for side in range(4, 9):
                z = torch.rand(1, 3, side, side, dtype=torch.float64)  # random numbers of this thread's own
                fast, dense = oes.sparsify(net), copy.deepcopy(net)
                torch.testing.assert_close(fast(z), dense(z), **TOLERANCE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(written(gate),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_state_of_another_mask_is_refused() -> None:
    net = written(gate)
    count = FlatLayout.of(net).numel
    left, right = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    left[: count // 2], right[count // 2 : 2 * (count // 2)] = True, True
    a, b = (oes.sparsify(net, oes.Mask.from_flat(net, mask)) for mask in (left, right))
    copy.deepcopy(a).load_state_dict(a.state_dict())
    with pytest.raises(oes.MaskMismatchError):
        b.load_state_dict(a.state_dict())


def test_explain_asks_for_the_channels_it_cannot_know() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    fast = oes.sparsify(net)
    with pytest.raises(oes.InputError, match="explain"):
        fast.explain((8, 8))
    fast(Z.float())
    assert "batch norm" in fast.explain((8, 8))


def test_functional_gradient() -> None:
    net = oes.models.skip(3, 2, num_channels_down=[4], seed=0).double()
    mask = torch.rand(FlatLayout.of(net).numel, generator=torch.Generator().manual_seed(1)) < 0.7
    fast = oes.sparsify(net, oes.Mask.from_flat(net, mask))
    buffers = dict(fast.dense_buffers())

    def loss(weights: Tensor) -> Tensor:
        return fast.evaluate(weights, Z, buffers, update_stats=False).square().sum()

    weights = fast.weights.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(weights), weights)
    torch.testing.assert_close(torch.func.grad(loss)(weights.detach()), wanted, **TOLERANCE)


@pytest.mark.parametrize("operation", ["+=", "*=", "[...] =", "add_", "relu_", "last"])
def test_a_change_in_place_is_named_with_its_line(operation):
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(4, 3, 3, padding=1)
            self.last = nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.first(x)
            row = x[:, :, :1]
            if operation == "+=":
                row += 1
            elif operation == "*=":
                row *= 2
            elif operation == "add_":
                row.add_(1)
            elif operation == "relu_":
                torch.relu_(row)
            elif operation == "last":
                self.last(row)
            else:
                x[:, :1] = 0
            return torch.sigmoid(x)

    of = "first" if operation == "[...] =" else "getitem"
    wanted = rf"in place: {re.escape(operation)} on the result of {of} at test_rewrite_refusals.py:\d+$"
    with pytest.raises(oes.TraceError, match=wanted):
        oes.sparsify(Changing()).plan(torch.rand(1, 4, 8, 8))
