"""The last layer with its loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oes_fast as oes
from oes_fast.functional import output_head


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def formula(x, weight, bias, target, sigmoid):
    height, width = target.shape[-2:]
    y = torch.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0])[:, :, :height, :width]
    y = y if bias is None else y + bias[:, None, None]
    y = 1 / (1 + torch.exp(-y)) if sigmoid else y
    return y, ((y - target) ** 2).sum() / target.numel()


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 5),
    images=st.sampled_from([1, 3, 4]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    sigmoid=st.booleans(),
)
def test_formula_and_gradients(batch, channels, images, size, cut, bias, sigmoid):
    x = draw(batch, channels, *size).requires_grad_()
    weight = draw(images, channels, 1, 1, seed=1).requires_grad_()
    b = draw(images, seed=2).requires_grad_() if bias else None
    target = draw(batch, images, *(max(1, s - c) for s, c in zip(size, cut, strict=True)), seed=3)
    output, loss = output_head(x, weight, b, target, sigmoid=sigmoid)
    expected_output, expected_loss = formula(x, weight, b, target, sigmoid)
    assert output.shape == target.shape
    assert loss.shape == ()
    torch.testing.assert_close((output, loss), (expected_output, expected_loss))

    leaves = [t for t in (x, weight, b) if t is not None]
    upstream = draw(*output.shape, seed=4)
    got = torch.autograd.grad((output, loss), leaves, (upstream, torch.ones_like(loss)))
    want = torch.autograd.grad((expected_output, expected_loss), leaves, (upstream, torch.ones_like(loss)))
    for g, e in zip(got, want, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_gradcheck(sigmoid):
    leaves = [t.requires_grad_() for t in (draw(1, 3, 3, 4), draw(2, 3, 1, 1, seed=1), draw(2, seed=2))]
    target = draw(1, 2, 3, 3, seed=3)
    assert torch.autograd.gradcheck(lambda *a: output_head(*a, target, sigmoid=sigmoid), leaves)


def test_pixels_outside_of_the_target_get_no_gradient():
    x = draw(1, 2, 4, 5).requires_grad_()
    output_head(x, draw(3, 2, 1, 1), None, draw(1, 3, 3, 4))[1].backward()
    assert (x.grad[..., 3:, :] == 0).all()
    assert (x.grad[..., 4:] == 0).all()
    assert (x.grad[..., :3, :4] != 0).all()


def test_saturated_outputs_stay_finite():
    x = torch.full((1, 1, 2, 2), 1e30).requires_grad_()
    output, loss = output_head(x, torch.ones(1, 1, 1, 1), None, torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert (output == 1).all()
    assert loss == 1
    assert (x.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_of_memory(dtype):
    x, weight, target = (
        draw(2, 3, 4, 5, dtype=dtype),
        draw(3, 3, 1, 1, dtype=dtype),
        draw(2, 3, 4, 5, dtype=dtype),
    )
    expected = output_head(x, weight, None, target)
    assert expected[0].dtype == expected[1].dtype == dtype
    last = {"memory_format": torch.channels_last}
    torch.testing.assert_close(output_head(x.to(**last), weight, None, target.to(**last)), expected)
    wide = torch.stack([x, x], -1)[..., 0]
    torch.testing.assert_close(
        output_head(wide, weight.transpose(0, 1).clone().transpose(0, 1), None, target), expected
    )
    flat = target[:, :, :1, :1].expand(2, 3, 4, 5)
    torch.testing.assert_close(output_head(x, weight, None, flat), output_head(x, weight, None, flat.clone()))


GOOD = {"x": draw(1, 4, 5, 6), "weight": draw(3, 4, 1, 1), "bias": draw(3), "target": draw(1, 3, 5, 6)}
BAD = [
    ("x", {"x": draw(4, 5, 6)}),
    ("x", {"x": [1.0]}),
    ("weight", {"weight": draw(3, 4, 3, 3)}),
    ("weight", {"weight": draw(3, 5, 1, 1)}),
    ("weight", {"weight": draw(3, 4, 1, 1).float()}),
    ("bias", {"bias": draw(4)}),
    ("bias", {"bias": draw(3).to("meta")}),
    ("target", {"target": draw(1, 3, 6, 6)}),
    ("target", {"target": draw(1, 3, 5, 7)}),
    ("target", {"target": draw(1, 1, 5, 6)}),
    ("target", {"target": draw(2, 3, 5, 6)}),
    ("target", {"target": draw(1, 3, 0, 6)}),
    ("target", {"target": draw(1, 3, 5, 6).float()}),
]


@pytest.mark.parametrize(("name", "changes"), BAD)
def test_bad_arguments_are_named(name, changes):
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        output_head(**(GOOD | changes))
