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
