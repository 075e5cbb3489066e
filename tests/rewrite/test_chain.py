"""Chains of the C++ kernels against the same network in plain PyTorch, on every instruction set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from chains import agree, differentiate, kept, networks, one_conv
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_backends import device_of, require, run_python
from torch import nn

import oes_fast as oes
import oes_fast.rewrite.run.chain_cpu
from oes_fast.flat import FlatLayout
from oes_fast.rewrite.run.chain_find import find_chains
from oes_fast.rewrite.run.context import FusedLoss

pytestmark = pytest.mark.cpu_kernel

DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}
# Options of the generator, size of the image, density: every kind of convolution, border, activation; images
# narrower than a vector and wider than a tile, odd sizes, strips of one row and of several.
CASES = (
    ({}, (64, 64), 0.8),
    ({"num_channels_down": (6, 9, 7), "filter_size_down": 5}, (56, 200), 0.6),
    ({"pad": "zero"}, (40, 72), 0.8),
    ({"act_fun": "ELU", "need1x1_up": True}, (32, 48), 0.8),
    ({"act_fun": "SiLU", "downsample_mode": "stride"}, (37, 41), 0.8),
    ({"act_fun": "none", "need_bias": False}, (32, 32), 0.9),
    ({"num_channels_down": (20, 24), "need_sigmoid": False}, (48, 16), 0.3),
    ({"num_channels_down": (4,), "filter_size_down": 3}, (8, 600), 1.0),
    ({"num_channels_skip": 2}, (32, 64), 0.7),
    # Heads of every number of outputs, and of one more than the fused one takes.
    ({"outputs": 1, "num_channels_down": (5, 6)}, (50, 90), 0.8),
    ({"outputs": 2, "num_channels_down": (4, 6), "act_fun": "ELU"}, (64, 32), 1.0),
    ({"outputs": 4, "num_channels_down": (11, 6), "need_sigmoid": False}, (33, 65), 0.7),
    ({"outputs": 5, "num_channels_down": (6, 6)}, (40, 36), 0.8),
    # Wide enough for Winograd's form: tiles of 2 and 4, windows of 3 and 5, odd sizes, blocks not full.
    (
        {
            "num_channels_down": (22, 35),
            "filter_size_down": 5,
            "downsample_mode": "stride",
            "act_fun": "SiLU",
        },
        (75, 142),
        1.0,
    ),
    ({"num_channels_down": (33, 29), "filter_size_down": 3, "act_fun": "ELU"}, (66, 150), 1.0),
    # Halved to fewer columns than any vector has floats, many rows in a strip.
    ({"num_channels_down": (6,), "filter_size_down": 3}, (40, 6), 0.6),
)


def check(case, dtype, seed=0, tolerance=None, steps=2):
    """Steps of the kernels against PyTorch in float64."""
    _, fast, z = networks(case, dtype, seed)
    for theirs in steps_of_pytorch(case, dtype, seed, fast.weights, z, steps):
        ours = differentiate(fast, z)
        agree(
            [t.double() if t.is_floating_point() else t for t in ours], theirs, tolerance or TOLERANCE[dtype]
        )
    return ours


def step(case, dtype):
    """What the kernels give."""
    _, fast, z = networks(case, dtype)
    return differentiate(fast, z)


def steps_of_pytorch(case, dtype, seed, weights, z, steps):
    plain, _, _ = networks(case, torch.float64, seed)
    with torch.no_grad():  # the same numbers, also after they were rounded
        plain.weights.copy_(weights)
    return [differentiate(plain, z.double()) for _ in range(steps)]


@pytest.fixture(params=["cpu", "cuda"])
def engine(request):
    """The backends that run chains, on tensors of the CPU."""
    require(request.param)
    if device_of(request.param) != "cpu":
        pytest.skip("on a GPU test_chain_cuda.py tests the engine")
    return request.param


def small(engine):
    """A case for tests of every engine, smaller where it is emulated."""
    return CASES[0] if engine == "cpu" else ({"num_channels_down": (3, 4)}, (16, 20), 0.8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_forms(case, dtype, monkeypatch):
    """Every masked convolution in one form, whatever is faster here: half of the cases in each, by dtype."""
    require("cpu")
    dense = (CASES.index(case) % 2 == 0) != (dtype == torch.float64)
    monkeypatch.setattr(oes_fast.rewrite.run.chain_cpu, "dense_is_faster", lambda *_, **__: dense)
    check(case, dtype)


@settings(max_examples=16, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_drawn_networks(data):
    require("cpu")
    depth = data.draw(st.integers(1, 3))
    channels = st.lists(st.integers(1, 9), min_size=depth, max_size=depth)
    options = {
        "num_channels_down": data.draw(channels),
        "num_channels_up": data.draw(channels),
        "outputs": data.draw(st.integers(1, 5)),
        "filter_size_down": data.draw(st.sampled_from((1, 3, 5))),
        "pad": data.draw(st.sampled_from(("reflection", "zero"))),
        "act_fun": data.draw(st.sampled_from(("LeakyReLU", "ELU", "SiLU", "none"))),
        "need1x1_up": data.draw(st.booleans()),
        "need_bias": data.draw(st.booleans()),
        "need_sigmoid": data.draw(st.booleans()),
        "downsample_mode": data.draw(st.sampled_from(("avg", "stride"))),
    }
    size = data.draw(st.integers(24, 70)), data.draw(st.integers(8, 70))
    case = options, size, data.draw(st.sampled_from((0.3, 0.7, 1.0)))
    seed = data.draw(st.integers(0, 1000))
    # Statistics of few pixels that hardly vary amplify rounding without bound, and 2e-11 was seen with many.
    assume(min(size) // 2**depth >= 4)
    check(case, torch.float64, seed, tolerance=1e-9)


def test_bias_of_a_constant_channel_among_others():
    """Channels 1, 5, 6 and the constant 4 are four, and 4 - 1 = 3, but they are no range."""
    require("cpu")
    options = {
        "num_channels_down": (8, 2, 8),
        "num_channels_up": (7, 3, 3),
        "outputs": 5,
        "filter_size_down": 1,
        "downsample_mode": "avg",
        "need1x1_up": True,
        "need_sigmoid": False,
    }
    check((options, (32, 32), 0.7), torch.float64, 258, tolerance=1e-9)


def test_a_fixed_source_is_laid_out_both_ways(monkeypatch):
    require("cpu")
    seen = set()
    laid_out = oes_fast.rewrite.run.chain_cpu.CpuChain.laid_out

    def record(program, entry, planes):
        seen.add(program.kernels.source_row_major(entry))
        return laid_out(program, entry, planes)

    monkeypatch.setattr(oes_fast.rewrite.run.chain_cpu.CpuChain, "laid_out", record)
    check(CASES[0], torch.float64)
    check(CASES[-3], torch.float32)  # dense and wide: Winograd's way
    assert seen == {True, False}


# Dtypes and forms in turn, those wide enough for Winograd's form dense in each. The capability of this
# processor is held to PyTorch above, so its threads are here; what threads do is the same for them all.
EVERYTHING = """
import sys, torch
sys.path[:0] = ["rewrite", "helpers"]
from test_chain import CASES, DTYPES, check, step
import oes_fast.rewrite.run.chain_cpu as chain
from oes_fast import _C
print(_C.capability())
for number, case in enumerate(CASES):
    dtype = DTYPES[number % 2]
    dense = number // 2 % 2 == 1 or min(case[0].get("num_channels_down", (8,))) > 20
    chain.dense_is_faster = lambda *_, **__: dense
    torch.set_num_threads(1)
    if sys.argv[1] == "True":
        check(case, dtype, steps=1)
        continue
    one = step(case, dtype)
    torch.set_num_threads(2)
    two = step(case, dtype)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), (case, dtype)
