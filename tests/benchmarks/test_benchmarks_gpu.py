"""The plumbing of benchmarks.gpu without a GPU: parts that fail, parts that hang, small measurements."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO
from kernel_backends import device_of, require

from benchmarks import gpu, gpu_batches, gpu_compile, gpu_parts
from benchmarks.gpu import Part, run_parts
from benchmarks.gpu_kernels import kernel_rows
from oes_fast.backends import BackendStatus


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_parts_are_isolated(tmp_path):
    file = tmp_path / "results" / "gpu.json"
    sleeps = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep({60})'])"
    )
    parts = [
        Part("good", python("print('words'); print('{\"a\": 1}')"), 60),
        Part("bad", python("raise ValueError('this is why')"), 60),
        Part("hanging", python(sleeps), 2),
        Part("last", python("print('[2]')"), 60),
    ]
    began = time.monotonic()
    assert run_parts(parts, file, {"date": "today"}) == 1
    assert time.monotonic() - began < 30
    found = json.loads(file.read_text())
    assert found["date"] == "today"
    outcome = found["parts"]
    assert outcome["good"]["ok"]
    assert outcome["good"]["result"] == {"a": 1}
    assert not outcome["bad"]["ok"]
    assert outcome["bad"]["error"] == "exit code 1"
    assert "this is why" in outcome["bad"]["output"]
    assert outcome["hanging"]["error"] == "stopped after 2 s"
    assert outcome["last"]["ok"]
    assert run_parts(parts[:1], file, {}) == 0
    assert run_parts(parts[:1], file, {}, seconds=0) == 1
    assert "no time" in json.loads(file.read_text())["parts"]["good"]["error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "There is no GPU here" in done.stdout
    assert "Nothing was measured" in done.stdout


def test_parts_fit_the_time_together_with_what_matters_first():
    parts = gpu.all_parts(None, "gpu.json")
    assert sum(part.seconds for part in parts) < gpu.SECONDS
    names = [part.name for part in parts]
    assert names[:2] == ["build", "compile ahead"]
    assert names[2:5] == ["steps float32", "steps tf32", "steps tf32x3"]
    assert names[5:8] == ["tests of cuda", "batches", "launches"]
    assert names[-1] == "steps compiled"
    assert names.index("model") > names.index("launches")
    assert {"sanitizer", "ncu", "training", "memory", "tests", "kernels"} <= set(names)


def test_parts_fit_the_time_and_name_what_there_is():
    masked = gpu.all_parts("mask.npz", "gpu.json")
    for part, with_mask in zip(gpu.all_parts(None, "gpu.json"), masked, strict=True):
        assert part.seconds < gpu.SECONDS < 480
        for word in part.command:
            if word.startswith("tests/"):
                assert (REPO / word).exists()
            if word.startswith("benchmarks."):
                assert (REPO / f"{word.replace('.', '/')}.py").exists()
        if part.name not in ("build", "tests of cuda", "tests"):
            assert with_mask.command[-2:] == ("--mask", "mask.npz")
    for part in masked:  # a tool gets less than its part
        if "--seconds" in part.command:
            assert float(part.command[part.command.index("--seconds") + 1]) < part.seconds


def test_a_part_may_take_what_others_left_of_theirs_and_no_more():
    plain, longer, later = Part("a", (), 10), Part("b", (), 10, longer=True), [Part("c", (), 30)]
    assert gpu.limit_of(plain, later, 100) == 10
    assert gpu.limit_of(longer, later, 100) == 70
    assert gpu.limit_of(longer, later, 25) == 10
    assert gpu.limit_of(longer, [], 4) == gpu.limit_of(plain, [], 4) == 4


def test_the_time_limit_begins_with_the_installation(tmp_path, monkeypatch):
    given = []

    def run_parts(parts, file, about, seconds):
        given.append((about.get("seconds before the parts"), seconds))
        return 0

    monkeypatch.setattr(gpu, "run_parts", run_parts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    monkeypatch.setattr(gpu, "environment", dict)
    assert gpu.main(["--out", str(tmp_path), "--began", str(time.time() - 70)]) == 0
    assert gpu.main(["--out", str(tmp_path)]) == 0
    (before, seconds), rest = given
    assert 70 <= before < 75
    assert seconds == pytest.approx(gpu.SECONDS - before, abs=0.1)
    assert rest == (None, gpu.SECONDS)


def test_a_part_that_cannot_run_is_left_out_with_its_reason(tmp_path, capsys):
    parts = [Part("ncu", python('print(\'{"left out": "there is no ncu"}\')'), 60)]
    assert run_parts(parts, tmp_path / "gpu.json", {}) == 0
    assert "ncu: left out, there is no ncu" in capsys.readouterr().out


def test_measurements_run_small_on_the_cpu():
    assert set(gpu_parts.ceilings("cpu", elements=64, side=8, small=64)) >= {
        "copy GB/s",
        "float32 GMAC/s",
        "tf32 GMAC/s",
    }
    small = {"device": "cpu", "size": 32, "channels": (4, 6), "fast": ("auto",)}
    found = gpu_parts.steps(precision="tf32", rounds=1, **small)
    assert set(found) == {"training", "search"}
    for (row,) in found.values():
        assert set(row["precision"].values()) == {"tf32"}
        assert row["precision"].keys() == row["ms"].keys()
    found = gpu_parts.training(count=6, beside="reference", **small)
    assert len(found["loss"]) == 2
    assert found["precision"] == "float32"
    ((name, differences),) = found["differences"].items()
    assert name == found["backends"][0]
    assert max(map(abs, (*differences["first"], differences["late"]))) < 1e-2
    found = gpu_parts.steps(precision="tf32x3", rounds=1, **small)
    assert set(found) == {"search"}
    assert set(found["search"][0]["ms"]) == {"published", "auto"}


def test_batches_are_timed_by_network():
    require("cuda")
    small = {"counts": (1, 2), "precisions": ("float32",), "size": 32, "rounds": 1, "channels": (4, 6)}
    (row,) = gpu_batches.batches(None, device_of("cuda"), **small)
    assert (row["size"], row["precision"]) == (32, "float32")
    assert {"cuda, 1", "cuda, 2"} <= set(row["ms a step and network"])
    assert all(times["min"] > 0 for times in row["ms a step and network"].values())


def test_a_training_that_fails_or_differs_is_told(monkeypatch, capsys):
    small = {"device": "cpu", "size": 32, "channels": (4, 6), "beside": "reference"}
    train = gpu_parts.oes.train_sparse

    def trained(*arguments, backend, **options):
        if backend == "torch":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        fit = train(*arguments, backend=backend, **options)
        loss = [fit.history.loss[0], math.nan if backend == "cpu" else 1.0, *fit.history.loss[2:]]
        return SimpleNamespace(history=SimpleNamespace(loss=loss), backend=fit.backend, seconds=fit.seconds)

    require("cpu")
    monkeypatch.setattr(gpu_parts.oes, "train_sparse", trained)
    for fast in (("torch",), ("cpu",)):
        with pytest.raises(SystemExit) as raised:
            gpu_parts.training(count=3, fast=fast, **small)
        assert raised.value.code == 1
        found = json.loads(capsys.readouterr().out)
        assert ("illegal memory" in found.get("failed", {}).get("torch", "")) == (fast == ("torch",))
        assert set(found["differences"]) == set(fast) - {"torch"}


def test_what_is_not_available_is_left_out(monkeypatch):
    absent = {"triton": BackendStatus(False, "no GPU"), "cuda": BackendStatus(False, "was not built")}
    monkeypatch.setattr(gpu_parts.oes, "backends", lambda: {"torch": BackendStatus(True), **absent})
    chosen, left_out = gpu_parts.available(["torch", "triton", "cuda"])
    assert chosen == ["torch"]
    assert left_out == {name: str(status) for name, status in absent.items()}
    found = gpu_parts.steps(device="cpu", size=32, channels=(4, 6), precision="tf32x3")
    assert found == {"left out": f"backend cuda is {absent['cuda']}"}


def test_a_contestant_has_its_memory_alone(monkeypatch):
    made = []

    class Pool:
        """As multiprocessing's, in this process."""

        def __init__(self, workers, maxtasksperchild):
            made.append(maxtasksperchild)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def apply_async(self, function, arguments, options):
            return SimpleNamespace(get=lambda timeout: function(*arguments, count=1, **options))

    monkeypatch.setattr(gpu_parts.multiprocessing, "get_context", lambda method: SimpleNamespace(Pool=Pool))
    rows = gpu_parts.memory(device="cpu", size=32, channels=(4, 6), fast=("auto",))
    assert made == [1]  # those of the CUDA engine would come in another pool, one at a time
    assert [row["case"] for row in rows] == ["training"] * 3 + ["search"] * 3
    assert [row["way"] for row in rows[:3]] == ["published", "torch", "auto"]
    assert all(row["peak MB"] > 0 and row["precision"] == "float32" for row in rows)


def test_every_variant_is_compiled_by_one_worker():
    names = [f"kernel {number}" for number in range(200)]
    shares = [[name for name in names if gpu_compile.is_mine(name, share, 8)] for share in range(8)]
    assert sorted(name for share in shares for name in share) == sorted(names)
    assert max(map(len, shares)) < 50


def test_kernel_cases_run_small_on_the_cpu(monkeypatch):
    def once(call, *, device):
        call()
        return {"min": 1.0, "median": 1.0}

    monkeypatch.setattr("benchmarks.gpu_kernels.device_time", once)
    rows = kernel_rows("cpu", "reference", scale=32)
    assert not [row for row in rows if "error" in row]
    assert len(rows) > 30
    assert {tuple(row["precision"].values()) for row in rows} == {("float32", "float32")}
