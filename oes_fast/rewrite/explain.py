"""The table that tells what a plan computes."""

from __future__ import annotations

import torch

from oes_fast.backends import automatic_order
from oes_fast.flat import FlatLayout
from oes_fast.rewrite import ir
from oes_fast.rewrite.plan import Plan
from oes_fast.rewrite.run.sparse_ops import MOST_KEPT

_HEADER = ("stage", "operation", "in", "out", "density", "MACs before", "after", "nonzero", "kernel")


def table(dense: ir.Graph, plan: Plan, layout: FlatLayout, dtype: torch.dtype) -> str:
    """One line for each stage of ``plan``.

    Args:
        dense: graph of the network before any rule.
        plan: what is computed.
        layout: of the dense parameters.
        dtype: of the weights.
    """
    before: dict[str, int] = {}
    for node in dense.nodes:
        if isinstance(node.stage, ir.Conv):
            before[node.stage.weight] = before.get(node.stage.weight, 0) + _macs(node, *node.stage.channels)
    chains = plan.explain_chains(dtype)
    rows = [_row(node, plan, layout, before, chains) for node in plan.graph.nodes]
    totals = [sum(int(row[column]) for row in rows if row[column]) for column in (5, 6, 7)]
    lines = [_HEADER, *rows, ("total", "", "", "", "", *map(str, totals), "")]
    text = [
        tuple(
            _engineering(cell) if i in (5, 6, 7) and cell.isdigit() else cell for i, cell in enumerate(line)
        )
        for line in lines
    ]
    widths = [max(len(line[i]) for line in text) for i in range(len(_HEADER))]
    printed = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in text]
    if plan.chains:
        inside = sum(isinstance(node.stage, ir.Conv | ir.UpConv) for node in plan.chained)
        printed.append(f"chains: {len(plan.chains)}, of {inside} convolutions")
    if plan.kernels == "cuda":
        printed.append(f'backend "auto" on a GPU: {automatic_order()["cuda"]}')
    return "\n".join(printed)


def _row(
    node: ir.Node, plan: Plan, layout: FlatLayout, before: dict[str, int], chains: dict[ir.Node, str]
) -> tuple[str, ...]:
    stage = node.stage
    alive = plan.alive[node]
    conv = stage.conv if isinstance(stage, ir.UpConv) else stage
    dense_in = node.inputs[0].shape[1] if node.inputs and len(node.inputs[0].shape) == 4 else 0
    live_in = len(plan.alive[node.inputs[0]].varying) if node.inputs else 0
    dense_out = node.shape[1] if len(node.shape) == 4 else 0
    cells = [node.name, _operation(stage), f"{live_in}/{dense_in}", f"{len(alive.varying)}/{dense_out}"]
    if not isinstance(conv, ir.Conv):
        return (*cells, "", "", "", "", _kernel(node, plan, chains))
    after, density = products(node, conv, plan)
    # A split convolution's dense count stands in the row of its first part.
    dense = str(before.pop(conv.weight)) if conv.weight in before else ""
    return (
        *cells,
        f"{100 * density:.1f} %",
        dense,
        str(after),
        str(round(after * density)),
        _kernel(node, plan, chains),
    )


def products(node: ir.Node, conv: ir.Conv, plan: Plan) -> tuple[int, float]:
    """Multiply-accumulates of a forward pass over live channels, dense; the share whose weight is kept.

    Args:
        node: a node of the plan's graph.
        conv: its convolution, that of low resolution where it follows up-sampling.
        plan: what is computed.
    """
    inputs, outputs = plan.alive[node.inputs[0]].varying, plan.alive[node].varying
    kept = plan.weights.nonzeros(conv.weight, outputs, inputs + conv.first, transposed=conv.transposed)
    block = len(outputs) * len(inputs) * conv.kernel[0] * conv.kernel[1]
    return _macs(node, len(inputs), len(outputs)), kept / block if block else 0.0


def _macs(node: ir.Node, inputs: int, outputs: int) -> int:
    """Multiply-accumulates of a convolution of so many channels, dense."""
    stage = node.stage
    n, _, h, w = node.shape
    if isinstance(stage, ir.UpConv):
        rows, columns = (k + stage.factor - 1 for k in stage.conv.kernel)
        h, w = node.inputs[0].shape[2:]
        return n * h * w * inputs * outputs * rows * columns
    assert isinstance(stage, ir.Conv)
    return n * h * w * inputs * outputs * stage.kernel[0] * stage.kernel[1]


def _operation(stage: ir.Stage) -> str:
    if isinstance(stage, ir.Conv):
        stride = f" stride {stage.stride[0]}" if stage.stride != (1, 1) else ""
        of = f" of transposed, stride {stage.transposed}" if stage.transposed else ""
        return f"conv {stage.kernel[0]}x{stage.kernel[1]}{stride}{of}"
    if isinstance(stage, ir.UpConv):
        return f"conv {stage.conv.kernel[0]}x{stage.conv.kernel[1]} of up-sampled x{stage.factor}"
    if isinstance(stage, ir.Norm):
        act = "" if stage.act is None else f" + {stage.act.kind}"
        return f"batch norm{act}" + (" before up-sampling" if stage.copies > 1 else "")
    if isinstance(stage, ir.GroupNorm):
        act = "" if stage.act is None else f" + {stage.act.kind}"
        return f"group norm, {stage.groups} groups{act}"
    if isinstance(stage, ir.PixelShuffle):
        return f"pixel shuffle x{stage.factor}"
    if isinstance(stage, ir.Act):
        return stage.kind
    if isinstance(stage, ir.Pad):
        return f"pad {stage.mode}"
    if isinstance(stage, ir.Box):
        return f"box sum {stage.size}x{stage.size}"
    if isinstance(stage, ir.Pool):
        return f"{stage.kind} pool"
    if isinstance(stage, ir.Upsample):
        return f"up-sample {stage.mode}"
    if isinstance(stage, ir.Opaque):
        return f"{getattr(stage.target, '__name__', stage.target)}, as it was"
    return type(stage).__name__.lower()


def _kernel(node: ir.Node, plan: Plan, chains: dict[ir.Node, str]) -> str:
    """What runs the stage, and why."""
    if node in plan.input_only:
        return "once: depends on the fixed input alone"
    if not len(plan.alive[node].varying) and len(node.shape) == 4:
        return "none: no channel is alive"
    if node in chains:
        return chains[node]
    if node in plan.kernel_names:
        return plan.kernel_names[node]
    stage = node.stage
    if isinstance(stage, ir.UpConv):
        return "torch conv_transpose2d: dense over live channels"
    if node in plan.sparse:
        return f"C++ sparse_conv2d: density up to {100 * MOST_KEPT:.0f} %"
    if isinstance(stage, ir.Conv):
        return f"torch conv{'_transpose' if stage.transposed else ''}2d: dense over live channels"
    return "torch"


def _engineering(count: str) -> str:
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {unit}".rstrip()
        value /= 1000
    return f"{value:.3g} T"
