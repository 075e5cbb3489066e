"""Launches as torch.profiler measured them, the model of a step beside them, and the tables of both."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import gpu_model, gpu_trace, sass, table_text, tables
from oes_fast._cuda_toolkit import ToolkitError, find_toolkit

CONV = "void oes::cuda::conv::(anonymous namespace)"
TAP_SUM = f"{CONV}::tap_sum_kernel<float, 4, 2, 1>(oes::cuda::conv::TapSumArgs<T1>)"


def event(name, begin, duration, kind="kernel", **about):
    return {"ph": "X", "cat": kind, "name": name, "ts": begin, "dur": duration, "args": about}


def trace(*events):
    host = {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0.5, "dur": 30}
    return {"schemaVersion": 1, "traceEvents": [host, {"ph": "M", "name": "process_name"}, *events]}


KERNEL = {"grid": [12, 3, 1], "block": [256, 1, 1], "registers per thread": 88, "shared memory": 30720}


def test_launches_are_read_from_a_trace_in_order():
    rows = gpu_trace.launched(
        trace(
            event("Memset (Device)", 109.5, 1.25, kind="gpu_memset", stream=7),
            event(TAP_SUM, 100.0, 8.5, stream=7, **KERNEL),
        )
    )
    assert rows == [
        {
            "kernel": "conv::tap_sum_kernel<float, 4, 2, 1>",
            "us": 8.5,
            "grid": [12, 3, 1],
            "block": [256, 1, 1],
            "registers": 88,
            "shared bytes": 30720,
        },
        {"kernel": "Memset (Device)", "us": 1.25, "gap us": 1.0},
    ]
    other = [{**rows[0], "us": 8.0}, {**rows[1], "us": 2.0, "gap us": 0.5}]
    found = gpu_trace.shortest([rows, other])
    assert found["steps alike"]
    assert [row["us"] for row in found["launches"]] == [8.0, 1.25]
    assert (found["us in kernels"], found["us between"]) == (9.25, 0.5)
    found = gpu_trace.shortest([rows, rows[:1]])
    assert not found["steps alike"]
    assert len(found["launches"]) == 1


def test_names_of_launches_are_those_of_the_model():
    names = {
        TAP_SUM: "tap_sum",
        "Memset (Device)": "memset",
        "void at::native::vectorized_elementwise_kernel<2, at::native::AddFunctor<long>>(int)": "elementwise",
        "void oes::cuda::mask::(anonymous namespace)::mask_update_kernel<float, (oes::cuda::mask::Kl)1>"
        "(oes::cuda::mask::MaskUpdate<float>)": "mask_update",
    }
    assert [gpu_trace.key_of(sass.without_namespaces(name)) for name in names] == list(names.values())


@pytest.mark.parametrize("case", ["training", "search"])
def test_the_steps_that_are_measured_are_made(case):
    small = {"device": "cpu", "size": 32, "channels": (4, 6), "backend": "torch"}
    step = gpu_trace.step_of(case, None, recorded=False, **small)
    step()
    step()


# the model


CHAIN = ["pack_weights", "tap_sum", "norm_pass", "weight_grad", "tap_sum", "unpack_weight_grads"]


def modelled(*, search=False):
    rows = [{"kernel": f"{name}_kernel<4>", "blocks": 9, "us": 2.0, "limit": "bytes"} for name in CHAIN]
    rows = gpu_model.whole_step(rows, 1, search=search, kept=150_000)
    return {"ms": 0.03, "ms between the nodes": 0.008, "launches": rows}


STEP = {
    **modelled(),
    "ms a network": 0.03,
    "nodes": 9,
    "ms by limit": {},
}


def test_the_model_has_the_launches_beside_the_chain_in_their_places():
    names = [row["kernel"] for row in modelled()["launches"]]
    assert names == [
        *(f"{name}_kernel<4>" for name in CHAIN[:2]),
        gpu_model.ZEROS,
        *(f"{name}_kernel<4>" for name in CHAIN[2:]),
        "masked_adam_kernel",
        gpu_model.TICK,
    ]
    names = [row["kernel"] for row in modelled(search=True)["launches"]]
    assert names[0] == "gumbel_mask_kernel"
    assert names[-2:] == ["mask_update_kernel", gpu_model.TICK]


def test_measured_launches_stand_beside_those_of_the_model():
    of_ours = [f"conv::{name}_kernel<float, 4>" for name in CHAIN]
    adam, tick = "mask::masked_adam_kernel<float>", "at::native::vectorized_elementwise_kernel<2, long>"
    copied = "at::native::unrolled_copy_kernel<4>"  # of PyTorch's own, which the model does not know
    names = [*of_ours[:2], "Memset (Device)", copied, *of_ours[2:4], *of_ours[5:], adam, tick]
    launches = [{"kernel": name, "us": 4.0, "gap us": 1.0, "grid": [9, 1, 1]} for name in names]
    measured = {"launches": launches, "us in kernels": 40.0, "us between": 10.0}
    found = gpu_model.beside(modelled(), measured)
    assert (found["in both"], found["of the model alone"], found["measured alone"]) == (8, 1, 1)
    both = [row for row in found["rows"] if "measured / model" in row]
    assert [row["kernel"] for row in both] == [name for name in names if name != copied]
    assert both[0] == {
        "kernel": of_ours[0],
        "grid": [9, 1, 1],
        "blocks of the model": 9,
        "limit": "bytes",
        "model us": 2.0,
        "us": 4.0,
        "measured / model": 2.0,
    }
    assert [row["kernel"] for row in found["rows"] if "us" not in row] == ["tap_sum_kernel<4>"]
    assert (found["model ms"], found["measured ms"]) == (0.03, 0.05)
    assert (found["model ms in kernels"], found["measured ms in kernels"]) == (0.022, 0.04)
    assert set(found["by limit"]) == {"bytes", "start"}


def test_measurements_are_read_from_the_result_so_far(tmp_path):
    file = tmp_path / "gpu.json"

    def parts(**parts):
        file.write_text(json.dumps({"parts": parts}))
        return gpu_model.measured_in(str(file))

    row = {"backend": "cuda", "case": "search", "precision": "tf32", "launches": []}
    other = {"backend": "triton", "left out": "no Triton"}
    found = {("search", "tf32"): row}
    assert parts(launches={"ok": True, "result": [row, other]}) == (found, "")
    absent = {"backend": "cuda", "left out": "no engine"}
    assert parts(launches={"ok": True, "result": [absent, other]}) == ({}, "part launches: no engine")
    assert parts(launches={"ok": True, "result": {"left out": "no engine"}})[1] == "part launches: no engine"
    assert parts(launches={"ok": False, "error": "exit code 1"})[1] == "part launches: exit code 1"
    assert parts()[1] == "part launches: it was not run"


def test_every_step_of_the_model_is_held_to_its_own_measurement(tmp_path, monkeypatch):
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(
        gpu_model, "step", lambda of, count, products: {**STEP, "precision": products, "networks": count}
    )
    launches = [{"kernel": row["kernel"], "us": row["us"]} for row in STEP["launches"]]
    rows = [
        {
            "backend": backend,
            "case": case,
            "precision": precision,
            "launches": launches,
            "us in kernels": 18.0,
            "us between": 9.0,
        }
        for backend, case, precision in gpu_trace.CASES
        if precision != "tf32"
    ]
    file.write_text(json.dumps({"parts": {"launches": {"ok": True, "result": rows}}}))
    steps = gpu_model.held_to(str(file), "a mask")["steps"]
    of_cuda = [(case, precision) for backend, case, precision in gpu_trace.CASES if backend == "cuda"]
    assert [(each["case"], each["precision"]) for each in steps] == of_cuda
    assert ("triton", "training", "tf32x3") not in gpu_trace.CASES
    for each in steps:
        assert each["model ms"] == 0.03
        assert each.get("in both") == (None if each["precision"] == "tf32" else 9)
    file.write_text(json.dumps({"parts": {}}))
    found = gpu_model.held_to(str(file), "a mask")
    assert found["left out"] == "part launches: it was not run"
    assert [each["model ms"] for each in found["steps"]] == [0.03] * len(of_cuda)


def test_the_model_takes_the_real_engine_where_there_is_a_gpu():
    code = "import torch; torch.cuda.is_available = lambda: True; from benchmarks import gpu_model\n"
    code += "from oes_fast import _cuda_extension; print(_cuda_extension.emulated())"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_kernels_are_read_from_what_was_built(tmp_path):
    source = tmp_path / "add.cu"
    source.write_text(
        "namespace oes { namespace { template <typename T> __global__ void add_kernel(T* x, int n) {\n"
        "  T sum = 0;\n  for (int i = 0; i < n; ++i) sum = sum * x[i] + x[i + n];\n"
        "  x[threadIdx.x] = sum;\n} }\n"
        "void add(float* x) { add_kernel<float><<<1, 32>>>(x, 7); } }\n"
    )
    built = tmp_path / "add.o"
    try:
        toolkit = find_toolkit()
        sass.find_tool("cuobjdump", toolkit)
        sass.find_tool("nvdisasm", toolkit)
    except ToolkitError as error:
        pytest.skip(str(error))
    command = [
        toolkit.nvcc,
        "-O3",
        "-gencode=arch=compute_90,code=sm_90",
        "-c",
        str(source),
        "-o",
        str(built),
    ]
    subprocess.run([*command, "-I", toolkit.include], check=True)
    found = sass.kernels_in(built)
    assert list(found) == ["add_kernel<float>"]
    kernel = found["add_kernel<float>"]
    assert kernel.registers > 0
    assert kernel.inner is not None
    assert kernel.inner.macs > 0
    with pytest.raises(ToolkitError, match="sm_80"):
        sass.kernels_in(built, "8.0")


def test_the_model_is_a_table_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    assert "Not computed yet" in tables.gpu_model()
    rows = [
        {
            "networks": n,
            "precision": p,
            "ms a network": 1 / n,
            "nodes": 74,
            "ms by limit": {"start": 9, "bytes": 1},
        }
        for p in ("float32", "tf32")
        for n in (1, 8)
    ]
    result = {
        "date": "2026-01-01",
        "command": "python -m benchmarks.gpu_model",
        "mask": "drawn",
        "target, ms a network at N = 1": {"training": 0.3, "search": 0.6},
        "training": rows[:2],
        "search": rows,
    }
    (tmp_path / f"{tables.MODEL}.json").write_text(json.dumps(result))
    lines = tables.gpu_model().splitlines()
    assert "not measured" in lines[0]
    assert lines[-3:] == [
        "| training | float32 | 1.00 | 0.12 | 0.3 | 74 | bytes |",
        "| search | float32 | 1.00 | 0.12 | 0.6 | 74 | bytes |",
        "| search | tf32 | 1.00 | 0.12 | 0.6 | 74 | bytes |",
    ]
    assert tables.measured_gpus() == []


def test_a_device_with_both_engines_is_in_the_tables(tmp_path, monkeypatch):
    times = {
        way: {"min": ms, "median": ms} for way, ms in (("published", 9.0), ("triton", 3.0), ("cuda", 1.0))
    }
    faster = {way: {"min": 9 / t["min"], "median": 9 / t["min"]} for way, t in times.items()}
    row = {"size": 512, "ms": times, "times faster": faster, "precision": dict.fromkeys(times, "float32")}
    three = {key: {way: value for way, value in row[key].items() if way != "triton"} for key in list(row)[1:]}
    parts = {
        "steps float32": {"result": {"training": [row], "search": [row], "warnings": ["one"]}},
        "steps tf32x3": {"result": {"search": [{"size": 512, **three}]}},
        "steps tf32": {"result": {"left out": "no"}},
        "memory": {
            "result": [{"way": "cuda", "case": "search", "peak MB": 5.0}, {"way": "triton", "error": "no"}]
        },
    }
    where = {"gpu": "some GPU", "torch": "2.11"}
    result = {"date": "2026-01-01", "command": "make gpu", "environment": where, "parts": parts}
    (tmp_path / "gpu-some.json").write_text(json.dumps(result))
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    text = tables.gpu()
    assert (
        "| search | 512 | float32 | published code | 9.0 (9.0) | 3.0 (3.0) | 1.0 (1.0) | 9.0 (9.0) x |"
        in text
    )
    assert "| search | 512 | float32 | published code | 9.0 (9.0) |  | 1.0 (1.0) | 9.0 (9.0) x |" in text
    assert "| search | oes_fast, CUDA C++ | 5 MB |" in text
    assert "| some GPU, `cuda`, float32 | 9.0 to 9.0 x | 9.0 to 9.0 x |" in tables.gain()
