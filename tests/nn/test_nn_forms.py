"""MaskedConv2d on a CPU: the sparse kernel where it is faster, the same layer whatever computes it."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
import torch.nn.functional as F
from conftest import unchanged
from kernel_backends import require

import oes_fast as oes
from oes_fast import autotune_cache
from oes_fast.autotune_cache import read_choices
from oes_fast.nn import masked_conv2d as layer_module
from oes_fast.nn import sparse_form
from oes_fast.nn.sparse_form import Forms

FORMS = [Forms(*((number >> bit) & 1 == 1 for bit in range(3))) for number in range(8)]
ARGUMENTS = [
    {},
    {"padding": 1, "bias": False},
    {"stride": 2, "padding": (2, 1)},
    {"stride": 2, "padding": 1, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": (0, 2), "padding_mode": "replicate", "kernel_size": (1, 5)},
]


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A folder of its own, nothing known."""
    require("cpu")
    monkeypatch.setenv("OES_FAST_CACHE_DIR", str(tmp_path / "choices"))
    monkeypatch.setattr(sparse_form, "_DENSE_BELOW", 0)  # these images are small
    autotune_cache._on_disk.cache_clear()
    autotune_cache._in_use.clear()
    yield
    autotune_cache._on_disk.cache_clear()
    autotune_cache._in_use.clear()


@pytest.fixture
def choose(monkeypatch):
    """Sets what the timing finds."""

    def set_forms(forms):
        monkeypatch.setattr(sparse_form, "_measure", lambda *_: forms)

    set_forms(Forms(True, True, True))
    return set_forms


@pytest.fixture
def calls(monkeypatch):
    """How often the sparse kernel gave an output."""
    seen = []
    original = sparse_form._sparse
    monkeypatch.setattr(sparse_form, "_sparse", lambda *args: seen.append(1) or original(*args))
    return seen


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(density=0.3, dtype=torch.float64, **arguments):
    arguments = {"kernel_size": 3} | arguments
    conv = torch.nn.Conv2d(4, 6, dtype=dtype, **arguments)
    with torch.no_grad():
        for index, parameter in enumerate(conv.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=index))
    keep = torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(0)) < density
    return oes.MaskedConv2d.from_dense(conv, keep)


def dense(layer, x, weight=None, bias=None):
    """The definition."""
    weight = layer.weight if weight is None else weight
    return layer._conv_forward(x, weight * layer.mask, layer.bias if bias is None else bias)


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_output_and_gradients_in_every_form(choose, forms, arguments):
    choose(forms)
    layer = make(**arguments)
    x = draw(2, 4, 9, 8).requires_grad_()
    inputs = [x, *layer.parameters()]
    output, expected = layer(x), dense(layer, x)
    torch.testing.assert_close(output, expected)
    grad = draw(*output.shape, seed=3)
    found = torch.autograd.grad(output, inputs, grad)
    for got, wanted in zip(found, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(got, wanted)
    assert (found[1][~layer.mask] == 0).all()
    with torch.no_grad():
        assert torch.equal(layer(x), output)  # a layer gives the same bits with and without gradients
    with torch.inference_mode():
        assert torch.equal(layer(x.detach()), output)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 2), (1, 2)])
@pytest.mark.parametrize("forms", [FORMS[7], FORMS[1], FORMS[6]])
def test_gradients_of_some_inputs_alone(choose, forms, which):
    choose(forms)
    layer, x = make(padding=1), draw(1, 4, 7, 6)
    tensors = [x, *layer.parameters()]
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index in which)
    layer(x).square().sum().backward()
    found = [t.grad for t in tensors]
    for tensor in tensors:
        tensor.grad = None
    dense(layer, x).square().sum().backward()
    for index, (got, tensor) in enumerate(zip(found, tensors, strict=True)):
        assert (got is None) == (index not in which)
        if got is not None:
            torch.testing.assert_close(got, tensor.grad)


@pytest.mark.parametrize("forms", [FORMS[7], FORMS[6]])
def test_derivatives_of_any_order(choose, forms):
    choose(forms)
    layer, x = make(stride=2, padding=1), draw(1, 4, 5, 5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,)),
        (x, *layer.parameters()),
    )
    assert torch.autograd.gradgradcheck(
        lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x,)), (x, layer.weight)
    )


