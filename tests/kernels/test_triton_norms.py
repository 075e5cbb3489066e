"""The norms of a chain of Triton kernels: what last programs do with sums, and the passes over an image."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import device_of, require

triton = pytest.importorskip("triton", reason="Triton is not installed")
import triton.language as tl  # noqa: E402
from oes_fast.kernels.chain import finalise as tables  # noqa: E402
from oes_fast.kernels.chain import kinds, norm_pass  # noqa: E402
from oes_fast.kernels.chain.finalise import finalise, is_last  # noqa: E402
from oes_fast.kernels.chain.finalise_shift import shift_of  # noqa: E402
from oes_fast.kernels.chain.fold import Fold  # noqa: E402
from oes_fast.kernels.chain.norm_pass import pass_chunks  # noqa: E402
from torch.nn import functional as F  # noqa: E402

pytestmark = pytest.mark.device

NETWORKS, CHANNELS, WEIGHTS = 2, 3, 100
SLOPE = 0.2
ACTS = (lambda x: F.leaky_relu(x, SLOPE), lambda x: F.elu(x, SLOPE), F.silu)

GAMMA, BETA = (3, -1, 5), (-1, 7, 8)
BIAS = (20, -1, 22, 23, -1)  # of three outputs and two constant ones
READ_CONSTANTS, READ_BETAS = 40, tuple(range(60, 100))
# (output, weight, constant): more of one output than are added at once, none of another
TAPS = [(0, 25 + i % 35, i) for i in range(35)] + [(2, 12, 4), (2, 13, 0), (3, 14, 39), (4, 15, 4)]
FACTOR = 0.25


@triton.jit
def finalise_kernel(
    f, tickets_ptr, count, COUNT: tl.constexpr, KIND: tl.constexpr, SECOND: tl.constexpr, ACT: tl.constexpr
):
    group = tl.program_id(1)
    network = tl.program_id(2)
    if is_last(tickets_ptr + network * tl.num_programs(1) + group, count):
        finalise(f, network, group * COUNT, COUNT, KIND, SECOND, ACT)


@triton.jit
def shift_kernel(f, out_ptr, outputs, OUTPUTS: tl.constexpr):
    network = tl.program_id(2)
    output = tl.arange(0, OUTPUTS)
    tl.store(out_ptr + network * outputs + output, shift_of(f, network, output), mask=output < outputs)


@pytest.fixture(autouse=True)
def _kernels():
    require("triton")


@pytest.fixture
def small_blocks(monkeypatch):
    """Several chunks, and several blocks of each, in images of a few pixels."""
    monkeypatch.setattr(norm_pass, "BLOCK", 32)
    monkeypatch.setattr(norm_pass, "MOST_CHUNKS", 2)
    monkeypatch.setattr(norm_pass, "_SMALLEST", 16)
    monkeypatch.setattr(norm_pass, "_WIDEST", 8)


def ints(*numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=device_of("triton"))


def drawn(*shape, dtype=torch.float64, seed=0, scale=1.0, around=0.0):
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (values * scale + around).to(device_of("triton"), dtype)


def unset(*shape, dtype=torch.float64):
    return torch.full(shape, torch.nan, dtype=dtype, device=device_of("triton"))


def close(ours, theirs, dtype=torch.float64, **bars):
    bars = bars or (
        {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    )
    torch.testing.assert_close(ours.double(), theirs.double(), **bars)


def finished(f, kind, *, channels=CHANNELS, count=2, second=False, act=0):
    """Let the last of three programs, for each group of channels and network, finish the sums."""
    groups = triton.cdiv(channels, count)
    tickets = torch.zeros(NETWORKS, groups, dtype=torch.int32, device=f.sizes.device)
    finalise_kernel[(3, groups, NETWORKS)](f, tickets, 3, count, kind.value, second, act)
    assert not tickets.any()


def sizes_of(chunks, pixels, channels=CHANNELS, **more):
    return tables.finalise_sizes(
        channels=channels, chunks=chunks, pixels=pixels, weights=WEIGHTS, device=device_of("triton"), **more
    )


def shifts(dtype):
    """Arguments for what a convolution adds, their sizes, and what it adds [N, outputs] to differentiate."""
    bias, first, taps = tables.shift_tables(BIAS, sum(TAPS[::-1], ()), device_of("triton"))
    constants = drawn(NETWORKS, READ_CONSTANTS, dtype=dtype, seed=7)
    names = {"shift_bias": bias, "shift_first": first, "shift_taps": taps, "shift_constants": constants}
    sizes = {"shift_outputs": len(BIAS), "shift_constants": READ_CONSTANTS, "shift_taps": len(TAPS)}
    return names, sizes


def shift_sums(weights, constants):
    added = [weights[:, i] if i >= 0 else torch.zeros_like(weights[:, 0]) for i in BIAS]
    for output, weight, constant in TAPS:
        added[output] = added[output] + FACTOR * weights[:, weight] * constants[:, constant]
    return torch.stack(added, 1)


def weights_at(weights, indices, absent):
    """[N, channels] of some weights."""
    return torch.stack(
        [weights[:, i] if i >= 0 else torch.full_like(weights[:, 0], absent) for i in indices], 1
    )


def forward_arguments(dtype, partials, pixels, *, channels=CHANNELS, running=True, copies=1.0, **given):
    """Of norm_forward; the tables are as long as there are channels, those above repeated."""
    names, sizes = shifts(dtype)
    gamma, beta = (GAMMA * 3)[:channels], (BETA * 3)[:channels]
    arguments = {
        "partials": partials,
        "sizes": sizes_of(
            partials.shape[2], pixels, channels, tracked=3, constants=2, constants_before=2, **sizes
        ),
        "settings": tables.finalise_settings(
            device=partials.device, eps=1e-3, momentum=0.3, copies=copies, factor=FACTOR, slope=SLOPE
        ),
        "weights": drawn(NETWORKS, WEIGHTS, dtype=dtype, seed=1),
        "gamma": ints(*gamma),
        "beta": ints(*beta),
        "prologue": unset(NETWORKS, channels, 6, dtype=dtype),
        "rstd": unset(NETWORKS, channels),
        "running_mean": drawn(NETWORKS, 9, dtype=dtype, seed=2) if running else None,
        "running_var": drawn(NETWORKS, 9, dtype=dtype, seed=3) if running else None,
        "running_stride": 9,
        "stats_index": ints(*(4, 0, 2)[:channels]),
        "tracked": ints(0, -1, 1),
        "tracked_stats_index": ints(1, 3, 5),
        "betas": ints(10, 11),
        "constants": unset(NETWORKS, 2, dtype=dtype),
        "constants_before": drawn(NETWORKS, 2, dtype=dtype, seed=4),
        **names,
    }
    return tables.NormForward(**(arguments | given))


def moments_of(x, chunks):
    """Partials [N, C, chunks, 3] of x [N, C, pixels]; some chunks are empty, the first among them."""
    edges = torch.linspace(0, x.shape[-1], chunks).round().long().tolist()
    partials = torch.zeros(*x.shape[:2], chunks, 3, dtype=torch.float64, device=x.device)
    for chunk, (begin, end) in enumerate(zip([0, *edges], edges, strict=False)):
        if end > begin:
            part = x[..., begin:end].double()
            mean = part.mean(-1)
            squares = (part - mean[..., None]).square().sum(-1)
            partials[:, :, chunk] = torch.stack([torch.full_like(mean, end - begin), mean, squares], -1)
    return partials


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize(
    ("dtype", "chunks", "act"), [(torch.float64, 3, 1), (torch.float64, 70, 2), (torch.float32, 5, 0)]
)
def test_norm_forward(dtype, chunks, act, second):
    x = drawn(NETWORKS, CHANNELS, 60, seed=5, around=3)
    f = forward_arguments(dtype, moments_of(x, chunks), 60, copies=4.0)
    mean_before, var_before = f.running_mean.clone(), f.running_var.clone()
    finished(f, kinds.NORM_FORWARD, second=second, act=act)
    mean, var = x.mean(-1), x.var(-1, correction=0)
    rstd = (var + 1e-3).rsqrt()
    close(f.rstd, rstd)
    ours = f.prologue[:, :, 3:] if second else f.prologue[:, :, :3]
    scale = weights_at(f.weights, GAMMA, 1.0) * rstd
    close(ours, torch.stack([mean, scale, weights_at(f.weights, BETA, 0.0)], -1), dtype)
    assert f.prologue.isnan().sum() == f.prologue.numel() // 2
    added = shift_sums(f.weights, f.shift_constants)
    constant = f.constants_before if second else added[:, CHANNELS:]
    tracked = torch.stack([constant[:, 0], torch.zeros_like(constant[:, 0]), constant[:, 1]], 1)
    moved = mean if second else mean + added[:, :CHANNELS]
    expected = mean_before.double(), var_before.double()
    for place, values in zip(expected, (moved, var * 240 / 239), strict=True):
        place[:, [4, 0, 2]] = 0.7 * place[:, [4, 0, 2]] + 0.3 * values.double()
    for place, values in zip(expected, (tracked, torch.zeros_like(tracked)), strict=True):
        place[:, [1, 3, 5]] = 0.7 * place[:, [1, 3, 5]] + 0.3 * values.double()
    close(f.running_mean, expected[0], dtype)
    close(f.running_var, expected[1], dtype)
    close(f.constants, ACTS[act](f.weights[:, [10, 11]]), dtype)


def test_norm_forward_leaves_the_statistics_alone():
    x = drawn(NETWORKS, CHANNELS, 60, seed=5)
    f = forward_arguments(torch.float64, moments_of(x, 3), 60, running=False)
    finished(f, kinds.NORM_FORWARD)
    close(f.prologue[:, :, 0], x.mean(-1))


@pytest.mark.parametrize("act", [0, 1, 2])
def test_shift_and_its_gradient(act):
    """What a last convolution adds to its outputs, and the gradient of that in all weights."""
    names, sizes = shifts(torch.float64)
    weights = drawn(NETWORKS, WEIGHTS, seed=1).requires_grad_()
    settings = tables.finalise_settings(device=weights.device, factor=FACTOR, slope=SLOPE)
    constants = ACTS[act](weights[:, list(READ_BETAS)])
    names["shift_constants"].copy_(constants.detach())
    loss = tables.Loss(None, sizes_of(1, 5, 5, **sizes), settings, weights.detach(), None, **names)
    added = unset(NETWORKS, 5)
    shift_kernel[(1, 1, NETWORKS)](loss, added, 5, OUTPUTS=8)
    expected = shift_sums(weights, constants)
    close(added, expected.detach())

    partials = drawn(NETWORKS, 5, 4, 3, seed=2)
    expected.backward(partials[..., 0].sum(-1))
    grad_weights = torch.ones_like(weights)
    f = tables.ShiftBackward(
        partials, sizes_of(4, 5, 5, **sizes), settings, weights.detach(), grad_weights,
        shift_betas=ints(*READ_BETAS), **names,
    )  # fmt: skip
    finished(f, kinds.SHIFT_BACKWARD, channels=4, count=4, act=act)  # one group, of five outputs
    close(grad_weights - 1, weights.grad)


@pytest.mark.parametrize("chunks", [1, 33])
def test_loss(chunks):
    names, sizes = shifts(torch.float64)
    partials = drawn(NETWORKS, 5, chunks, 3)
    loss = unset(NETWORKS)
    settings = tables.finalise_settings(device=loss.device)
    f = tables.Loss(partials, sizes_of(chunks, 7, 5, **sizes), settings, loss, loss, **names)
    finished(f, kinds.LOSS, channels=2, count=2)
    close(loss, partials[..., 0].sum((1, 2)) / 35)


# ---- passes


class Norms:
    """A convolution's result y [N, C, H, W] with one or two norms behind it, and their tensors.

    What the convolution before would leave of the first norm is put there; the second one has a pass.
    """

    def __init__(self, shape, *, dtype=torch.float64, act=0, two=False, scale=1.0, around=0.5):
        channels, rows, columns = shape
        self.act, self.two, self.dtype, self.pixels = act, two, dtype, rows * columns
        self.y = drawn(NETWORKS, *shape, dtype=dtype, seed=11, scale=scale, around=around)
        self.chunks = pass_chunks(self.pixels)
        self.tickets = torch.zeros(NETWORKS * channels, dtype=torch.int32, device=self.y.device)
        self.partials = unset(NETWORKS, channels, self.chunks, 3)
        self.forward = forward_arguments(dtype, self.partials, self.pixels, channels=channels, running=False)
        moments = moments_of(self.y.flatten(2), 2)
        first = self.forward._replace(partials=moments, sizes=forward_sizes(self.forward, moments))
        finished(first, kinds.NORM_FORWARD, channels=channels, count=4)
        self.rstds = [first.rstd.clone(), self.forward.rstd]
        self.grads = [unset(NETWORKS, channels, 4, dtype=dtype) for _ in range(2)]
        self.grad_weights = torch.zeros_like(self.forward.weights)
        if two:
            self.run("SECOND_MOMENTS", finish=self.forward, finalise=kinds.NORM_FORWARD)

    def run(self, kind, *, finish=None, finalise=kinds.FINALISE_NONE, **more):
        norm_pass.norm_pass(
            getattr(norm_pass, f"PASS_{kind}"), y=self.y, numbers=self.forward.prologue,
            slope=tl.constexpr(SLOPE), act=self.act, finish=finish, finalise=finalise.value,
            tickets=self.tickets, **more,
        )  # fmt: skip
        assert not self.tickets.any()

    def backward_arguments(self, which):
        f = self.forward
        return tables.NormBackward(
            self.partials, f.sizes, f.gamma, f.beta, f.prologue, self.grads[which],
            self.rstds[which], self.grad_weights,
        )  # fmt: skip

    def gradient(self, grad, fold=None):
        """Of y, as its reader makes it of what the passes leave."""
        out = torch.empty_like(self.y)
        if self.two:
            self.run(
                "SECOND_SUMS", grad=grad, out=out, fold=fold, finish=self.backward_arguments(1),
                finalise=kinds.NORM_BACKWARD,
            )  # fmt: skip
            grad, fold = (grad, None) if fold is None else (out, None)
        self.run(
            "ACT_GRAD", grad=grad, out=out, fold=fold, grad_numbers=self.grads[1] if self.two else None,
            finish=self.backward_arguments(0), finalise=kinds.NORM_BACKWARD,
        )  # fmt: skip
        mean, a, b, c = self.grads[0][..., None, None].unbind(2)
        return a * out + (b * (self.y - mean) + c)

    def image(self, y, weights):
        """The same by torch, to differentiate."""
        x = ACTS[self.act](self._norm(y, weights))
        return self._norm(x, weights) if self.two else x

    def _norm(self, x, weights):
        gamma, beta = (weights_at(weights, (i * 3)[: x.shape[1]], a) for i, a in ((GAMMA, 1.0), (BETA, 0.0)))
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        return (x - mean) * (var + 1e-3).rsqrt() * gamma[..., None, None] + beta[..., None, None]


def forward_sizes(f, partials):
    sizes = f.sizes.clone()
    sizes[1] = partials.shape[2]
    return sizes


MODES = {kinds.PAD_REFLECT.value: "reflect", kinds.PAD_REPLICATE.value: "replicate"}
FOLDS = [
    None,
    Fold(1, 1, 1, 1, kinds.PAD_REFLECT.value),
    Fold(2, 3, 3, 1, kinds.PAD_REFLECT.value),
    Fold(1, 1, 1, 1, kinds.PAD_REPLICATE.value),
    Fold(3, 0, 2, 2, kinds.PAD_REPLICATE.value),
]


def continued(image, fold):
    sides = (fold.left, fold.right, fold.top, fold.bottom)
    return F.pad(image, sides, mode=MODES[fold.padding])


def check_gradient(norms, fold, seed=12):
    """Forward and gradient against torch's; every weight's as well."""
    y, weights = (t.detach().double().requires_grad_() for t in (norms.y, norms.forward.weights))
    image = norms.image(y, weights)
    read = image if fold is None else continued(image, fold)
    grad = drawn(*read.shape, dtype=norms.dtype, seed=seed)
    read.backward(grad.double())
    out = unset(*norms.y.shape, dtype=norms.dtype)
    norms.run("IMAGE", out=out, second=norms.two)
    close(out, image.detach(), norms.dtype)
    close(norms.gradient(grad, fold), y.grad, norms.dtype)
    close(
        norms.grad_weights,
        weights.grad,
        norms.dtype,
        **({} if norms.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-3}),
    )


@pytest.mark.parametrize("fold", FOLDS, ids=str)
def test_passes_of_two_norms(fold, small_blocks):
    check_gradient(Norms((1, 7, 9), act=2, two=True), fold)


@pytest.mark.parametrize("fold", FOLDS[:2], ids=str)
def test_passes_of_one_norm(fold, small_blocks):
    check_gradient(Norms((2, 6, 9), act=1), fold)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 4, 9)], ids=str)
@pytest.mark.parametrize("fold", FOLDS[1:], ids=str)
def test_passes_over_images_little_wider_than_their_border(shape, fold):
    """A pixel may have copies on both sides."""
    check_gradient(Norms(shape), fold)


@pytest.mark.parametrize("act", [0, 1, 2])
def test_passes_in_float32(act):
    check_gradient(Norms((1, 8, 16), act=act, dtype=torch.float32, two=True), FOLDS[1])


def test_passes_over_one_pixel():
    """Nothing is left of it but beta."""
    norms = Norms((CHANNELS, 1, 1), two=True)
    check_gradient(norms, None)


def test_statistics_of_a_large_mean(small_blocks):
    """Nothing cancels: mean 1e4 and spread 1e-2, which float32 has just four bits for."""
    norms = Norms((2, 8, 8), dtype=torch.float32, scale=1e-2, around=1e4, two=True)
    x = norms.y.double()
    mean, var = x.mean((2, 3)), x.var((2, 3), correction=0)
    close(norms.rstds[0], (var + 1e-3).rsqrt(), rtol=1e-10, atol=0)
    numbers = norms.forward.prologue.double()[..., None, None]
    seen = ACTS[0](numbers[:, :, 1] * (x - numbers[:, :, 0]) + numbers[:, :, 2])
    close(norms.rstds[1], (seen.var((2, 3), correction=0) + 1e-3).rsqrt(), rtol=1e-5, atol=0)
    close(norms.forward.prologue[:, :, 3], seen.mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert float((norms.forward.prologue[:, :, 0].double() - mean).abs().max()) < 1e-3


def test_passes_give_the_same_bits_again(small_blocks, monkeypatch):
    """Also where every channel has a ticket of its own, which the interpreter has not."""
    found = []
    for together in (True, True, False):
        monkeypatch.setattr(norm_pass, "_together", lambda finalise, together=together: together)
        norms = Norms((2, 4, 9), dtype=torch.float32, two=True)
        grad = drawn(NETWORKS, 2, 6, 11, dtype=torch.float32)
        found.append((norms.gradient(grad, FOLDS[1]), norms.grad_weights, *norms.grads, *norms.rstds))
    assert all(torch.equal(*pair) for pair in zip(*found[:2], strict=True))
    for one, all_ in zip(*found[1:], strict=True):
        close(one, all_)


@pytest.mark.parametrize("out", [kinds.OUT_LEAKY, kinds.OUT_SIGMOID], ids=["leaky", "sigmoid"])
@pytest.mark.parametrize(
    ("of_error", "weighted", "shifted"),
    [(False, False, True), (True, False, False), (True, True, True)],
    ids=["grad", "error", "weighted error"],
)
def test_gradient_of_the_image(out, of_error, weighted, shifted, small_blocks):
    """Of a last convolution's result, and of its bias; or of the error to a target."""
    y = drawn(NETWORKS, 5, 7, 9, seed=1).requires_grad_()
    other = drawn(*y.shape, seed=2)
    image = torch.sigmoid(y) if out == kinds.OUT_SIGMOID else F.leaky_relu(y, SLOPE)
    weight = drawn(*y.shape, seed=3).square() if weighted else None
    squares = (image - other).square() if weight is None else weight * (image - other).square()
    error = sum(squares[n].mean() for n in range(NETWORKS))
    error.backward() if of_error else image.backward(other)
    names, sizes = shifts(torch.float64)
    found, tickets = unset(*y.shape), torch.zeros(NETWORKS * 5, dtype=torch.int32, device=y.device)
    weights = drawn(NETWORKS, WEIGHTS)
    chunks = pass_chunks(63)
    f = tables.ShiftBackward(
        unset(NETWORKS, 5, chunks, 3), sizes_of(chunks, 63, 5, **sizes),
        tables.finalise_settings(device=y.device, factor=FACTOR), weights, torch.zeros_like(weights),
        shift_betas=ints(*READ_BETAS), **names,
    )  # fmt: skip
    norm_pass.norm_pass(
        norm_pass.PASS_IMAGE_GRAD, y=y.detach(), out=found, act=out.value, slope=SLOPE,
        grad=None if of_error else other, target=other if of_error else None,
        weight=weight,
        finalise=(kinds.SHIFT_BACKWARD if shifted else kinds.FINALISE_NONE).value,
        finish=f if shifted else None, tickets=tickets,
    )  # fmt: skip
    close(found, y.grad)
    if shifted:
        close(f.grad_weights[:, [20, 22, 23]], y.grad.sum((2, 3))[:, [0, 2, 3]])


@pytest.mark.parametrize("fold", FOLDS[1:], ids=str)
def test_fold_alone(fold):
    """The gradient of a source, which no norm is behind."""
    source = drawn(NETWORKS, 2, 5, 20).requires_grad_()
    read = continued(source, fold)
    grad = drawn(*read.shape, seed=1)
    read.backward(grad)
    out = unset(*source.shape)
    norm_pass.norm_pass(norm_pass.PASS_FOLD, grad=grad, out=out, fold=fold)
    close(out, source.grad)
