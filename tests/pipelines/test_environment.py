"""Resuming keeps the choices of the run, and says where its bits cannot be kept."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from kernel_backends import require
from safetensors import safe_open

import oes_fast as oes
from oes_fast import autotune_cache
from oes_fast.io.files import load_tensors, save_tensors
from oes_fast.pipelines import checkpoint as checkpoints
from oes_fast.pipelines import environment as environments
from oes_fast.rewrite import conv_algorithm


@pytest.fixture
def problem():
    net = oes.models.skip(4, 3, num_channels_down=(8, 12), filter_size_down=3, seed=0)
    z, noisy = oes.noise_input(4, (24, 40), seed=0), torch.rand(1, 3, 24, 40)
    keep = (
        torch.rand(sum(p.numel() for p in net.parameters()), generator=torch.Generator().manual_seed(0)) < 0.6
    )
    return net, oes.Mask.from_flat(net, keep), z, noisy


pytestmark = pytest.mark.usefixtures("no_known_choices")


def train(problem, steps, path=None, **options):
    net, mask, z, noisy = problem
    return oes.train_sparse(
        net, mask, z, noisy, steps=steps, checkpoint=path, checkpoint_seconds=1e9, verify=False, **options
    )


def metadata_of(path):
    with safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()["oes_fast"])


def rewritten(path, **entries):
    """Change entries of a checkpoint's metadata."""
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, metadata | entries)


@pytest.mark.parametrize("dense", [True, False])
def test_resuming_keeps_the_choices_whatever_is_measured_now(monkeypatch, problem, tmp_path, dense):
    require("cpu")
    path = tmp_path / "run.ckpt"
    times = iter(range(1000)) if dense else iter(range(1000, 0, -1))  # the dense form is timed first
    monkeypatch.setattr(conv_algorithm, "_time", lambda *_: next(times))
    whole = train(problem, 8)
    assert any(
        key.startswith("form ") and value is dense for key, value in autotune_cache.choices_in_use().items()
    )
    train(problem, 4, path)
    assert metadata_of(path)["choices"] == autotune_cache.choices_in_use()

    # Another process, with other choices on its disk and nothing but the other one to measure.
    autotune_cache._on_disk.cache_clear()
    autotune_cache._in_use.clear()
    monkeypatch.setenv("OES_FAST_CACHE_DIR", str(tmp_path / "elsewhere"))
    others = iter(range(1000, 0, -1)) if dense else iter(range(1000))
    monkeypatch.setattr(conv_algorithm, "_time", lambda *_: next(others))
    with warnings.catch_warnings():
        warnings.simplefilter("error", oes.CheckpointWarning)
        fit = train(problem, 8, path, resume=True)
    assert torch.equal(fit.output, whole.output)
    assert any(
        key.startswith("form ") and value is dense for key, value in autotune_cache.choices_in_use().items()
    )


def test_another_number_of_threads_is_said(problem, tmp_path):
    path = tmp_path / "run.ckpt"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        train(problem, 1, path)
        torch.set_num_threads(2)
        with pytest.warns(
            oes.CheckpointWarning, match=r"run.ckpt: .*made with threads 1 \(here 2\).*other bits"
        ):
            assert train(problem, 2, path, resume=True).steps == 2
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error", oes.CheckpointWarning)
            torch.set_num_threads(2)
            train(problem, 2, path, resume=True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("key", ["torch", "oes_fast", "processor", "instruction set"])
def test_another_environment_is_said(problem, tmp_path, key):
    path = tmp_path / "run.ckpt"
    train(problem, 1, path)
    here = environments.environment(torch.device("cpu"))
    assert metadata_of(path)["environment"] == here
    rewritten(path, environment=here | {key: "other"})
    with pytest.warns(oes.CheckpointWarning, match=rf"made with {key} other \(here "):
        train(problem, 2, path, resume=True)


def test_a_search_says_so_too(problem, tmp_path):
    net, _, z, noisy = problem
    path = tmp_path / "search.ckpt"
    options = {"density": 0.5, "checkpoint": path, "checkpoint_seconds": 1e9, "verify": False}
    oes.search_mask(net, z, noisy, steps=1, **options)
    rewritten(path, environment={"threads": 77})
    with pytest.warns(oes.CheckpointWarning, match=r"threads 77 \(here "):
        oes.search_mask(net, z, noisy, steps=2, resume=True, **options)


@pytest.mark.parametrize(
    "entries", [{"environment": None}, {"choices": [1]}, {"environment": 3, "choices": None}]
)
def test_checkpoints_that_say_nothing_are_taken(problem, tmp_path, entries):
    path = tmp_path / "run.ckpt"
    train(problem, 1, path)
    rewritten(path, **entries)
    with warnings.catch_warnings():
        warnings.simplefilter("error", oes.CheckpointWarning)
        train(problem, 2, path, resume=True)


def test_choices_of_a_file_that_is_none_are_left_to_the_load(tmp_path):
    path = tmp_path / "no.ckpt"
    path.write_bytes(b"nothing")
    checkpoints.take_checkpoint_choices(path, resume=True)
    checkpoints.take_checkpoint_choices(tmp_path / "missing", resume=True)
    checkpoints.take_checkpoint_choices(None, resume=True)
    assert autotune_cache.choices_in_use() == {}


@pytest.mark.parametrize("at_once", [1, 2])
def test_runs_are_resumed_each_by_its_own_choices(monkeypatch, problem, tmp_path, at_once):
    """From the checkpoints of two machines that chose differently."""
    require("cpu")
    files, whole = [], []
    for dense in (False, True):
        autotune_cache._on_disk.cache_clear()
        autotune_cache._in_use.clear()
        monkeypatch.setenv("OES_FAST_CACHE_DIR", str(tmp_path / str(dense)))
        times = iter(range(1000)) if dense else iter(range(1000, 0, -1))
        monkeypatch.setattr(conv_algorithm, "_time", lambda *_, times=times: next(times))
        files.append(tmp_path / f"{dense}.ckpt")
        whole.append(train(problem, 8))
        train(problem, 4, files[-1])
    assert not torch.equal(whole[0].output, whole[1].output)
    kept = [metadata_of(path)["choices"] for path in files]
    net, mask, z, noisy = problem
    options = {"steps": 8, "verify": False, "at_once": at_once, "checkpoints": files, "resume": True}
    fits = oes.train_many(net, mask, z, [noisy, noisy], **options)
    for fit, expected in zip(fits, whole, strict=True):
        assert torch.equal(fit.output, expected.output)
    assert [metadata_of(path)["choices"] for path in files] == kept
