"""How the CUDA engine is called: several networks at once, products, repetition, addresses, memory."""

from __future__ import annotations

import time

import pytest
import torch
from chain_networks import CASES, chain_of, networks_are_each_alone, torch_operations_of_a_step
from chains import differentiate, kept, networks, one_conv
from kernel_backends import device_of, require
from torch import nn

import oes_fast as oes
from oes_fast.rewrite.run.chain_cuda import CudaChain
from oes_fast.rewrite.run.context import is_unit_gradient, unit_gradient

pytestmark = [pytest.mark.cuda_kernel, pytest.mark.device]

BACKEND = "cuda"

# several networks at once


@pytest.mark.memcheck
@pytest.mark.parametrize(
    ("case", "shared", "with_loss"),
    [
        *((CASES[0], shared, with_loss) for shared in (True, False) for with_loss in (True, False)),
        (CASES[1], False, True),
    ],
    ids=str,
)
def test_three_networks_are_three_times_one(case, shared, with_loss):
    require(BACKEND)
    networks_are_each_alone(BACKEND, CudaChain, case, count=3, shared=shared, with_loss=with_loss)


# binding


def test_a_dense_layer_is_bound_in_no_time():
    """Taps by the hundred thousand are counted, not compared: sorting them took 9 s here."""
    require(BACKEND)
    layers = [nn.Conv2d(4, 256, 1), nn.BatchNorm2d(256), nn.LeakyReLU(0.2)]
    layers += [
        nn.Conv2d(256, 256, 3, padding=1),
        nn.BatchNorm2d(256),
        nn.LeakyReLU(0.2),
        nn.Conv2d(256, 3, 1),
    ]
    device = device_of(BACKEND)
    net = oes.sparsify(nn.Sequential(*layers).to(device), None, backend=BACKEND, verify=False).train()
    plan = net.plan(oes.noise_input(4, (8, 8), seed=0, device=device))
    began = time.process_time()
    assert plan.in_one_chain(torch.float32)
    assert time.process_time() - began < 3


# products, repetition, recordings


@pytest.mark.memcheck
@pytest.mark.parametrize(("setting", "bound"), [("float32", 2e-6), ("tf32x3", 1e-5), ("tf32", 2e-2)])
def test_products_are_those_of_the_setting(setting, bound):
    require(BACKEND)
    case = {"num_channels_down": (16, 16)}, (16, 16), 1.0
    _, exact, z = networks(case, torch.float64, backend=BACKEND)
    _, fast, _ = networks(case, torch.float32, backend=BACKEND)
    with torch.no_grad():
        exact.weights.copy_(fast.weights)
    with oes.precision(setting, device=z.device):
        image = fast(z.float())
        with_setting = exact(z.float().double())
    wanted = exact(z.float().double())
    assert torch.equal(with_setting, wanted)  # float64 is never rounded
    assert float((image.double() - wanted).abs().max()) < bound


def test_products_are_bound_once_a_setting():
    require(BACKEND)
    _, fast, z = networks(CASES[0], torch.float32, backend=BACKEND)
    images = {}
    for setting in ("tf32", "float32", "tf32", "float32"):
        with oes.precision(setting, device=z.device):
            image = fast(z).detach()
        assert torch.equal(images.setdefault(setting, image), image)
    assert torch.equal(fast(z).detach(), images["float32"])


def test_every_run_gives_the_same_bits():
    require(BACKEND)
    found = []
    for _ in range(3):
        _, fast, z = networks(CASES[1], torch.float32, backend=BACKEND)
        found.append(differentiate(fast, z))
    for again in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(again, found[0], strict=True))


def test_a_step_asks_torch_for_next_to_nothing():
    require(BACKEND)
    _, fast, z = networks(CASES[0], torch.float32, backend=BACKEND)
    assert torch_operations_of_a_step(fast, z) == ["_foreach_add_"]  # the batch counts


def test_the_gradient_that_is_known_to_be_one():
    loss = torch.zeros(())
    ones = unit_gradient(loss)
    assert is_unit_gradient(ones)
    assert not is_unit_gradient(torch.ones(()))
    assert not is_unit_gradient(ones.clone())


