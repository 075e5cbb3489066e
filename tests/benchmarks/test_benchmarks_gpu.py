"""The plumbing of benchmarks.gpu without a GPU: parts that fail, parts that hang, small measurements."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO

from benchmarks import gpu, gpu_compile, gpu_parts
from benchmarks.gpu import Part, run_parts
from benchmarks.gpu_kernels import kernel_rows


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


def test_parts_fit_the_time_together_with_the_ratios_first(monkeypatch):
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: "compute-sanitizer")
    parts = gpu.all_parts(None)
    assert sum(part.seconds for part in parts) < gpu.SECONDS
    names = [part.name for part in parts]
    assert names[:3] == ["compile ahead", "steps float32", "steps tf32"]
    assert names[-1] == "steps compiled"


def test_parts_fit_the_time_and_name_what_there_is():
    for part in gpu.all_parts(None):
        assert part.seconds < gpu.SECONDS < 480
        for word in part.command:
            if word.startswith("tests/"):
                assert (REPO / word).exists()


def test_measurements_run_small_on_the_cpu():
    assert set(gpu_parts.ceilings("cpu", elements=64, side=8, small=64)) >= {
        "copy GB/s",
        "float32 GMAC/s",
        "tf32 GMAC/s",
    }
    small = {"device": "cpu", "size": 32, "channels": (4, 6), "fast": "auto"}
    found = gpu_parts.steps(precision="tf32", rounds=1, **small)
    assert set(found) == {"training", "search"}
    for (row,) in found.values():
        assert set(row["precision"].values()) == {"tf32"}
        assert row["precision"].keys() == row["ms"].keys()
    found = gpu_parts.training(count=6, beside="reference", **small)
    assert len(found["loss"]) == 2
    assert found["precision"] == "float32"


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
    rows = gpu_parts.memory(device="cpu", size=32, channels=(4, 6), fast="auto")
    assert made == [1]
    assert [row["case"] for row in rows] == ["training"] * 3 + ["search"] * 3
    assert [row["way"] for row in rows[:3]] == ["published", "torch", "auto"]
    assert all(row["peak MB"] > 0 and row["precision"] == "float32" for row in rows)


class Kernel:
    """As one of Triton's."""

    __name__ = "kernel"
    arg_names = ("x_ptr", "y_ptr", "count", "general")
    kwargs = {"do_not_specialize": ["general"], "do_not_specialize_on_alignment": ["y_ptr"]}  # noqa: RUF012


def variant(x=None, y=None, count=3, general=3, **options):
    memory = torch.zeros(64)
    x = memory if x is None else x
    return gpu_compile.variant(Kernel(), (x, memory if y is None else y, count, general), options)


def test_a_variant_is_what_triton_compiles_for():
    unaligned = torch.zeros(64)[1:]
    assert variant() == variant(count=5) == variant(general=16) == variant(general=1) == variant(y=unaligned)
    others = [
        variant(), variant(count=1), variant(count=32), variant(count=2**31 + 1), variant(x=unaligned),
        variant(x=torch.zeros(64).double()), variant(BLOCK=64),
    ]  # fmt: skip
    assert len(set(others)) == len(others)


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
