"""Code of which a trace sees a part: the same results as the dense network call by call, or a refusal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from unseen import Z, held, hold_against_dense, own

import oes_fast as oes

GLOBAL = [0]
NUMBER = 0
GENERATOR = torch.Generator().manual_seed(3)
PLACE, BRANCH = "in place", "takes a way that the trace did not see"
RANDOM, KEPT = "draws random numbers", "from call to call|in its next call"
GRADIENT = "gradients are off|stops or changes gradients"
VALUES = "asks for values"
REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {}
SAME: dict[str, Callable[[Any, Tensor], Any]] = {}


def refused(reason: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        REFUSED[function.__name__] = function, reason
        return function

    return keep


def same(function: Callable[..., Any]) -> Callable[..., Any]:
    SAME[function.__name__] = function
    return function


# ---- written into tensors


def into(write: Callable[[Tensor, Tensor], object]) -> Callable[[Any, Tensor], Tensor]:
    """A result written into a tensor made in forward."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.body(x)
        made = torch.zeros(1, 4, 8, 8, dtype=h.dtype, device=h.device)
        write(made, h)
        return net.out(made + h)

    return forward


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "setitem": lambda made, h: made.__setitem__((slice(None), slice(1, 4)), h[:, 1:4]),
    "copy_": lambda made, h: made.copy_(h),
    "index_put_": lambda made, h: made.index_put_((torch.tensor([0]),), h),
    "index_copy_": lambda made, h: made.index_copy_(0, torch.tensor([0]), h),
    "scatter_": lambda made, h: made.scatter_(1, torch.zeros(1, 1, 8, 8, dtype=torch.int64), h[:, :1]),
    "masked_fill_": lambda made, h: made.masked_fill_(h > 0, 2.0),
    "add_ of the class": lambda made, h: torch.Tensor.add_(made, h),
    "iadd": lambda made, h: made.__iadd__(h),
    "out=": lambda made, h: torch.mul(h.detach(), 2, out=made),
    "aten.add_": lambda made, h: torch.ops.aten.add_.Tensor(made, h),
    "aten.copy_": lambda made, h: torch.ops.aten.copy_.default(made, h),
    "aten.copy_ packet": lambda made, h: torch.ops.aten.copy_(made, h),
    "foreach": lambda made, h: torch._foreach_add_([made], [h]),
    "on the result": lambda made, h: torch.ops.aten.mul_.Tensor(h, h),
    "foreach on the result": lambda made, h: torch._foreach_mul_([h], 3.0),
    "function in place": lambda made, h: F.relu(h[:, :2], inplace=True),
    "floor division": lambda made, h: h.__ifloordiv__(0.5),
    "data of the result": lambda made, h: h.data.mul_(2),
    "setitem in data": lambda made, h: h.data.__setitem__((slice(None), slice(0, 2)), 0.0),
    "slice of the result": lambda made, h: h[:, :2].add_(1),
    "a list": lambda made, h: [made][0].copy_(h),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_written_into_a_tensor(write: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.raises(oes.TraceError, match=r"in place|item assignment"):
        oes.sparsify(own(into(write)))(Z)


@refused(PLACE)
def setitem_in_zeros_like(net: Any, x: Tensor) -> Tensor:
    h = net.body(x)
    made = torch.zeros_like(h)
    made[:, :4] = h
    return net.out(made)


@refused(PLACE)
def setitem_in_new_zeros(net: Any, x: Tensor) -> Tensor:
    h = net.body(x)
    made = h.new_zeros(1, 6, 8, 8)
    made[:, :4] = h
    return net.out(made[:, :4])


@refused(PLACE)
def buffer_counts(net: Any, x: Tensor) -> Tensor:
    net.scale.add_(1)
    return net.out(net.body(x))


@refused(PLACE)
def buffer_data(net: Any, x: Tensor) -> Tensor:
    net.scale.data[0] += 1
    return net.out(net.body(x)) * net.scale


@refused("switches gradients off")
def buffer_of_a_statistic(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.scale.copy_(x.mean()[None])
    return net.out(net.body(x)) * net.scale


@refused(PLACE)
def weight_clamped(net: Any, x: Tensor) -> Tensor:
    net.fc.weight.data.clamp_(-0.01, 0.01)
    return net.out(net.body(x)) * net.fc.weight.sum()


@refused(f"{BRANCH}|{KEPT}")
def shared_with_numpy(net: Any, x: Tensor) -> Tensor:
    net.plain.numpy()[0] += 1
    return net.out(net.body(x) * net.plain)


@refused(f"{BRANCH}|{KEPT}")
def tensor_that_counts(net: Any, x: Tensor) -> Tensor:
    net.plain += 1
    return net.out(net.body(x) * net.plain)


@same
def constant_written(net: Any, x: Tensor) -> Tensor:
    made = torch.zeros(1, 4, 1, 1, dtype=x.dtype)
    made[:, 1] = 2
    return net.out(net.body(x) * made * torch.empty(1, 4, 1, 1, dtype=x.dtype).fill_(3.0))


@refused(VALUES)
def error_caught(net: Any, x: Tensor) -> Tensor:
    h = net.body(x)
    try:
        scale = h.mean().item()
    except Exception:
        scale = 5.0
    return net.out(h * scale)


# ---- kept from call to call


@refused(KEPT)
def history(net: Any, x: Tensor) -> Tensor:
    net.history.append(net.body(x))
    return net.out(net.history[-1])


@refused(KEPT)
def history_read(net: Any, x: Tensor) -> Tensor:
    net.history.append(net.body(x).detach())
    return net.out(net.body(x) + net.history[0])


@refused(KEPT)
def cache_read(net: Any, x: Tensor) -> Tensor:
    before, net.cache["h"] = net.cache.get("h"), net.body(x)
    return net.out(net.cache["h"] if before is None else net.cache["h"] + before)


@refused(KEPT)
def counts_in_a_list(net: Any, x: Tensor) -> Tensor:
    net.counter[0] += 1
    return net.out(net.body(x)) * net.counter[0]


@refused(KEPT)
def counts_deep(net: Any, x: Tensor) -> Tensor:
    net.nested["a"][0]["n"] += 1
    return net.out(net.body(x)) * (2 if net.nested["a"][0]["n"] > 50 else 1)


@refused(KEPT)
def counts_in_an_object(net: Any, x: Tensor) -> Tensor:
    net.holder.count += 1
    return net.out(net.body(x)) * (2 if net.holder.count > 50 else 1)


@refused(f"{KEPT}|{BRANCH}")
def counts_in_the_class(net: Any, x: Tensor) -> Tensor:
    type(net).calls += 1
    return net.out(net.body(x)) * net.calls


@refused(KEPT)
def counts_in_a_list_of_the_class(net: Any, x: Tensor) -> Tensor:
    net.shared[0] += 1
    return net.out(net.body(x)) * (2 if net.shared[0] > 50 else 1)


@refused(KEPT)
def counts_in_a_global_list(net: Any, x: Tensor) -> Tensor:
    GLOBAL[0] += 1
    return net.out(net.body(x)) * (2 if GLOBAL[0] > 50 else 1)


@refused(KEPT)
def counts_in_a_global(net: Any, x: Tensor) -> Tensor:
    global NUMBER
    NUMBER += 1
    return net.out(net.body(x)) * (2 if NUMBER > 50 else 1)


def _closure() -> Callable[[Any, Tensor], Tensor]:
    count = 0

    def forward(net: Any, x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return net.out(net.body(x)) * (2 if count > 50 else 1)

    return forward


REFUSED["counts in a closure"] = _closure(), KEPT


@refused(f"{KEPT}|{BRANCH}")
def clock(net: Any, x: Tensor) -> Tensor:
    return net.out(net.body(x)) * time.perf_counter()


@same
def stores(net: Any, x: Tensor) -> Tensor:
    net.cache["h"] = net.last = net.body(x)
    return net.out(net.last)


@same
def without_effect(net: Any, x: Tensor) -> Tensor:
    h = net.body(x)
    net.fc(h.mean((2, 3)))
    return net.out(h)


# ---- random numbers


@refused(f"{KEPT}|{RANDOM}")
def python_generator(net: Any, x: Tensor) -> Tensor:
    return net.out(net.body(x)) * net.random.random()


@refused(KEPT)
def python_generator_without_effect(net: Any, x: Tensor) -> Tensor:
    net.random.random()
    return net.out(net.body(x))


@refused(f"{KEPT}|{RANDOM}")
def numpy_generator(net: Any, x: Tensor) -> Tensor:
    return net.out(net.body(x) + torch.from_numpy(net.numpy.random((1, 4, 8, 8))))


@refused(RANDOM)
def numpy_global(net: Any, x: Tensor) -> Tensor:
    return net.out(net.body(x) + torch.from_numpy(np.random.rand(1, 4, 8, 8)))  # noqa: NPY002


@refused(RANDOM)
def own_generator(net: Any, x: Tensor) -> Tensor:
    return net.out(net.body(x) + torch.rand(1, 4, 8, 8, dtype=x.dtype, generator=net.generator))


@refused(RANDOM)
def global_generator(net: Any, x: Tensor) -> Tensor:
    return net.out(net.body(x) + torch.rand(1, 4, 8, 8, dtype=x.dtype, generator=GENERATOR))


@refused(RANDOM)
def generator_made_inside(net: Any, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return net.out(net.body(x) + torch.empty(1, 4, 8, 8, dtype=x.dtype).normal_(generator=generator))


@refused("draws random numbers after a seed")
def seeded(net: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return net.out(net.body(x) + torch.rand_like(x[:, :1]))


@refused("draws random numbers after a seed")
def seeded_aside(net: Any, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = torch.rand_like(x[:, :1])
    return net.out(net.body(x) + noise)


@same
def drawn_from_results(net: Any, x: Tensor) -> Tensor:
    h = F.dropout(net.body(x), 0.5, training=True) + F.gumbel_softmax(net.drop(net.body(x)), dim=1)
    return net.out(h * torch.bernoulli(torch.sigmoid(h).detach()) + torch.rand_like(x[:, :1]))


# ---- gradients


@refused("switches gradients off")
def no_grad_around_a_layer(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = net.conv(x)
    return net.out(h)


class Doubled(torch.autograd.Function):
    """Twice its argument, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 7


class Passed(Doubled):
    """Its argument, with another gradient: no operation that a trace could see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x) if isinstance(x, Tensor) else x


@refused(f"switches gradients off|{GRADIENT}")
def own_gradient(net: Any, x: Tensor) -> Tensor:
    return net.out(Doubled.apply(net.body(x)))


@refused(f"switches gradients off|{GRADIENT}")
def own_gradient_of_nothing(net: Any, x: Tensor) -> Tensor:
    return net.out(Passed.apply(net.body(x)))


@refused("hook on its gradient")
def gradient_hook(net: Any, x: Tensor) -> Tensor:
    h = net.body(x)
    h.register_hook(lambda grad: grad * 3)
    return net.out(h)


@same
def gradient_stopped(net: Any, x: Tensor) -> Tensor:
    h = net.body(x)
    return net.out(h * h.detach() + h.data + net.fc.weight.data.sum())


@same
def checkpointed(net: Any, x: Tensor) -> Tensor:
    # No batch norm inside: it would count every batch twice, which the rewritten network does not.
    return net.out(checkpoint(torch.tanh, net.body(x), use_reentrant=False))


# ---- parameters read past the modules; what has always been fine


@refused(BRANCH)
def parameters_by_name(net: Any, x: Tensor) -> Tensor:
    return net.out(F.conv2d(net.body(x), dict(net.named_parameters())["fc.weight"][:, :, None, None]))


@same
def buffers_and_constants(net: Any, x: Tensor) -> Tensor:
    h = F.conv2d(net.body(x), net.kernel.repeat(4, 1, 1, 1), padding=1, groups=4) * net.plain
    at = torch.arange(8, dtype=x.dtype, device=x.device).view(1, 1, 1, 8) / 8
    h = h.to(x.device) * torch.ones(1).to(x.device, x.dtype)
    return net.out(h * at + torch.as_tensor(np.arange(4.0)).view(1, 4, 1, 1) + x.new_tensor(2.0))


@same
def parts(net: Any, x: Tensor) -> Tensor:
    pieces = net.body(x).chunk(2, 1)
    h = torch.cat([piece * len(pieces) for piece in pieces], 1)
    return torch.stack([net.out(image[None])[0] for image in h])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("function", SAME.values(), ids=SAME)
def test_same(function: Callable[[Any, Tensor], Any], training: bool) -> None:
    hold_against_dense(own(function, training=training))


@pytest.mark.parametrize(("function", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(function: Callable[[Any, Tensor], Any], reason: str) -> None:
    net = own(function)
    fast, before, state = oes.sparsify(net), held(net), torch.get_rng_state()
    with pytest.raises(oes.TraceError, match=reason):
        fast(Z)
    assert str(held(fast._net)) == str(before)
    assert torch.equal(torch.get_rng_state(), state)


def test_running_statistics_of_a_function() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        mean, var = net.norm.running_mean, net.norm.running_var
        return net.out(F.batch_norm(net.conv(x), mean, var, training=net.training))

    hold_against_dense(net := own(forward))
    fast = oes.sparsify(net)
    buffers = {name: buffer.clone() for name, buffer in fast.dense_buffers()}
    fast.evaluate(fast.weights, Z, buffers, update_stats=False)
    torch.testing.assert_close(buffers, dict(fast.dense_buffers()), rtol=0, atol=0)
    fast.evaluate(fast.weights, Z, buffers, update_stats=True)
    assert not torch.equal(buffers["norm.running_mean"], fast.get_buffer("norm__running_mean"))


def test_autocast_inside() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.conv(x).float()

    with pytest.raises(oes.TraceError, match=BRANCH):
        oes.sparsify(own(forward).float())(Z.float())


def test_first_call_inside_a_transform() -> None:
    fast = oes.sparsify(own(buffers_and_constants))
    buffers = dict(fast.dense_buffers())

    def loss(weights: Tensor) -> Tensor:
        return fast.evaluate(weights, Z, buffers, update_stats=False).square().sum()

    got = torch.func.grad(loss)(fast.weights.detach())
    (wanted,) = torch.autograd.grad(loss(fast.weights), fast.weights)
    torch.testing.assert_close(got, wanted)