# what it is given


def test_wrong_tensors_are_refused_before_their_address_is_taken():
    require(BACKEND)
    _, fast, z = networks(CASES[0], torch.float32, backend=BACKEND)
    function, source = chain_of(fast, z, CudaChain, 1)
    weights, buffers = fast.weights.detach(), dict(fast.dense_buffers())
    target = torch.zeros(fast.plan(z).graph.output.shape, device=z.device)

    def run(weights=weights, source=source, buffers=buffers, target=target):
        return function(weights, [source], buffers, update_stats=True, counted=[], target=target)

    run()
    for changes, name in (
        ({"weights": weights[1:]}, "weights"),
        ({"weights": weights.double()}, "weights"),
        ({"weights": weights.to("meta")}, "weights"),
        ({"source": source[:, 1:]}, "source"),
        ({"source": source[..., 1:]}, "source"),
        ({"source": source[:, :, 1:].contiguous()}, "source"),
        ({"target": target[..., 1:]}, "target"),
        ({"target": target.double()}, "target"),
        ({"target": target.to("meta")}, "target"),
    ):
        with pytest.raises(oes.InputError, match=f"{name}: expected"):
            run(**changes)
    (mean,) = [name for name in buffers if name.endswith("running_mean")][:1]
    with pytest.raises(oes.InputError, match=r"running statistics of .*: expected \d channels at least"):
        run(buffers=buffers | {mean: buffers[mean][:-1].clone()})
    strided = torch.zeros(2 * len(buffers[mean]), device=z.device)[::2]
    with pytest.raises(TypeError, match=r"running statistics of .*: expected a contiguous"):
        run(buffers=buffers | {mean: strided})
    torch.testing.assert_close(run(weights=torch.stack([weights] * 2, 1)[:, 0]), run())


@pytest.mark.parametrize("count", [0, 65536])
def test_more_networks_than_a_grid_has_are_refused(count):
    require(BACKEND)
    _, fast, z = networks(CASES[0], torch.float32, backend=BACKEND)
    function, source = chain_of(fast, z, CudaChain, count)
    with pytest.raises(oes.InputError, match=f"networks: expected 1 to 65535, got {count}"):
        function(fast.weights, [source], dict(fast.dense_buffers()), update_stats=False, counted=[])


@pytest.mark.parametrize("refusals", [1, 2])
def test_memory_that_torch_holds_is_asked_for_once(refusals, monkeypatch):
    require(BACKEND)
    _, fast, z = networks(CASES[0], torch.float32, backend=BACKEND)
    made, calls, emptied = CudaChain._made, [], []

    def refuse(self, image):
        calls.append(image)
        if len(calls) <= refusals:
            raise RuntimeError("cudaMalloc: out of memory")
        return made(self, image)

    monkeypatch.setattr(CudaChain, "_made", refuse)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    if refusals == 1:
        fast(z)
    else:
        with pytest.raises(torch.OutOfMemoryError, match="CUDA chain: cudaMalloc"):
            fast(z)
    assert len(calls) == 2
    assert emptied == [True]


def test_explain_says_what_runs_each_convolution():
    require(BACKEND)
    _, fast, z = networks(CASES[0], torch.float32, backend=BACKEND)
    fast(z)
    text = fast.explain((16, 20))
    lines = [line for line in text.splitlines() if "conv " in line]
    assert lines
    assert all("CUDA chain: " in line for line in lines)
    assert text.splitlines()[-1].startswith('backend "auto" on a GPU: cuda, triton')


def test_a_module_moved_elsewhere_runs_on_pytorch():
    require(BACKEND)
    net = one_conv(nn.ReLU()).to(device_of(BACKEND))
    fast = oes.sparsify(net, kept(net), backend=BACKEND, verify=False).to("meta")
    assert fast(torch.zeros(1, 4, 8, 8, dtype=torch.float64, device="meta")).device.type == "meta"
