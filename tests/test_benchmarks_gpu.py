"""The plumbing of benchmarks.gpu without a GPU: parts that fail, parts that hang, small measurements."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPO

from benchmarks import gpu, gpu_parts
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
    found = gpu_parts.steps(rounds=1, **small)
    assert set(found) == {"training", "search"}
    found = gpu_parts.training(count=6, beside="reference", **small)
    assert len(found["loss"]) == 2


def test_kernel_cases_run_small_on_the_cpu():
    def once(call, *, device):
        call()
        return {"min": 1.0, "median": 1.0}

    rows = kernel_rows(once, "cpu", "reference", scale=32)
    assert not [row for row in rows if "error" in row]
    assert len(rows) > 30
