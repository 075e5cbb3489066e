"""Blocks of weights cut from one vector: values, gradients, and nothing made for blocks that nobody reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from oes_fast.flat import FlatLayout, flatten
from oes_fast.rewrite.run.norm_ops import count_batches
from oes_fast.rewrite.weights import CompactWeights


class Seen(TorchDispatchMode):
    """Names of the operators inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(function._schema.name.split("::")[1])
        return function(*arguments, **(options or {}))


def make(kept, requests):
    """(weights, blocks asked for, the same blocks cut from the parameters, layout)."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).double()
    layout = FlatLayout.of(net)
    generator = torch.Generator().manual_seed(0)
    mask = None if kept is None else torch.rand(layout.numel, generator=generator) < kept
    weights = CompactWeights(layout, mask)
    places = [weights.request(name, *channels) for name, channels in requests]
    assert places == list(range(len(requests)))
    weights.finish(torch.device("cpu"))
    return weights, layout, mask, flatten(net).detach()


ALL3, ALL4 = torch.arange(3), torch.arange(4)
CASES = {
    "whole": [("0.weight", (ALL4, ALL3)), ("1.weight", (ALL4,)), ("2.weight", ())],
    "parts": [("0.weight", (torch.tensor([1, 3]), torch.tensor([1, 2]))), ("1.bias", (torch.tensor([2]),))],
    "several readers": [("1.weight", (ALL4,)), ("1.weight", (torch.tensor([1, 2]),)), ("0.weight", ())],
    "none": [],
}


@pytest.mark.parametrize("kept", [None, 0.5, 0.0, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, kept):
    weights, layout, mask, flat = make(kept, CASES[case])
    dense = (flat if mask is None else flat * mask).requires_grad_()
    wanted = []
    for name, channels in CASES[case]:
        block = layout.views(dense)[name]
        for dim, index in enumerate(channels):
            block = block.index_select(dim, index)
        wanted.append(block)
    compact = (flat if mask is None else flat[mask]).clone().requires_grad_()
    blocks = weights.blocks(compact)
    torch.testing.assert_close(blocks, wanted)
    if not blocks:
        return
    # Not the last, which then has no gradient of its own.
    loss, like = (
        sum((b.sin() * b).sum() for b in some[: max(1, len(some) - 1)]) for some in (blocks, wanted)
    )
    (ours,) = torch.autograd.grad(loss, compact, create_graph=True)
    (theirs,) = torch.autograd.grad(like, dense)
    torch.testing.assert_close(ours, theirs if mask is None else theirs[mask])
    if compact.numel():
        torch.autograd.grad(ours.square().sum(), compact)  # a second derivative is there


def test_what_nobody_reads_costs_nothing():
    for kept in (None, 0.5):
        weights, _, mask, flat = make(kept, CASES["whole"])
        compact = (flat if mask is None else flat[mask]).requires_grad_()
        for _ in range(2):  # zeros are made in the first step
            with Seen() as seen:
                torch.autograd.grad(weights.blocks(compact)[0].sum(), compact)
        made = {"zeros", "zeros_like", "slice_backward", "select_backward", "index_add_", "fill_"}
        assert not made & set(seen.names), seen.names
        assert seen.names.count("cat") == 1


def test_batches_are_counted_by_name():
    buffers = {name: torch.tensor(start) for name, start in (("a", 3), ("b", 0), ("c", 7))}
    counted = ["a", "b", "a", "a"]
    with Seen() as seen:
        count_batches(counted, buffers)
    assert {name: int(count) for name, count in buffers.items()} == {"a": 6, "b": 1, "c": 7}
    assert seen.names.count("_foreach_add_") == 3
    assert not counted
