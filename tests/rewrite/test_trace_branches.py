"""Code that branches on what a tensor is: the trace answers as the tensor would, or refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from unseen import Z, hold_against_dense, own

import oes_fast as oes

BRANCH, GRADIENT, VALUES = "takes a way that the trace did not see", "gradients are off", "asks for values"


def doubled(condition: Callable[[Any, Tensor], object]) -> Callable[[Any, Tensor], Tensor]:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.body(x)
        return net.out(h * 2 if condition(net, h) else h)

    return forward


BRANCHES = {
    "isinstance": lambda net, h: isinstance(h, torch.Tensor),
    "isinstance of a tuple": lambda net, h: isinstance(h, list | tuple),
    "is_tensor": lambda net, h: torch.is_tensor(h),
    "isinstance of a parameter": lambda net, h: isinstance(net.conv.weight, torch.nn.Parameter),
    "requires_grad of z": lambda net, h: net.fc.weight.requires_grad and h.is_floating_point(),
    "training": lambda net, h: net.training,
    "autocast": lambda net, h: torch.is_autocast_enabled(),
    "contiguous": lambda net, h: h.permute(0, 1, 3, 2).is_contiguous(),
    "stride": lambda net, h: h.permute(0, 1, 3, 2).stride()[3] == 1,
    "hasattr": lambda net, h: hasattr(h, "shape"),
    "hasattr of nothing": lambda net, h: hasattr(h, "foo"),
    "compiling": lambda net, h: not torch.compiler.is_compiling(),
    "jit": lambda net, h: not (torch.jit.is_tracing() or torch.jit.is_scripting()),
    "complex": lambda net, h: h.is_complex() or h.is_sparse or h.is_quantized or h.is_cuda,
    "size": lambda net, h: len(h) == 1 and h.nelement() == 256 and h.ndimension() == 4,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("condition", BRANCHES.values(), ids=BRANCHES)
def test_branches_as_the_tensor_would(condition: Callable[[Any, Tensor], object], training: bool) -> None:
    hold_against_dense(own(doubled(condition), training=training))


REFUSED_BRANCHES = {
    "type": (lambda net, h: type(h) is torch.Tensor, BRANCH),
    "fx": (lambda net, h: torch.fx._symbolic_trace.is_fx_tracing(), BRANCH),
    "requires_grad": (lambda net, h: h.requires_grad, GRADIENT),
    "is_leaf": (lambda net, h: h.is_leaf, GRADIENT),
    "grad_fn": (lambda net, h: h.grad_fn is not None, GRADIENT),
    "grad mode": (lambda net, h: torch.is_grad_enabled(), GRADIENT),
    "inference mode": (lambda net, h: torch.is_inference_mode_enabled(), "inference mode"),
    "grad": (lambda net, h: h.grad is None, BRANCH),
    "data_ptr": (lambda net, h: h.data_ptr() % 8 == 0, VALUES),
    "bool": (lambda net, h: h.mean() > 0, VALUES),
    "float": (lambda net, h: float(h.mean()) > 0, VALUES),
    "item": (lambda net, h: h.mean().item() > 0, VALUES),
    "tolist": (lambda net, h: h.mean((2, 3)).tolist()[0][0] > 0, VALUES),
    "value of a buffer": (lambda net, h: net.scale > 0, VALUES),
    "assertion": (lambda net, h: bool(torch.isfinite(h).all()), VALUES),
    "equal": (lambda net, h: torch.equal(h, h), "cannot be traced"),
    "allclose": (lambda net, h: torch.allclose(h, h), "cannot be traced"),
}


@pytest.mark.parametrize(("condition", "reason"), REFUSED_BRANCHES.values(), ids=REFUSED_BRANCHES)
def test_branches_refused(condition: Callable[[Any, Tensor], object], reason: str) -> None:
    with pytest.raises(oes.TraceError, match=reason):
        oes.sparsify(own(doubled(condition)))(Z)


def test_branch_on_gradients_of_the_input() -> None:
    fast = oes.sparsify(net := own(lambda net, x: net.out(net.body(x * 2 if x.requires_grad else x))))
    for z in (Z, Z.clone().requires_grad_(), Z):
        torch.testing.assert_close(fast(z), net(z))


def test_message_names_operation_and_place() -> None:
    with pytest.raises(oes.TraceError, match=r"Own takes .*aten\.mul\.Tensor at test_trace_branches\.py:\d+"):
        oes.sparsify(own(doubled(REFUSED_BRANCHES["type"][0])))(Z)