print("done")
"""


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_capability_and_one_and_two_threads(capability):
    require("cpu")
    from oes_fast import _C

    others = str(capability != _C.capability())
    done = run_python("-c", EVERYTHING, others, OES_FAST_CPU_CAPABILITY=capability, OMP_NUM_THREADS="2")
    if "supports no more than" in done.stderr:
        pytest.skip(f"this processor does not have {capability}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [capability, "done"]


def test_the_published_network_is_one_chain(engine):
    _, fast, z = networks(({}, (64, 64), 0.8), torch.float32, backend=engine)
    plan = fast.plan(z)
    (chain,) = find_chains(plan.graph, plan.alive, plan.input_only, lambda block: True)
    assert chain.end is plan.graph.output
    outside = [node for node in plan.graph.nodes if node not in plan.chained]
    assert all(node in plan.input_only for node in outside)


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sigmoid", [True, False])
def test_loss_inside_the_chain(outputs, sigmoid, engine):
    options = {"outputs": outputs, "num_channels_down": (7, 6), "need_sigmoid": sigmoid}
    plain, fast, z = networks(
        (options, (56, 44) if engine == "cpu" else (16, 12), 0.8), torch.float64, backend=engine
    )
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(plain(z).shape, generator=generator, dtype=torch.float64)
    fused_loss = FusedLoss(target)
    image = fast.evaluate(
        fast.weights, z, dict(fast.dense_buffers()), update_stats=False, fused_loss=fused_loss
    )
    loss = ((plain(z) - target) ** 2).mean()
    torch.testing.assert_close(image, plain(z), rtol=0, atol=1e-11)
    torch.testing.assert_close(fused_loss.loss, loss, rtol=1e-11, atol=0)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(each, net.weights)[0]
            for each, net in ((fused_loss.loss, fast), (loss, plain))
        ),
        rtol=0,
        atol=1e-11,
    )


def test_gradcheck(engine):
    _, fast, z = networks(
        ({"num_channels_down": (3, 2), "act_fun": "SiLU"}, (16, 12), 0.6), torch.float64, backend=engine
    )
    buffers = dict(fast.dense_buffers())
    z = z.requires_grad_()

    def function(weights, z):
        return fast.evaluate(weights, z, buffers, update_stats=False)

    assert torch.autograd.gradcheck(
        function, (fast.weights.detach().requires_grad_(), z), atol=1e-6, fast_mode=engine != "cpu"
    )


def test_gradient_of_the_input(engine):
    plain, fast, z = networks(small(engine), torch.float64, backend=engine)
    grads = []
    for net in (plain, fast):
        source = z.clone().requires_grad_()
        grads.append(torch.autograd.grad(net(source).square().sum(), (source, net.weights)))
    agree(grads[1], grads[0], 1e-11)


def test_an_evaluation_in_between(engine):
    """The buffers of a chain hold the last evaluation; the gradient of an earlier one is still right."""
    _, fast, z = networks(small(engine), torch.float64, backend=engine)
    buffers = {name: buffer.clone() for name, buffer in fast.dense_buffers()}
    weights = [fast.weights.detach().clone().requires_grad_() for _ in range(2)]
    with torch.no_grad():
        weights[1] += 0.1

    def evaluate(w):
        return fast.evaluate(w, z, buffers, update_stats=False).square().sum()

    wanted = [torch.autograd.grad(evaluate(w), w)[0] for w in weights]
    losses = [evaluate(w) for w in weights]
    got = [
        torch.autograd.grad(loss, w, retain_graph=True)[0] for loss, w in zip(losses, weights, strict=True)
    ]
    again = [torch.autograd.grad(loss, w)[0] for loss, w in zip(losses, weights, strict=True)]
    for ours in (got, again):
        assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_evaluations_in_between_of_image_and_loss(engine):
    """Their gradients are taken of buffers that are filled anew, for each evaluation by itself."""
    _, fast, z = networks(({"num_channels_down": (3, 4)}, (16, 12), 0.8), torch.float64, backend=engine)
    buffers = dict(fast.dense_buffers())
    target = torch.rand_like(fast(z).detach())

    def evaluated(z):
        fused_loss = FusedLoss(target)
        image = fast.evaluate(fast.weights, z, buffers, update_stats=False, fused_loss=fused_loss)
        return fused_loss.loss + image.square().sum()

    def gradient(total):
        return torch.autograd.grad(total, fast.weights)[0]

    wanted = [gradient(evaluated(each)) for each in (z, z.flip(3))]
    both = [evaluated(each) for each in (z, z.flip(3))]
    for total, grad in zip(both, wanted, strict=True):
        assert torch.equal(gradient(total), grad)


def test_threads_share_a_module(engine):
    """Each gets the gradient of its own evaluation, whoever used the buffers in between."""
    _, fast, z = networks(small(engine), torch.float64, backend=engine)
    buffers = {name: buffer.clone() for name, buffer in fast.dense_buffers()}

    def gradient(shift):
        weights = (fast.weights.detach() + shift).requires_grad_()
        output = fast.evaluate(weights, z, buffers, update_stats=False)
        return torch.autograd.grad(output.square().sum(), weights)[0]

    shifts = [0.01 * i for i in range(8)] * (4 if engine == "cpu" else 1)
    wanted = [gradient(shift) for shift in shifts]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(gradient, shifts))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_constant_channels_reach_the_output(engine):
    """Channels of the last norm whose gamma is dropped and whose beta is kept: a bias of the last layer."""
    net = oes.models.skip(4, 3, num_channels_down=(6, 8), filter_size_down=3, seed=0).double()
    layout = FlatLayout.of(net)
    mask = torch.rand(layout.numel, generator=torch.Generator().manual_seed(3)) < 0.8
    views = layout.views(mask)
    gamma, beta = [name for name, p in net.named_parameters() if p.shape == (6,) and name.startswith("4.")]
    views[gamma][:3], views[beta][:] = False, True
    with torch.no_grad():
        dict(net.named_parameters())[beta].normal_()
    mask = oes.Mask.from_flat(net, mask)
    z = oes.noise_input(4, (16, 16), dtype=torch.float64)
    plain, fast = (oes.sparsify(net, mask, backend=backend).train() for backend in ("torch", engine))
    agree(differentiate(fast, z), differentiate(plain, z), 1e-12)
    plan = fast.plan(z)
    assert len(plan.alive[plan.graph.output.inputs[0].inputs[0]].constant) >= 3
    assert plan.graph.output in plan.chained


def test_no_second_derivative(engine):
    _, fast, z = networks(small(engine), torch.float64, backend=engine)
    (grad,) = torch.autograd.grad(fast(z).square().sum(), fast.weights, create_graph=True)
    with pytest.raises(NotImplementedError, match='use backend="torch"'):
        grad.sum().backward()


def test_several_images_run_stage_by_stage(engine):
    plain, fast, z = networks(small(engine), torch.float64, backend=engine)
    z = torch.cat([z, 0.5 * z])
    agree(differentiate(fast, z), differentiate(plain, z), 1e-11)
    assert not fast.plan(z).chained


@pytest.mark.parametrize("dead", [[1], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("last", ["identity", "leaky", "sigmoid"])
def test_the_loss_counts_output_channels_that_are_zero(dead, last, engine):
    net = one_conv(nn.LeakyReLU(0.2), bias=False)
    net.append({"identity": nn.Identity(), "leaky": nn.LeakyReLU(0.3), "sigmoid": nn.Sigmoid()}[last])
    mask = kept(net, ("3.weight", dead))
    z, noisy = torch.rand(1, 4, 16, 16).double(), torch.rand(1, 3, 16, 16).double()
    losses = [
        oes.train_sparse(
            net, mask, z, noisy, steps=3, backend=backend, record_every=1, verify=False
        ).history.loss
        for backend in ("reference", engine)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.2), nn.ReLU(), nn.ELU(0.5), nn.SiLU()], ids=str)
@pytest.mark.parametrize("place", ["inside", "last"])
def test_the_slope_at_exactly_zero_is_that_of_pytorch(act, place, engine):
    """Channels whose gamma is dropped are their beta, 0 at first."""
    if place == "inside":
        net = one_conv(act)
        mask = kept(net, ("1.weight", slice(0, 3)))
        name, index = "1.bias", slice(0, 3)
    else:
        if isinstance(act, nn.ELU | nn.SiLU):
            pytest.skip("no last activation of a chain")
        net = one_conv(nn.ReLU()).append(act)
        with torch.no_grad():
            net[3].weight[1] = 0.0
            net[3].bias[1] = 0.0
        mask = kept(net)
        name, index = "3.bias", slice(1, 2)
    z = torch.rand(1, 4, 16, 16, dtype=torch.float64)
    gradients = []
    for backend in ("torch", engine):
        fast = oes.sparsify(net, mask, backend=backend, verify=False).train()
        fast(z).square().sum().backward() if place == "inside" else (fast(z) * z[:, :3]).sum().backward()
        dense = fast.dense_weights(fast.weights.grad)
        gradients.append(FlatLayout.of(net).views(dense)[name][index])
    dense = oes.sparsify(net, mask, verify=False).to_dense().train()
    dense(z).square().sum().backward() if place == "inside" else (dense(z) * z[:, :3]).sum().backward()
    expected = dict(dense.named_parameters())[name].grad[index]
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "cpu", "cuda"])
def test_evaluate_refuses_weights_and_statistics_of_another_kind(backend):
    if backend != "torch":
        require(backend)
    if device_of(backend) != "cpu":
        pytest.skip("tensors of the CPU")
    net = one_conv(nn.ReLU()).float()
    fast = oes.sparsify(net, kept(net), backend=backend).train()
    z, weights, buffers = torch.rand(1, 4, 8, 8), fast.weights.detach(), dict(fast.dense_buffers())
    fast.evaluate(weights, z, buffers, update_stats=True)
    for wrong in (weights.double(), weights[:-1], weights[None], weights.to("meta"), weights.numpy()):
        with pytest.raises(oes.InputError, match="weights: expected"):
            fast.evaluate(wrong, z, buffers, update_stats=True)
    for value in (torch.zeros(7), torch.zeros(8).double(), torch.zeros(8, device="meta")):
        with pytest.raises(oes.InputError, match=r"buffers\['1.running_mean'\]: expected"):
            fast.evaluate(weights, z, buffers | {"1.running_mean": value}, update_stats=True)
    with pytest.raises(oes.InputError, match=r"buffers: expected '1.running_mean'"):
        fast.evaluate(weights, z, {}, update_stats=True)
    strided = torch.zeros(2, len(weights)).T.contiguous().T[0].copy_(weights)
    wide = torch.stack([weights, weights], 1)[:, 0]
    for same in (strided, wide):
        torch.testing.assert_close(
            fast.evaluate(same, z, buffers, update_stats=False),
            fast.evaluate(weights, z, buffers, update_stats=False),
        )
