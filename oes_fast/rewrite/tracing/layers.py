"""Which stages the modules and the functions of PyTorch become: their arguments, put in order."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from oes_fast.rewrite import ir
from oes_fast.rewrite.tracing.stages import AsItIsError, Stages, pair

Node = torch.fx.Node
# (stages, call, module) -> node
Layer = Callable[[Stages, Node, Any], ir.Node]
# (stages, call, *args, **kwargs of the call) -> node
Function = Callable[..., ir.Node]


# ---- modules


def _conv(s: Stages, node: Node, m: nn.Conv2d) -> ir.Node:
    x = s.image(node.args[0])
    return s.conv(node, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups, m.padding_mode)


def _conv_transpose(s: Stages, node: Node, m: nn.ConvTranspose2d) -> ir.Node:
    x = s.image(node.args[0])
    return s.conv_transpose(node, x, m.weight, m.bias, m.stride, m.padding, m.groups, m.dilation)


def _batch_norm(s: Stages, node: Node, m: nn.BatchNorm2d) -> ir.Node:
    statistics = m.running_mean, m.running_var, m.num_batches_tracked
    x = s.image(node.args[0])
    return s.batch_norm(node, x, m.weight, m.bias, *statistics, m.eps, m.momentum, training=m.training)


def _instance_norm(s: Stages, node: Node, m: nn.InstanceNorm2d) -> ir.Node:
    x = s.image(node.args[0])
    if m.track_running_stats or x.shape[1] != m.num_features:
        raise AsItIsError
    return s.instance_norm(node, x, m.weight, m.bias, m.eps)


def _group_norm(s: Stages, node: Node, m: nn.GroupNorm) -> ir.Node:
    return s.group_norm(node, s.image(node.args[0]), m.num_groups, m.weight, m.bias, m.eps)


def _pad(s: Stages, node: Node, m: Any) -> ir.Node:
    return s.pad(node, s.image(node.args[0]), _PADS[type(m)], tuple(m.padding))


def _act(s: Stages, node: Node, m: nn.Module) -> ir.Node:
    kind, attribute = _ACTS[type(m)]
    return s.act(node, s.image(node.args[0]), kind, getattr(m, attribute) if attribute else 0.0)


def _gelu(s: Stages, node: Node, m: nn.GELU) -> ir.Node:
    return s.act(node, s.image(node.args[0]), _GELUS[m.approximate])


def _prelu(s: Stages, node: Node, m: nn.PReLU) -> ir.Node:
    return s.prelu(node, s.image(node.args[0]), m.weight)


def _avg_pool(s: Stages, node: Node, m: nn.AvgPool2d) -> ir.Node:
    return _pooled_avg(
        s,
        node,
        node.args[0],
        m.kernel_size,
        m.stride,
        m.padding,
        m.ceil_mode,
        m.count_include_pad,
        m.divisor_override,
    )


def _max_pool(s: Stages, node: Node, m: nn.MaxPool2d) -> ir.Node:
    return _pooled_max(
        s, node, node.args[0], m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    )


def _upsample(s: Stages, node: Node, m: nn.Upsample) -> ir.Node:
    x = s.image(node.args[0])
    return s.upsample(node, x, m.mode, m.scale_factor, m.align_corners, m.recompute_scale_factor)


def _pixel_shuffle(s: Stages, node: Node, m: nn.PixelShuffle) -> ir.Node:
    return s.pixel_shuffle(node, s.image(node.args[0]), m.upscale_factor)


def _identity(s: Stages, node: Node, m: nn.Module) -> ir.Node:
    return s.image(node.args[0])


def _dropout(s: Stages, node: Node, m: Any) -> ir.Node:
    return _dropped(s, node, node.args[0], m.p, m.training)


_PADS: dict[type, str] = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zeros",
    nn.CircularPad2d: "circular",
}
_ACTS: dict[type, tuple[str, str]] = {
    nn.LeakyReLU: ("leaky_relu", "negative_slope"),
    nn.ReLU: ("relu", ""),
    nn.ELU: ("elu", "alpha"),
    nn.SiLU: ("silu", ""),
    nn.Sigmoid: ("sigmoid", ""),
    nn.Tanh: ("tanh", ""),
}
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}
LAYERS: dict[type, Layer] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv_transpose,
    nn.BatchNorm2d: _batch_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.GroupNorm: _group_norm,
    nn.GELU: _gelu,
    nn.PReLU: _prelu,
    nn.AvgPool2d: _avg_pool,
    nn.MaxPool2d: _max_pool,
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    nn.UpsamplingBilinear2d: _upsample,
    nn.PixelShuffle: _pixel_shuffle,
    nn.Identity: _identity,
    **dict.fromkeys((nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), _dropout),
    **dict.fromkeys(_PADS, _pad),
    **dict.fromkeys(_ACTS, _act),
}


# ---- functions and methods: the names of the arguments are PyTorch's


def _conv_of(
    s: Stages,
    node: Node,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> ir.Node:
    return s.conv(node, s.image(input), weight, bias, stride, padding, dilation, groups)


def _conv_transpose_of(
    s: Stages,
    node: Node,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> ir.Node:
    return s.conv_transpose(node, s.image(input), weight, bias, stride, padding, groups, dilation)


def _batch_norm_of(
    s: Stages,
    node: Node,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> ir.Node:
    if not isinstance(training, bool) or not isinstance(momentum, float):
        raise AsItIsError
    statistics = running_mean, running_var, None
    return s.batch_norm(node, s.image(input), weight, bias, *statistics, eps, momentum, training=training)


def _instance_norm_of(
    s: Stages,
    node: Node,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> ir.Node:
    if running_mean is not None or running_var is not None or use_input_stats is not True:
        raise AsItIsError
    return s.instance_norm(node, s.image(input), weight, bias, eps)


def _group_norm_of(
    s: Stages,
    node: Node,
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> ir.Node:
    return s.group_norm(node, s.image(input), num_groups, weight, bias, eps)


def _pointwise(kind: str) -> Function:
    def convert(s: Stages, node: Node, input: Any, inplace: bool = False) -> ir.Node:
        return s.act(node, s.image(input), kind)

    return convert


def _leaky(s: Stages, node: Node, input: Any, negative_slope: float = 0.01, inplace: bool = False) -> ir.Node:
    return s.act(node, s.image(input), "leaky_relu", negative_slope)


def _elu(s: Stages, node: Node, input: Any, alpha: float = 1.0, inplace: bool = False) -> ir.Node:
    return s.act(node, s.image(input), "elu", alpha)


def _gelu_of(s: Stages, node: Node, input: Any, approximate: str = "none") -> ir.Node:
    return s.act(node, s.image(input), _GELUS[approximate])


def _prelu_of(s: Stages, node: Node, input: Any, weight: Any) -> ir.Node:
    return s.prelu(node, s.image(input), weight)


def _interpolate(
    s: Stages,
    node: Node,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> ir.Node:
    if antialias:
        raise AsItIsError
    return s.upsample(node, s.image(input), mode, scale_factor, align_corners, recompute_scale_factor)


def _pad_of(
    s: Stages, node: Node, input: Any, pad: Any, mode: str = "constant", value: Any = None
) -> ir.Node:
    if (mode == "constant" and value not in (None, 0)) or len(pad) not in (2, 4):
        raise AsItIsError
    return s.pad(node, s.image(input), mode, tuple(pad))


def _pooled_avg(
    s: Stages,
    node: Node,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> ir.Node:
    if pair(padding) != (0, 0) or divisor_override is not None:
        raise AsItIsError
    return s.pool(node, s.image(input), "avg", kernel_size, stride, ceil_mode)


def _pooled_max(
    s: Stages,
    node: Node,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> ir.Node:
    if pair(padding) != (0, 0) or pair(dilation) != (1, 1) or return_indices:
        raise AsItIsError
    return s.pool(node, s.image(input), "max", kernel_size, stride, ceil_mode)


def _shuffled(s: Stages, node: Node, input: Any, upscale_factor: int) -> ir.Node:
    return s.pixel_shuffle(node, s.image(input), upscale_factor)


def _dropped(
    s: Stages, node: Node, input: Any, p: float = 0.5, training: Any = True, inplace: bool = False
) -> ir.Node:
    if training is not False and p != 0:
        raise AsItIsError
    return s.image(input)


def _cat(s: Stages, node: Node, tensors: Any, dim: Any = 0, axis: Any = None) -> ir.Node:
    return s.cat(node, tensors, dim if axis is None else axis)


def _sum(s: Stages, node: Node, input: Any, other: Any, alpha: Any = 1) -> ir.Node:
    if alpha != 1:
        raise AsItIsError
    return s.sum(node, input, other)


def _getitem(s: Stages, node: Node, source: Any, index: Any) -> ir.Node:
    if isinstance(source, Node) and isinstance(index, int):
        return _piece(s, node, source, index)
    return s.part(node, s.image(source), index)


def _piece(s: Stages, node: Node, pieces: Node, index: int) -> ir.Node:
    """One of the pieces that chunk or split makes of the channels."""
    name = pieces.target if pieces.op == "call_method" else getattr(pieces.target, "__name__", "")
    shapes = [tuple(piece.shape) for piece in pieces.meta["value"]]
    options = dict(zip(("input", "number", "dim"), pieces.args, strict=False)) | pieces.kwargs
    if name not in ("chunk", "split") or options.get("dim", 0) not in (1, -3):
        raise AsItIsError
    index = range(len(shapes))[index]
    first = sum(shape[1] for shape in shapes[:index])
    return s.channels(node, s.image(options["input"]), first, shapes[index][1])


def _same(s: Stages, node: Node, input: Any) -> ir.Node:
    return s.image(input)


FUNCTIONS: dict[Any, Function] = {
    F.conv2d: _conv_of,
    F.conv_transpose2d: _conv_transpose_of,
    F.batch_norm: _batch_norm_of,
    F.instance_norm: _instance_norm_of,
    F.group_norm: _group_norm_of,
    **dict.fromkeys((F.relu, torch.relu), _pointwise("relu")),
    **dict.fromkeys((F.sigmoid, torch.sigmoid), _pointwise("sigmoid")),
    **dict.fromkeys((F.tanh, torch.tanh), _pointwise("tanh")),
    F.silu: _pointwise("silu"),
    F.leaky_relu: _leaky,
    F.elu: _elu,
    F.gelu: _gelu_of,
    F.prelu: _prelu_of,
    F.interpolate: _interpolate,
    F.pad: _pad_of,
    F.avg_pool2d: _pooled_avg,
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _pooled_max),
    F.pixel_shuffle: _shuffled,
    **dict.fromkeys((F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout), _dropped),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat),
    **dict.fromkeys((operator.add, torch.add), _sum),
    operator.getitem: _getitem,
}
METHODS: dict[str, Function] = {
    "relu": _pointwise("relu"),
    "sigmoid": _pointwise("sigmoid"),
    "tanh": _pointwise("tanh"),
    "add": _sum,
    "contiguous": _same,
    "clone": _same,
}
