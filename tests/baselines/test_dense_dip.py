"""Dense DIP against torch.optim.Adam on the network as it is, in float64, and its noise on every backend."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import assert_close, build_problem, skip_unless_available, unchanged
from kernel_backends import EMULATED

import oes_fast as oes
from oes_fast import reference
from oes_fast.flat import flatten
from oes_fast.reference.philox import STEP_INPUT_NOISE

SETTINGS = [(0.0, 0.0), (1 / 30, 0.0), (0.0, 0.3), (1 / 30, 0.3)]  # of input_noise and weight_decay

pytestmark = [
    pytest.mark.usefixtures("unverified"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 20))


def noisy_input(z, std, seed, step):
    bits = reference.random_bits(seed, step, z.numel(), stream=STEP_INPUT_NOISE)
    return z + std * reference.normal_from_bits(bits, z.dtype).view_as(z)


def by_torch(problem, *, steps, std, decay, seed, lr=1e-2):
    """Losses and images of the steps, and the network after them."""
    net = copy.deepcopy(problem.net).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, weight_decay=decay)
    losses = []
    for step in range(steps):
        loss = (net(noisy_input(problem.z, std, seed, step)) - problem.noisy).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = copy.deepcopy(net)(problem.z).detach()
    return losses, output, net


@pytest.mark.parametrize(
    ("backend", "std", "decay"),
    [
        *((backend, std, decay) for backend in ("reference", "cpu") for std, decay in SETTINGS),
        *((backend, 1 / 30, 0.3) for backend in ("torch", *EMULATED)),
    ],
)
def test_it_is_adam_on_the_whole_network(small, backend, std, decay):
    skip_unless_available(backend)
    options = {"steps": 6, "lr": 1e-2, "weight_decay": decay, "input_noise": std, "seed": 7}
    with unchanged(small.net, small.z, small.noisy):
        fit = oes.baselines.dense_dip(
            small.net, small.z, small.noisy, record_every=1, clean=small.clean, backend=backend, **options
        )
    losses, output, net = by_torch(small, steps=6, std=std, decay=decay, seed=7)
    assert fit.history.loss[:-1] == pytest.approx(losses, rel=1e-9)
    assert_close(fit.output, output, rtol=1e-8)
    # A bias before a batch norm has no gradient but rounding, which Adam amplifies; so has what it shifts.
    for name, tensor in net.state_dict().items():
        if not name.endswith(("bias", "running_mean")):
            assert_close(fit.net.state_dict()[name], tensor, rtol=1e-7)
    assert fit.mask.flat.all()
    assert fit.steps == 6
    assert isinstance(fit, oes.TrainResult)


def test_without_noise_and_decay_it_is_a_training_with_the_full_mask(small):
    full = oes.Mask.from_flat(small.net, torch.ones(flatten(small.net).numel(), dtype=torch.bool))
    options = {"steps": 5, "lr": 1e-2, "backend": "reference", "average": 0.9, "clean": small.clean}
    dense = oes.baselines.dense_dip(small.net, small.z, small.noisy, **options)
    sparse = oes.train_sparse(small.net, full, small.z, small.noisy, **options)
    assert torch.equal(dense.output, sparse.output)
    assert torch.equal(dense.average, sparse.average)
    assert dense.report() == sparse.report()


@pytest.mark.parametrize("backend", ["torch", "cpu", *EMULATED])
def test_noise_in_float32_is_that_of_the_reference(backend):
    skip_unless_available(backend)
    p = build_problem(size=(16, 20), dtype=torch.float32)
    options = {"steps": 3, "input_noise": 0.1, "seed": 2**63 + 1, "record_every": 1}
    losses = [
        oes.baselines.dense_dip(p.net, p.z, p.noisy, backend=name, **options).history.loss
        for name in ("reference", backend)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_noise_is_that_of_its_seed(small):
    def losses(seed):
        fit = oes.baselines.dense_dip(
            small.net, small.z, small.noisy, steps=3, input_noise=0.1, seed=seed, record_every=1
        )
        return fit.history.loss

    assert losses(1) == losses(1)
    assert losses(1)[0] != losses(2)[0]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_interrupted_it_goes_on_bit_for_bit(small, backend, tmp_path):
    skip_unless_available(backend)
    options = {"steps": 9, "lr": 1e-2, "weight_decay": 0.1, "input_noise": 0.05, "seed": 3, "average": 0.9}
    options |= {"backend": backend, "clean": small.clean, "record_every": 2}
    whole = oes.baselines.dense_dip(small.net, small.z, small.noisy, **options)
    options |= {"checkpoint": tmp_path / "checkpoint", "resume": True}
    first = oes.baselines.dense_dip(
        small.net, small.z, small.noisy, callback=lambda info: info.step == 4, **options
    )
    assert first.interrupted
    rest = oes.baselines.dense_dip(small.net, small.z, small.noisy, **options)
    assert torch.equal(rest.output, whole.output)
    assert torch.equal(rest.average, whole.average)
    assert torch.equal(flatten(rest.net), flatten(whole.net))
    assert rest.history.loss[-3:] == whole.history.loss[-3:]


@pytest.mark.parametrize("name", ["weight_decay", "input_noise", "seed"])
def test_a_checkpoint_of_other_settings_is_refused(small, name, tmp_path):
    options = {"steps": 2, "weight_decay": 0.1, "input_noise": 0.05, "seed": 3, "backend": "reference"}
    options |= {"checkpoint": tmp_path / "checkpoint", "resume": True}
    oes.baselines.dense_dip(small.net, small.z, small.noisy, **options)
    with pytest.raises(oes.CheckpointError, match=f"with {name} = "):
        oes.baselines.dense_dip(small.net, small.z, small.noisy, **(options | {name: 2}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_decay", -1e-3),
        ("weight_decay", torch.nan),
        ("weight_decay", "1e-3"),
        ("input_noise", -0.1),
        ("input_noise", torch.inf),
        ("input_noise", None),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("average", 1.0),
        ("lr", 0.0),
        ("steps", -1),
        ("z", torch.zeros(1, 3, 16, 20, dtype=torch.float64)),
        ("noisy", torch.zeros(1, 3, 16, 21, dtype=torch.float64)),
    ],
)
@pytest.mark.parametrize("baseline", [oes.baselines.dense_dip, oes.baselines.sgld])
def test_bad_arguments_are_named(small, baseline, name, value):
    arguments = {"net": small.net, "z": small.z, "noisy": small.noisy, "steps": 1} | {name: value}
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        baseline(**arguments)