def test_what_writes_to_the_mask_is_seen(choose, calls):
    layer, x = make(padding=1), draw(1, 4, 7, 6)

    def check(layer):
        torch.testing.assert_close(layer(x), dense(layer, x))

    check(layer)
    other = draw(*layer.mask.shape, seed=5) > 0.5

    def by_hand():
        layer.mask[0] = False

    def by_data():
        layer.mask.data[1] = True

    def by_numpy():
        layer.mask.numpy()[2] = False

    def by_a_new_buffer():
        layer.mask = other.clone()

    def by_state():
        layer.load_state_dict(make(0.1, padding=1).state_dict())

    def by_assigned_state():
        layer.load_state_dict(make(0.2, padding=1).state_dict(), assign=True)

    changes = (by_hand, by_data, by_numpy, by_a_new_buffer, by_state, by_assigned_state)
    for change in (*changes, lambda: layer.set_mask(other), lambda: layer.mask.zero_()):
        with torch.no_grad():
            layer.weight.copy_(draw(*layer.weight.shape))
            change()
        check(layer)
    layer.set_mask(other)
    copied = copy.deepcopy(layer)
    copied.set_mask(~other)
    check(layer)
    check(copied)
    state = {"mask": ~other, "weight": draw(*other.shape, seed=6)}
    got = torch.func.functional_call(layer, state, (x,))
    torch.testing.assert_close(got, F.conv2d(x, state["weight"] * ~other, layer.bias, padding=1))
    check(layer)
    assert len(calls) > 10


def test_nothing_is_kept_in_the_layer(choose):
    layer, x = make(padding=1), draw(1, 4, 7, 6)
    attributes, names = set(layer.__dict__), list(layer.state_dict())
    layer(x)
    assert set(layer.__dict__) == attributes
    assert list(layer.state_dict()) == names
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))
    count = len(layer_module._KEPT)
    del layer
    gc.collect()
    assert len(layer_module._KEPT) < count


def test_the_choice_is_made_once_and_kept(monkeypatch, tmp_path):
    timed = []
    monkeypatch.setattr(sparse_form, "_faster", lambda *_, **__: timed.append(1) or len(timed) in (2, 4))
    layer, x = make(padding=1), draw(1, 4, 7, 6)
    output = layer(x)
    assert len(timed) == 4  # each part, and those chosen together
    assert torch.equal(layer(x), output)
    assert torch.equal(copy.deepcopy(layer)(x), output)
    (file,) = (tmp_path / "choices").iterdir()
    assert list(read_choices(file).values()) == [[False, True, False]]
    autotune_cache._on_disk.cache_clear()  # as another process
    autotune_cache._in_use.clear()
    assert torch.equal(copy.deepcopy(layer)(x), output)
    assert len(timed) == 4
    file.write_text('{"float64 some other thing": 3}')
    autotune_cache._on_disk.cache_clear()
    autotune_cache._in_use.clear()
    copy.deepcopy(layer)(x)
    assert len(timed) == 7


def test_timing_leaves_everything_alone(tmp_path):
    layer = make(0.05, torch.float32, padding=1)
    x = draw(1, 4, 30, 30, dtype=torch.float32).requires_grad_()
    with unchanged(layer, x):
        layer(x)
    assert (tmp_path / "choices").exists()


def test_clear_cases_are_not_timed(monkeypatch):
    monkeypatch.setattr(sparse_form, "_measure", None)
    x = draw(1, 4, 7, 6)
    for density in (0, 0.95, 1.1):
        layer = make(density, padding=1)
        torch.testing.assert_close(layer(x), dense(layer, x))
    monkeypatch.undo()
    monkeypatch.setattr(sparse_form, "_measure", None)
    layer = make(0.1, padding=1)
    assert torch.equal(layer(x), dense(layer, x))  # calls cost more than its sums
    layer = make(1.1, padding=1)
    conv = torch.nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64)
    conv.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    assert torch.equal(layer(x), conv(x))


