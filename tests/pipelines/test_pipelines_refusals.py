"""Arguments of search and training that are refused, each by its name, and some that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import unchanged
from short_runs import BOTH, start
from torch import nn

import oes_fast as oes


def changed(value, dtype=None, at=None):
    value = value.clone() if dtype is None else value.to(dtype)
    if at is not None:
        value[0, 0, 1, 2] = at
    return value


BAD = {
    "NaN in noisy": ("noisy", lambda p: {"noisy": changed(p.noisy, at=torch.nan)}),
    "infinite noisy": ("noisy", lambda p: {"noisy": changed(p.noisy, at=torch.inf)}),
    "NaN in clean": ("clean", lambda p: {"clean": changed(p.clean, at=torch.nan)}),
    "NaN in z": ("z", lambda p: {"z": changed(p.z, at=torch.nan)}),
    "noisy of another dtype": ("noisy", lambda p: {"noisy": p.noisy.float()}),
    "noisy of integers": ("noisy", lambda p: {"noisy": (p.noisy * 255).byte()}),
    "z of another dtype": ("z", lambda p: {"z": p.z.float()}),
    "clean of another dtype": ("clean", lambda p: {"clean": p.clean.float()}),
    "noisy elsewhere": ("noisy", lambda p: {"noisy": p.noisy.to("meta")}),
    "z elsewhere": ("z", lambda p: {"z": p.z.to("meta")}),
    "noisy without batch": ("noisy", lambda p: {"noisy": p.noisy[0]}),
    "noisy of another size": ("noisy", lambda p: {"noisy": p.noisy[..., 1:]}),
    "noisy of other channels": ("net", lambda p: {"noisy": p.noisy[:, :1], "clean": None}),
    "clean of another size": ("clean", lambda p: {"clean": p.clean[..., 1:]}),
    "z of two": ("z", lambda p: {"z": p.z.repeat(2, 1, 1, 1)}),
    "z of other channels": ("z", lambda p: {"z": p.z[:, :3]}),
    "z as an array": ("z", lambda p: {"z": p.z.numpy()}),
    "net as a function": ("net", lambda p: {"net": p.net.forward}),
    "net without parameters": ("net", lambda p: {"net": nn.Identity()}),
    "sparse noisy": ("noisy", lambda p: {"noisy": p.noisy.to_sparse()}),
    "sparse z": ("z", lambda p: {"z": p.z.to_sparse()}),
    "sparse clean": ("clean", lambda p: {"clean": p.clean.to_sparse()}),
    "too many steps": ("steps", lambda p: {"steps": 2**32}),
    "resume as text": ("resume", lambda p: {"resume": "no"}),
    "resume as a tensor": ("resume", lambda p: {"resume": torch.zeros(0)}),
    "negative steps": ("steps", lambda p: {"steps": -1}),
    "half a step": ("steps", lambda p: {"steps": 1.5}),
    "lr 0": ("lr", lambda p: {"lr": 0.0}),
    "lr NaN": ("lr", lambda p: {"lr": torch.nan}),
    "lr as text": ("lr", lambda p: {"lr": "1e-2"}),
    "record_every 0": ("record_every", lambda p: {"record_every": 0}),
    "unknown backend": ("backend", lambda p: {"backend": "opencl"}),
    "callback no function": ("callback", lambda p: {"callback": 3}),
    "resume without checkpoint": ("resume", lambda p: {"resume": True}),
    "negative seconds": ("checkpoint_seconds", lambda p: {"checkpoint_seconds": -1.0}),
}
BAD_SEARCH = {
    "density 0": ("density", lambda p: {"density": 0.0}),
    "density 1": ("density", lambda p: {"density": 1.0}),
    "temperature 0": ("temperature", lambda p: {"temperature": 0.0}),
    "negative kl": ("kl", lambda p: {"kl": -1e-9}),
    "infinite kl": ("kl", lambda p: {"kl": torch.inf}),
    "negative seed": ("seed", lambda p: {"seed": -1}),
    "large seed": ("seed", lambda p: {"seed": 2**64}),
    "unknown mask option": ("mask_option", lambda p: {"mask_option": "det"}),
    "no draws": ("draws", lambda p: {"draws": 0}),
    "one level": ("levels", lambda p: {"levels": 1}),
}
BAD_TRAIN = {
    "mask of booleans": ("mask", lambda p: {"mask": p.mask.flat}),
    "mask of another network": (
        "mask", lambda p: {"mask": oes.Mask(p.mask.flat[1:], "1-0123456789ab")}
    ),
    "average 1": ("average", lambda p: {"average": 1.0}),
    "average True": ("average", lambda p: {"average": True}),
}  # fmt: skip
CASES = [
    *(("search", *case) for case in (BAD | BAD_SEARCH).values()),
    *(("train", *case) for case in (BAD | BAD_TRAIN).values()),
]
IDS = [*(f"search: {i}" for i in BAD | BAD_SEARCH), *(f"train: {i}" for i in BAD | BAD_TRAIN)]


@pytest.mark.parametrize(("run", "name", "changes"), CASES, ids=IDS)
def test_bad_arguments_are_named(problem, run, name, changes):
    with unchanged(problem.net), pytest.raises(oes.InputError, match=rf"^{name}\b.*: "):
        start(run, problem, **changes(problem))


@BOTH
def test_backends_that_cannot_run_are_refused(problem, run):
    missing = [name for name, state in oes.backends().items() if not state]
    assert set(oes.backends()) >= {"reference", "torch", "cpu", "triton", "cuda"}
    for name in missing:
        with pytest.raises(oes.BackendError, match=name):
            start(run, problem, backend=name)
    assert start(run, problem, backend="auto").backend in oes.backends()


WRONG = {
    "verify": ("no", "verify: expected True or False, got 'no'"),
    "checkpoint": (5, "checkpoint: expected a file name or None, got int"),
    "lr": (torch.tensor(0.1), "lr: expected a number, got Tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_another_kind_are_refused_by_name(name):
    value, message = WRONG[name]
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 3, 1))
    z, noisy = torch.rand(1, 4, 8, 8), torch.rand(1, 3, 8, 8)
    mask = oes.Mask.from_flat(net, torch.ones(15))
    with pytest.raises(oes.InputError, match=message):
        oes.train_sparse(net, mask, z, noisy, steps=1, **{name: value})
    with pytest.raises(oes.InputError, match=message):
        oes.search_mask(net, z, noisy, steps=1, density=0.5, **{name: value})


@BOTH
@pytest.mark.parametrize("name", ["lr", "input_noise", "tv", "weight_decay", "kl", "temperature"])
def test_numbers_that_the_network_has_not_are_refused(make_problem, run, name):
    if (name, run) in {("weight_decay", "search"), ("kl", "train"), ("temperature", "train")}:
        return
    said = rf"^{name}: expected a number of float32, which go to 3.4e\+38, got 1e\+39$"
    with pytest.raises(oes.InputError, match=said):
        start(run, make_problem(dtype=torch.float32), **{name: 1e39})


def test_a_temperature_that_is_0_in_the_network_is_refused(make_problem):
    with pytest.raises(oes.InputError, match=r"^temperature: expected a finite number >= 1.17.*e-38, got"):
        start("search", make_problem(dtype=torch.float32), temperature=1e-40)


def test_numbers_of_numpy_are_numbers():
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 3, 1))
    z, noisy = torch.rand(1, 4, 8, 8), torch.rand(1, 3, 8, 8)
    options = {
        "steps": np.int64(2),
        "density": np.float32(0.5),
        "lr": np.float32(0.1),
        "seed": np.uint64(2**64 - 1),
    }
    found = oes.search_mask(net, z, noisy, **options)
    expected = oes.search_mask(net, z, noisy, steps=2, density=0.5, lr=float(np.float32(0.1)), seed=2**64 - 1)
    assert torch.equal(found.logits, expected.logits)


@pytest.mark.filterwarnings("ignore::oes_fast.OESWarning")
def test_inputs_the_network_does_not_take_are_an_input_error():
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 3, 1))
    z, noisy = torch.rand(1, 4, 8, 8), torch.rand(1, 3, 8, 8)
    for backend in ("auto", "reference"):
        with pytest.raises(
            oes.InputError, match=r"net: expected a network that takes z of shape \(1, 4, 8, 8\)"
        ):
            oes.search_mask(net, z, noisy, steps=1, density=0.5, backend=backend)
    with pytest.raises(oes.InputError, match=r"got parameter 0.weight on the meta device"):
        oes.search_mask(net.to("meta"), z.to("meta"), noisy.to("meta"), steps=1, density=0.5)
    with pytest.raises(oes.InputError, match=r"mask: expected an oes_fast.Mask, got Tensor"):
        oes.sparsify(net, torch.ones(27))
    for call in (oes.fingerprint, lambda net: oes.Mask.from_flat(net, [True])):
        with pytest.raises(oes.InputError, match=r"net: expected a torch.nn.Module, got NoneType"):
            call(None)
    with pytest.raises(oes.InputError, match=r"output: expected a torch.Tensor, got ndarray"):
        oes.psnr(np.zeros(3), torch.zeros(3))
    with pytest.raises(oes.InputError, match="clean: expected dtype"):
        oes.psnr(torch.zeros(3), torch.zeros(3, dtype=torch.uint8))
