"""What the C++ chain is given is checked at its entries: dtype, length, memory, order of calls, names."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_backends import require

pytestmark = pytest.mark.cpu_kernel


def bound():
    """A chain and what it takes: one 1 x 1 convolution of two channels with a norm."""
    from oes_fast import _C

    spec, norm = _C.ConvSpec(), _C.NormSpec()
    spec.outputs, spec.taps, spec.weights, spec.bias = 1, [0, 0, 0, 0, 0, 1, 0, 0], [0, 1], [-1]
    norm.gamma, norm.beta, norm.tracks, norm.stats_index = [2], [-1], True, [1]
    chain = _C.ChainFloat(2, 4, 4, False, 3)
    chain.add_conv(spec)
    chain.add_norm(norm)
    chain.finish(_C.OutputAct.LEAKY_RELU, 1.0)
    sizes = {"weights": 3, "source": 32, "out": 16, "mean": 2, "var": 2}
    return chain, {name: np.ones(size, np.float32) for name, size in sizes.items()}


def forward(chain, a):
    return chain.forward(a["weights"], [a["source"]], a["out"], [a["mean"], a["var"]], a.get("target"))


WRONG = {
    "dtype": lambda a: a.astype(np.float64),
    "length": lambda a: a[:-1],
    "strides": lambda a: np.ones(2 * len(a), np.float32)[::2],
}


@pytest.mark.parametrize("name", ["weights", "source", "out", "mean", "var"])
@pytest.mark.parametrize("wrong", WRONG)
def test_the_extension_refuses_what_it_would_read_past(name, wrong):
    require("cpu")
    chain, arrays = bound()
    forward(chain, arrays)
    with pytest.raises(
        (TypeError, ValueError), match=f"{'running' if name in ('mean', 'var') else name}: expected"
    ):
        forward(chain, arrays | {name: WRONG[wrong](arrays[name])})


def test_the_extension_refuses_calls_out_of_turn():
    require("cpu")
    from oes_fast import _C

    chain, a = bound()
    forward(chain, a)
    grads = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="grad: expected one, since the last forward had no target"):
        chain.backward(a["weights"], [a["source"]], None, grads, [None])
    with pytest.raises(ValueError, match="grad_weights: expected 3 elements"):
        chain.backward(a["weights"], [a["source"]], a["out"], grads[:2], [None])
    with pytest.raises(ValueError, match="grad_source: expected 32 elements"):
        chain.backward(a["weights"], [a["source"]], a["out"], grads, [np.zeros(31, np.float32)])
    with pytest.raises(ValueError, match="target: expected none"):
        forward(chain, a | {"target": a["out"]})
    with pytest.raises(ValueError, match="running: expected none, or 2 arrays"):
        chain.forward(a["weights"], [a["source"]], a["out"], [a["mean"]], None)
    with pytest.raises(ValueError, match="mean and variance of a norm together"):
        chain.forward(a["weights"], [a["source"]], a["out"], [a["mean"], None], None)
    read_only = a["out"].copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected memory that may be written to"):
        forward(chain, a | {"out": read_only})
    with pytest.raises(ValueError, match="chain: expected to be finished"):
        forward(_C.ChainFloat(2, 4, 4, False, 3), a)
    with pytest.raises(ValueError, match="convolution: expected a chain that is not finished"):
        chain.add_conv(_C.ConvSpec())


SPECS = {
    "weights: expected indices": {"weights": [0, 9]},
    "bias: expected an index for each": {"bias": []},
    "bias: expected indices": {"bias": [3]},
    "border: expected four": {"border": [1, 1]},
    "taps: expected ascending": {"taps": [0, 0, 0, 0, 0, 5, 0, 0]},
    "taps: expected four": {"taps": [0, 0, 0]},
    "constant_taps: expected three": {"constant_taps": [0, 0]},
    "constant_taps: expected an output": {"constant_taps": [0, 0, 0]},
    "stride of 1 or 2": {"stride": 3},
    "first_weight: expected all": {"first_weight": 1},
}


@pytest.mark.parametrize("message", SPECS)
def test_wrong_specs_are_refused(message):
    require("cpu")
    from oes_fast import _C

    spec = _C.ConvSpec()
    spec.outputs, spec.taps, spec.weights, spec.bias = 1, [0, 0, 0, 0, 0, 1, 0, 0], [0, 1], [-1]
    for name, value in SPECS[message].items():
        setattr(spec, name, value)
    with pytest.raises(ValueError, match=message):
        _C.ChainFloat(2, 4, 4, False, 3).add_conv(spec)


def test_names_that_mean_nothing_are_refused():
    require("cpu")
    from oes_fast import _C

    spec = _C.ConvSpec()
    for name, value in (("kind", "direct"), ("padding", "reflect"), ("kind", 7)):
        with pytest.raises(TypeError):
            setattr(spec, name, value)
    with pytest.raises(TypeError):
        _C.NormSpec().act = "relu"
    with pytest.raises(TypeError):
        _C.ChainFloat(2, 4, 4, False, 3).finish("tanh", 0.0)
    spec.outputs, spec.bias, spec.border, spec.padding = 1, [-1], [4, 0, 0, 0], _C.Padding.REFLECT
    with pytest.raises(ValueError, match="border: expected less than the image"):
        _C.ChainFloat(2, 4, 4, False, 3).add_conv(spec)
    head = _C.ConvSpec()
    head.kind, head.outputs, head.bias = _C.ConvKind.HEAD, 5, [-1] * 5
    chain, _ = bound()
    with pytest.raises(ValueError, match="not finished"):
        chain.add_conv(head)
    with pytest.raises(ValueError, match="head: expected 1 x 1"):
        _C.ChainFloat(2, 4, 4, False, 3).add_conv(head)


def joined():
    """A chain of one 1 x 1 convolution of two channels, to join, and the spec of their sum."""
    from oes_fast import _C

    chain = _C.ChainFloat(2, 4, 6, False, 3)
    chain.add_source(1, 8, 12, False)
    conv = _C.ConvSpec()
    conv.outputs, conv.taps, conv.weights, conv.bias = 2, [0, 0, 0, 0, 1, 1, 0, 0], [0, 1], [-1, -1, 2]
    assert chain.add_conv(conv, 0) == 2
    chain.add_act(_C.Act.LEAKY_RELU, 0.5)
    spec = _C.JoinSpec()
    spec.inputs, spec.outputs, spec.rows, spec.columns = [2, 0], 2, 4, 6
    spec.terms, spec.bias = [0, 0, 0, 0, 1, 0, 1, 0, 1], [-1, -1]
    return chain, spec


JOINS = {
    "source: expected the number of a result": {"inputs": [2, 7]},
    "join: expected a result of the image's size": {"inputs": [2, 1]},
    "join: expected a result of rows and columns": {"rows": 0},
    "terms: expected three numbers": {"terms": [0, 0]},
    "terms: expected ascending outputs": {"terms": [0, 0, 2]},
    "terms: expected ascending outputs, inputs": {"terms": [0, 2, 0]},
    "terms: expected ascending": {"terms": [1, 0, 0, 0, 0, 0]},
    "bias: expected an index for each output": {"bias": [-1]},
    "bias: expected indices inside": {"bias": [-1, 3]},
    "constant_terms: expected four": {"constant_terms": [0, 0, 0]},
    "constant_terms: expected an output": {"constant_terms": [0, 0, 1, -1]},
    "constant_terms: expected an output, an input": {"constant_terms": [2, 0, 0, -1]},
    "constant_terms: expected an output, an input, a constant and a weight": {"constant_terms": [0, 0, 0, 3]},
    "join: expected an input of what is not constant": {"inputs": []},
    "join: expected outputs": {"outputs": -1},
}
ONE = {"inputs": [2], "outputs": 1, "terms": [0, 0, 0], "bias": [-1]}
MAPS = {
    "join: expected one input": ("CROP", {"inputs": [2, 0]}),
    "terms: expected one for each output": ("CROP", {"outputs": 2, "bias": [-1, -1]}),
    "terms: expected each channel": (
        "CROP",
        {"outputs": 2, "bias": [-1, -1], "terms": [0, 0, 0, 1, 0, 0]},
    ),
    "crop: expected a rectangle": ("CROP", {"top": 1}),
    "crop: expected a rectangle inside": ("CROP", {"left": -1}),
    "resampling: expected two rows": ("RESAMPLE", {"row_index": [0, 1], "row_weights": [1.0, 0.0]}),
    "resampling: expected two rows or columns": (
        "RESAMPLE",
        {"row_index": [0, 4] * 4, "row_weights": [1.0, 0.0] * 4},
    ),
    "resampling: expected rows or columns that are": (
        "RESAMPLE",
        {"row_index": [0, 2] * 4, "row_weights": [1.0, 0.0] * 4},
    ),
    "pooling: expected windows": ("MAX_POOL", {"window_rows": 5}),
    "pooling: expected windows of 256": ("MAX_POOL", {"stride_rows": 2}),
    "pooling: expected windows of 256 pixels": ("AVERAGE_POOL", {"stride_columns": 0}),
    "pixel shuffle: expected": ("PIXEL_SHUFFLE", {"factor": 2}),
    "slopes: expected": ("PRELU", {"slopes": []}),
    "slopes: expected an index": ("PRELU", {"slopes": [3]}),
}


@pytest.mark.parametrize("message", JOINS)
def test_wrong_joins_are_refused(message):
    require("cpu")
    chain, spec = joined()
    for name, value in JOINS[message].items():
        setattr(spec, name, value)
    with pytest.raises(ValueError, match=message):
        chain.add_join(spec)


@pytest.mark.parametrize("message", MAPS)
def test_wrong_maps_are_refused(message):
    require("cpu")
    chain, spec = joined()
    kind, options = MAPS[message]
    spec.kind = getattr(type(spec.kind), kind)
    for name, value in {**ONE, **options}.items():
        setattr(spec, name, value)
    with pytest.raises(ValueError, match=message):
        chain.add_join(spec)


def test_graphs_out_of_turn_are_refused():
    require("cpu")
    from oes_fast import _C

    chain, spec = joined()
    with pytest.raises(ValueError, match="source: expected it before convolutions"):
        chain.add_source(1, 1, 1, False)
    with pytest.raises(ValueError, match="activation: expected it right behind"):
        chain.add_act(_C.Act.SILU, 0.0)
    chain.add_planes()
    with pytest.raises(ValueError, match="planes: expected"):
        chain.add_planes()
    norm = _C.NormSpec()
    norm.gamma = norm.beta = [-1, -1]
    with pytest.raises(ValueError, match="norm: expected it before the planes"):
        chain.add_norm(norm)
    assert chain.add_join(spec) == 3
    with pytest.raises(ValueError, match="norm: expected groups of as many channels"):
        chain.add_norm(norm, 3)
    spec.inputs = [3, 3]
    with pytest.raises(ValueError, match="source: expected a norm or an activation behind it"):
        chain.add_join(spec)
    with pytest.raises(ValueError, match="chain: expected an image that varies"):
        chain.finish(_C.OutputAct.LEAKY_RELU, 1.0)
    chain.add_norm(norm, 1)
    with pytest.raises(ValueError, match="chain: expected no activation behind a norm"):
        chain.finish(_C.OutputAct.SIGMOID, 0.0)
    with pytest.raises(ValueError, match="chain: expected to be finished"):
        chain.source_size(0)
    chain.finish(_C.OutputAct.LEAKY_RELU, 1.0)
    assert chain.shape == [2, 4, 6]
    assert chain.source_size(1) == 96
    with pytest.raises(ValueError, match="source: expected a number from 0 to 1"):
        chain.source_size(2)
    w, x, y, other = (np.ones(size, np.float32) for size in (3, 48, 48, 96))
    with pytest.raises(ValueError, match="sources: expected 2 arrays, got 1"):
        chain.forward(w, [x], y, [], None)
    chain.forward(w, [x, other], y, [], None)
    with pytest.raises(ValueError, match="grad_sources: expected 2 arrays, got 1"):
        chain.backward(w, [x, other], y, w.copy(), [None])
    grads = [x.copy(), other.copy()]
    chain.backward(w, [x, other], y, w.copy(), grads)
    assert not grads[1].any()  # nothing reads it


def test_results_that_nothing_reads_are_refused():
    require("cpu")
    from oes_fast import _C

    chain, spec = joined()
    spec.inputs, spec.terms = [0], [0, 0, 0, 1, 0, 1]
    chain.add_join(spec)
    chain.add_act(_C.Act.LEAKY_RELU, 1.0)
    with pytest.raises(ValueError, match="expected each result to be read"):
        chain.finish(_C.OutputAct.LEAKY_RELU, 1.0)