@pytest.mark.parametrize("arguments", [{"dilation": 2}, {"groups": 2}, {"stride": 3}, {"stride": (1, 2)}])
def test_what_the_kernel_lacks_is_dense(monkeypatch, arguments):
    monkeypatch.setattr(sparse_form, "_measure", None)
    layer, x = make(padding=1, **arguments), draw(1, 4, 9, 8)
    torch.testing.assert_close(layer(x), dense(layer, x))


def test_inputs_of_any_layout(choose, calls):
    layer = make(padding=1)
    base = draw(2, 9, 8, 4)
    for x in (
        base.permute(0, 3, 1, 2),
        base[:, ::2, 1::2].permute(0, 3, 2, 1),
        draw(1, 4, 1, 1).expand(3, 4, 5, 6),
    ):
        torch.testing.assert_close(layer(x), dense(layer, x))
    image = draw(4, 7, 6)
    assert torch.equal(layer(image), layer(image[None])[0])  # as torch.nn.Conv2d
    assert layer(draw(0, 4, 7, 6)).shape == (0, 6, 7, 6)
    wide = layer(draw(1, 4, 7, 6).expand(2, 4, 7, 6))
    wide.sum().backward()  # a gradient without memory of its own
    assert calls


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_transforms_see_the_dense_form(choose, calls):
    layer, x = make(padding=1), draw(3, 4, 7, 6)
    expected = dense(layer, x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.vmap(layer)(x[:, None])[:, 0], expected)
    _, tangent = torch.func.jvp(layer, (x,), (x,))
    torch.testing.assert_close(tangent, F.conv2d(x, layer.weight * layer.mask, padding=1))
    weight = layer.weight.detach()
    found = torch.func.grad(lambda w: torch.func.functional_call(layer, {"weight": w}, (x,)).square().sum())(
        weight
    )
    dense(layer, x).square().sum().backward()
    torch.testing.assert_close(found, layer.weight.grad)
    traced = torch.jit.trace(layer, x, check_trace=False)  # the check runs it untraced
    torch.testing.assert_close(traced(x), expected)
    with torch.device("meta"):  # a default device is a mode too
        torch.testing.assert_close(layer(x), expected)
    assert not calls
    output = layer(x)
    assert calls
    basis = draw(2, *output.shape)
    (batched,) = torch.autograd.grad(output, layer.weight, basis, is_grads_batched=True)
    for got, grad in zip(batched, basis, strict=True):
        (wanted,) = torch.autograd.grad(dense(layer, x), layer.weight, grad)
        torch.testing.assert_close(got, wanted)


def test_other_dtypes_are_what_pytorch_makes_of_them(choose, calls):
    x = draw(1, 4, 7, 6).float()
    layer = make(dtype=torch.float32, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, dense(layer, x))
        assert layer(output[:, :4]).dtype == torch.bfloat16
    half = copy.deepcopy(layer).bfloat16()
    assert torch.equal(half(x.bfloat16()), dense(half, x.bfloat16()))
    with pytest.raises(oes.InputError, match=r"^x: expected dtype bfloat16"):
        half(x)
    with pytest.raises(oes.InputError, match=r"^x: |^weight: "):
        layer(x.double())
    assert not calls


def test_training_is_that_of_the_dense_form(choose):
    results = []
    for forms in (FORMS[0], FORMS[7]):
        choose(forms)
        autotune_cache._on_disk.cache_clear()
        autotune_cache._in_use.clear()
        for file in autotune_cache.choices_file("x").parent.glob("*"):
            file.unlink()
        layer, x, y = make(padding=1), draw(2, 4, 7, 6), draw(2, 6, 7, 6, seed=9)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            F.mse_loss(layer(x), y).backward()
            optimizer.step()
        assert (layer.weight[~layer.mask] == 0).all()
        results.append(layer.state_dict())
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor)


def test_without_the_kernels_it_is_dense(choose, calls, monkeypatch):
    monkeypatch.setenv("OES_FAST_DISABLE_BACKENDS", "cpu")
    layer, x = make(padding=1), draw(1, 4, 7, 6)
    torch.testing.assert_close(layer(x), dense(layer, x))
    assert not calls
