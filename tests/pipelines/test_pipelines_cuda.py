"""Search and training on the CUDA engine against the reference: on a GPU, or emulated with few steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import assert_close
from kernel_backends import device_of, require
from short_runs import BOTH, outcome, start

import oes_fast as oes
from oes_fast.io.files import load_tensors
from oes_fast.pipelines import functions
from oes_fast.pipelines.functions import make_function
from oes_fast.rewrite.run.chain_cuda import CudaChain

pytestmark = [
    pytest.mark.cuda_kernel,
    pytest.mark.device,
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

BACKEND = "cuda"


@pytest.fixture
def small(make_problem):
    """A problem that the emulation runs in little time, where the backend takes its tensors."""

    def made(dtype=torch.float64, **options):
        require(BACKEND)
        p = make_problem(size=(16, 12), dtype=dtype, num_channels_down=(3, 4), **options)
        device = device_of(BACKEND)
        return p._replace(
            net=p.net.to(device), z=p.z.to(device), noisy=p.noisy.to(device), clean=p.clean.to(device)
        )

    return made


@BOTH
@pytest.mark.parametrize("options", [{}, {"pad": "zero", "act_fun": "SiLU"}], ids=str)
def test_as_the_reference(small, run, options):
    p = small(**options)
    results = [start(run, p, steps=4, backend=backend, verify=False) for backend in ("reference", BACKEND)]
    assert results[1].backend == BACKEND
    for name in ("loss", "psnr"):
        np.testing.assert_allclose(results[1].history[name], results[0].history[name], rtol=1e-8)
    assert_close(outcome(run, results[1]), outcome(run, results[0]), rtol=1e-6)
    assert_close(results[1].output, results[0].output, rtol=1e-6)


def test_running_statistics_are_those_of_pytorch(small):
    p = small()
    nets = [start("train", p, steps=3, backend=backend, verify=False).net for backend in ("torch", BACKEND)]
    for (name, theirs), (_, ours) in zip(nets[0].named_buffers(), nets[1].named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9, msg=name)


@BOTH
@pytest.mark.parametrize("precision", ["float32", "tf32", "tf32x3"])
def test_near_the_reference_in_float32(small, run, precision):
    p = small(torch.float32)
    reference = start(run, p, steps=2, verify=False)
    fast = start(run, p, steps=2, backend=BACKEND, precision=precision, verify=False)
    rtol = 0.05 if precision == "tf32" else 2e-3
    np.testing.assert_allclose(fast.history.loss, reference.history.loss, rtol=rtol)


@BOTH
def test_is_verified_like_any_other_backend(small, run, monkeypatch):
    p = small(torch.float32)
    assert start(run, p, steps=0, backend=BACKEND, verify=True).backend == BACKEND
    evaluate = CudaChain._evaluate

    def wrong(self, *arguments):
        image, loss = evaluate(self, *arguments)
        return image * 1.1, loss

    monkeypatch.setattr(CudaChain, "_evaluate", wrong)
    with pytest.warns(oes.OESWarning, match="computes something else"):
        assert start(run, p, steps=0, backend=BACKEND, verify=True).backend == "reference"


@BOTH
def test_the_same_bits_again_and_after_a_resume(small, run, tmp_path):
    p = small(torch.float32)
    options = {"backend": BACKEND, "verify": False, "record_every": 2}
    whole, again = (start(run, p, steps=4, **options) for _ in range(2))
    assert torch.equal(outcome(run, whole), outcome(run, again))
    assert torch.equal(whole.output, again.output)
    path = tmp_path / "checkpoint"
    start(run, p, steps=2, checkpoint=path, **options)
    resumed = start(run, p, steps=4, checkpoint=path, resume=True, **options)
    assert torch.equal(outcome(run, resumed), outcome(run, whole))
    assert torch.equal(resumed.output, whole.output)
    assert resumed.history.loss[-1] == whole.history.loss[-1]


@BOTH
def test_a_checkpoint_names_backend_and_precision(small, run, tmp_path):
    p = small(torch.float32)
    path = tmp_path / "checkpoint"
    options = {"backend": BACKEND, "verify": False, "checkpoint": path}
    start(run, p, steps=1, precision="tf32x3", **options)
    assert load_tensors(path)
    with pytest.raises(oes.CheckpointError, match="precision"):
        start(run, p, steps=2, precision="float32", resume=True, **options)
    with pytest.raises(oes.CheckpointError, match="backend"):
        start(run, p, steps=2, precision="tf32x3", resume=True, **(options | {"backend": "torch"}))


def test_average_and_mask_options(small):
    p = small()
    fits = [
        start("train", p, steps=3, average=0.5, backend=backend, verify=False)
        for backend in ("reference", BACKEND)
    ]
    assert_close(fits[1].average, fits[0].average, rtol=1e-6)
    found = [
        start("search", p, steps=2, mask_option="mean", draws=2, backend=backend, verify=False)
        for backend in ("reference", BACKEND)
    ]
    assert torch.equal(found[0].mask.flat, found[1].mask.flat)
    assert_close(found[1].output, found[0].output, rtol=1e-6)


def test_a_search_of_several_levels_is_refused_by_name(small):
    with pytest.raises(oes.BackendError, match="cuda"):
        start("search", small(), levels=3, backend=BACKEND)


def test_auto_takes_the_cpu_on_the_cpu(small):
    p = small()
    if p.z.device.type == "cpu":
        _, chosen = make_function(p.net, p.z, p.mask, "auto", verify=False)
        assert chosen != BACKEND


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("one_chain", [True, False])
def test_auto_leaves_networks_of_several_chains_to_triton(monkeypatch, make_problem, one_chain, there):
    class Rewritten:
        def __init__(self, net, z, mask, backend, **options):
            self.backend, self.in_one_chain = backend, one_chain

    def resolve(backend, device, candidates):
        if backend == "triton" and not there:
            raise oes.BackendError("no Triton")
        return "cuda" if backend == "auto" else backend

    monkeypatch.setattr(functions, "resolve", resolve)
    monkeypatch.setattr(functions, "RewrittenFunction", Rewritten)
    p = make_problem()
    function, name = functions.make_function(p.net, p.z, p.mask, "auto")
    assert function.backend == name == ("triton" if there and not one_chain else "cuda")
    assert functions.make_function(p.net, p.z, p.mask, "cuda")[1] == "cuda"
