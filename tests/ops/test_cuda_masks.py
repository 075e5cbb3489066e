"""The CUDA kernels of the masks: the bits of the CPU's kernels, and N networks at once as N calls for one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import device_of, require

from oes_fast import BackendError, InputError
from oes_fast.backends import resolve
from oes_fast.cuda_kernels.gumbel_mask import gumbel_mask_backward as launch_backward
from oes_fast.cuda_kernels.gumbel_mask import gumbel_mask_out as launch_gumbel_mask
from oes_fast.cuda_kernels.mask_update import mask_update as launch_update
from oes_fast.cuda_kernels.masked_adam import masked_adam as launch_adam
from oes_fast.cuda_kernels.philox import logistic_from_bits as launch_logistic
from oes_fast.cuda_kernels.philox import random_bits as launch_bits
from oes_fast.functional import batch_norm_act, gumbel_mask, mask_update, masked_adam
from oes_fast.ops._clock import Clock

pytestmark = [pytest.mark.cuda_kernel, pytest.mark.device, pytest.mark.memcheck]

DTYPES = (torch.float32, torch.float64)
SIZES = st.one_of(st.integers(0, 70), st.sampled_from([1023, 1024, 1025, 4097]))
EXTREMES = (1e4, -1e4, math.inf, -math.inf, 0.0, -0.0, 43.0, -43.1, 88.0, 3e38, 1e-40, -1e-40)
NUMBERS = {"kl": 1e-3, "density": 0.1, "lr": 0.05, "beta1": 0.8, "beta2": 0.99, "eps": 1e-8}


def draw(*shape, dtype, seed, scale=1.0):
    return scale * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def at(tensor, offset):
    """A copy that begins ``offset`` elements behind the beginning of its memory."""
    memory = tensor.new_empty(offset + tensor.numel())
    memory[offset:] = tensor.flatten()
    return memory[offset:].view(tensor.shape)


def same(ours, theirs):
    return torch.equal(ours.cpu().nan_to_num(nan=7.0), theirs.cpu().nan_to_num(nan=7.0))


@given(
    numel=SIZES,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([0.2, 0.7, 5.0]),
    scale=st.sampled_from([1.0, 10.0]),
    offset=st.integers(0, 3),
    kl=st.sampled_from([0.0, 1e-9, 1.0]),
    kl_value=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_bits_are_those_of_the_cpu(numel, dtype, seed, step, temperature, scale, offset, kl, kl_value):
    require("cpu")
    require("cuda")
    logits = draw(numel, dtype=dtype, seed=0, scale=scale)
    logits[: len(EXTREMES)] = torch.tensor(EXTREMES, dtype=dtype)[:numel]
    w0, grad = (draw(numel, dtype=dtype, seed=s) for s in (1, 2))
    noise = {"seed": seed, "step": step, "temperature": temperature}
    found = {}
    for backend in ("cpu", "cuda"):
        given = [at(t.to(device_of(backend)), offset) for t in (w0, logits, grad)]
        leaves = [t.clone().requires_grad_() for t in given[:2]]
        masked = gumbel_mask(*leaves, **noise, backend=backend)
        found[backend] = [masked.detach(), *torch.autograd.grad(masked, leaves, given[2])]
        state, moments = given[1], [torch.zeros_like(given[1]) for _ in range(2)]
        value = mask_update(
            state, given[2], given[0], *moments, **noise, kl=kl, kl_value=kl_value, backend=backend
        )
        found[backend] += [state, *moments]
        if kl_value and value.isfinite():  # its sum is in another order, in double precision
            found[backend].append(value.float())
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        if ours.ndim:
            assert same(ours, theirs)
        else:
            torch.testing.assert_close(ours.cpu(), theirs, rtol=3e-7, atol=0)


@given(
    numel=SIZES,
    dtype=st.sampled_from(DTYPES),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.0), (0.3, 0.9)]),
    masked=st.booleans(),
    offset=st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_bits_of_adam_are_those_of_the_cpu(numel, dtype, betas, masked, offset):
    require("cpu")
    require("cuda")
    keep = draw(numel, dtype=dtype, seed=3) > 0
    found = {}
    for backend in ("cpu", "cuda"):
        device = device_of(backend)
        state = [at(draw(numel, dtype=dtype, seed=0).to(device), offset)]
        state += [torch.zeros_like(state[0]) for _ in range(2)]
        mask = at(keep.to(device), offset) if masked else None
        for step in (0, 1, 1000):
            grad = draw(numel, dtype=dtype, seed=step).to(device)
            if mask is not None:
                grad[~mask] = math.nan
            masked_adam(state[0], grad, *state[1:], step=step, betas=betas, mask=mask, backend=backend)
        found[backend] = state
    assert all(same(ours, theirs) for ours, theirs in zip(found["cuda"], found["cpu"], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [0, 1, 6, 64, 4099])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("clocked", [False, True])
def test_networks_at_once_are_as_one_by_one(dtype, numel, shared, clocked):
    """Each with a seed of its own; w0 and the mask of each, or of all."""
    require("cuda")
    device, networks, step = device_of("cuda"), 3, 7
    clock = Clock(device, lr=NUMBERS["lr"], betas=(NUMBERS["beta1"], NUMBERS["beta2"]), rows=4, dtype=dtype)
    clock.show(step)
    ticks = {"ticks": clock.ticks} if clocked else {}
    corrections = {"corrections": clock.corrections} if clocked else {}
    told = 0 if clocked else step
    seeds = [5, 2**63 + 1, 0]
    seed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in seeds], device=device)
    logits, grad = (draw(networks, numel, dtype=dtype, seed=s).to(device) for s in (0, 1))
    of_each = [draw(networks, numel, dtype=dtype, seed=s).to(device) for s in (2, 3)]
    w0, keep = (t[0].clone() if shared else t for t in of_each)
    mask = keep > 0

    def row(tensor, network):
        return tensor if tensor.ndim == 1 else tensor[network].clone()

    masked = torch.empty_like(logits)
    launch_gumbel_mask(masked, w0, logits, seed, told, 0.2, **ticks)
    gradients = launch_backward(grad, w0, logits, seed, step, 0.2, True, True)
    search = [logits.clone(), torch.zeros_like(logits), torch.zeros_like(logits)]
    values = launch_update(
        search[0], grad, w0, *search[1:], seed, told, 0.2, *NUMBERS.values(), True, **ticks, **corrections
    )
    training = [logits.clone(), torch.zeros_like(logits), torch.zeros_like(logits)]
    adam = [NUMBERS[name] for name in ("lr", "beta1", "beta2", "eps")]
    launch_adam(training[0], grad, *training[1:], mask, told, *adam, **ticks, **corrections)

    assert values.shape == (networks,)
    for network in range(networks):
        noise = {"seed": seeds[network], "step": step, "backend": "cuda"}
        leaves = [row(t, network).clone().requires_grad_() for t in (w0, logits)]
        one = gumbel_mask(*leaves, **noise)
        assert torch.equal(masked[network], one)
        for ours, theirs in zip(gradients, torch.autograd.grad(one, leaves, grad[network]), strict=True):
            assert torch.equal(ours[network], theirs)
        state = [row(logits, network), *(torch.zeros_like(logits[0]) for _ in range(2))]
        options = {"lr": NUMBERS["lr"], "betas": (NUMBERS["beta1"], NUMBERS["beta2"])}
        value = mask_update(
            state[0],
            grad[network],
            row(w0, network),
            *state[1:],
            **noise,
            **options,
            kl=NUMBERS["kl"],
            density=NUMBERS["density"],
            kl_value=True,
        )
        assert torch.equal(values[network], value)
        assert all(torch.equal(ours[network], theirs) for ours, theirs in zip(search, state, strict=True))
        state = [row(logits, network), *(torch.zeros_like(logits[0]) for _ in range(2))]
        masked_adam(
            state[0],
            grad[network],
            *state[1:],
            step=step,
            mask=row(mask, network),
            **options,
            backend="cuda",
        )
        assert all(torch.equal(ours[network], theirs) for ours, theirs in zip(training, state, strict=True))


def test_same_bits_in_every_run():
    """The KL value too, which many blocks add to."""
    require("cuda")
    start = [draw(50_001, dtype=torch.float32, seed=s).to(device_of("cuda")) for s in range(3)]

    def run():
        logits, grad, w0 = (t.clone() for t in start)
        moments = [torch.zeros_like(logits) for _ in range(2)]
        value = mask_update(logits, grad, w0, *moments, seed=1, step=2, kl_value=True, backend="cuda")
        return value, logits, *moments

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_launches_check_what_they_are_given():
    """Since they pass addresses on."""
    require("cuda")
    device = device_of("cuda")
    logits, w0, out = (torch.zeros(2, 8, device=device) for _ in range(3))
    seed = torch.zeros(2, dtype=torch.int64, device=device)
    for name, arguments in (
        ("masked", (out[:, :4], w0, logits, seed)),
        ("masked", (torch.zeros(8, device=device), w0, logits, seed)),
        ("masked", (out.double(), w0, logits, seed)),
        ("masked", (torch.zeros(8, 2, device=device).T, w0, logits, seed)),
        ("w0", (out, torch.zeros(7, device=device), logits, seed)),
        ("w0", (out, torch.zeros(16, device=device)[::2], logits, seed)),
        ("logits", (out, w0, logits[None], seed)),
        ("logits", (out.half(), w0.half(), logits.half(), seed)),
        ("seed", (out, w0, logits, seed[:1])),
        ("seed", (out, w0, logits, seed.int())),
    ):
        with pytest.raises(InputError, match=f"^{name}: expected"):
            launch_gumbel_mask(*arguments, 0, 0.2)
    with pytest.raises(InputError, match=r"^expected a tensor on .*, got one on meta"):
        launch_gumbel_mask(*(t.to("meta") for t in (out, w0, logits)), 0, 0, 0.2)
    for name, clock in (
        ("ticks", {"ticks": torch.zeros(1, device=device), "corrections": torch.ones(4, 2, device=device)}),
        ("corrections", {"ticks": seed[:1], "corrections": torch.ones(4, 3, device=device)}),
        ("corrections", {"ticks": seed[:1], "corrections": torch.ones(4, 2, device=device).double()}),
    ):
        with pytest.raises(InputError, match=f"^{name}: expected"):
            launch_adam(logits, w0, out, out.clone(), None, 0, 0.1, 0.9, 0.99, 1e-8, **clock)
    with pytest.raises(ValueError, match=r"^corrections: expected rows"):
        launch_adam(logits, w0, out, out.clone(), None, 0, 0.1, 0.9, 0.99, 1e-8, ticks=seed[:1])
    with pytest.raises(InputError, match=r"^mask: expected shape"):
        launch_adam(logits, w0, out, out.clone(), torch.ones(4, device=device) > 0, 0, 0.1, 0.9, 0.99, 1e-8)
    no_networks = torch.zeros(0, 8, device=device)
    with pytest.raises(ValueError, match=r"^networks: expected 1 to 65535, got 0"):
        launch_gumbel_mask(no_networks, w0[0], no_networks, 0, 0, 0.2)


def test_noise_is_written_to_whole_arrays_alone():
    require("cuda")
    noise, words = (torch.zeros(8, dtype=d, device=device_of("cuda")) for d in (torch.float32, torch.int64))
    with pytest.raises(InputError, match="words: expected a contiguous tensor"):
        launch_bits(words[::2], 0, 0, 0)
    with pytest.raises(InputError, match="noise: expected a contiguous tensor"):
        launch_logistic(noise[::2], words[:4])
    with pytest.raises(InputError, match="bits: expected a contiguous tensor"):
        launch_logistic(noise[:4], words[::2])


def test_auto_never_emulates(monkeypatch):
    """On CPU tensors, whatever is switched on: the emulation is for tests."""
    require("cuda")
    assert resolve("auto", "cpu", ("cpu", "cuda", "reference")) != "cuda"
    monkeypatch.setenv("OES_FAST_DISABLE_BACKENDS", "cpu")
    assert resolve("auto", "cpu", ("cpu", "cuda", "reference")) == "reference"


def test_other_operations_do_not_offer_it():
    require("cuda")
    x = torch.zeros(1, 2, 4, 4, device=device_of("cuda"))
    vectors = [torch.ones(2, device=device_of("cuda")) for _ in range(2)]
    with pytest.raises(BackendError, match="'cuda' does not have the operation"):
        batch_norm_act(x, *vectors, backend="cuda")
    assert hasattr(torch.ops.oes_fast, "masked_adam_cuda")
    assert not hasattr(torch.ops.oes_fast, "batch_norm_act_cuda")
