"""Launches of Triton kernels as they are recorded, what Triton compiles for them, and their modelled time."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from benchmarks import (
    gpu_compile,
    gpu_model,
    sass,
    table_text,
    tables,
    triton_launches,
    triton_model,
    triton_sass,
)
from benchmarks.triton_launches import Launch, Operator
from oes_fast.backends import triton_interprets


class Pair(NamedTuple):
    """An argument of two tensors, or less."""

    first: object
    second: object


class Constant:
    """As tl.constexpr."""

    def __init__(self, value):
        self.value = value


def parameter(name, *, constant=False, general=False, unaligned=False):
    return SimpleNamespace(
        name=name,
        is_constexpr=constant,
        do_not_specialize=general,
        do_not_specialize_on_alignment=unaligned,
    )


class Kernel:
    """As one of Triton's."""

    __name__ = "kernel"
    params = (
        parameter("x_ptr"),
        parameter("y_ptr", unaligned=True),
        parameter("pair"),
        parameter("count"),
        parameter("general", general=True),
        parameter("BLOCK", constant=True),
    )
    arg_names = [each.name for each in params]  # noqa: RUF012


MEMORY = torch.zeros(64)
ONE = Pair(MEMORY, None)


def launch(x=MEMORY, y=MEMORY, pair=ONE, count=3, general=3, block=64, **options):
    return triton_launches.bound(
        Kernel(), (x, y, pair, count), {"general": general, "BLOCK": block, **options}, (5,)
    )


def key(**given):
    return triton_launches.variant(launch(**given)).key


def test_a_launch_is_taken_apart():
    found = triton_launches.bound(
        Kernel(), (MEMORY, MEMORY), {"count": 7, "pair": None, "general": 1, "BLOCK": 2, "num_warps": 4},
        lambda named: (named["count"], 2),
    )  # fmt: skip
    assert (found.name, found.grid, found.options) == ("kernel", (7, 2, 1), {"num_warps": 4})
    assert list(found.arguments) == Kernel.arg_names


def test_a_variant_is_what_triton_compiles_for():
    unaligned = torch.zeros(64)[1:]
    assert key() == key(count=5) == key(general=16) == key(general=1) == key(y=unaligned)
    others = [
        key(), key(count=1), key(count=32), key(count=2**31 + 1), key(x=unaligned), key(block=128),
        key(x=torch.zeros(64).double()), key(num_warps=8), key(pair=None),
        key(pair=Pair(MEMORY, MEMORY)), key(pair=Pair(MEMORY, 1)), key(pair=Pair(MEMORY, 16)),
        key(pair=Pair(MEMORY, Constant(0.5))), key(pair=Pair(unaligned, None)),
    ]  # fmt: skip
    assert len(set(others)) == len(others)
    assert key(pair=Pair(MEMORY, 1)) != key(pair=Pair(MEMORY, Constant(True)))


def test_signatures_are_nested_as_arguments_are():
    found = triton_launches.variant(launch(pair=Pair(MEMORY.long(), 2)))
    assert found.signature == {
        "x_ptr": "*fp32", "y_ptr": "*fp32", "pair": Pair("*i64", "i32"), "count": "i32", "general": "i32",
        "BLOCK": "constexpr",
    }  # fmt: skip
    assert found.constants == {(5,): 64}
    assert found.attributes == {place: [["tt.divisibility", 16]] for place in ((0,), (2, 0))}
    assert triton_launches.variant(launch(pair=Pair(None, 1))).constants == {
        (2, 0): None,
        (2, 1): 1,
        (5,): 64,
    }


def test_what_no_kernel_takes_is_an_error():
    with pytest.raises(TypeError, match="kernel: argument"):
        key(count="three")


# The model


def loop(**given):
    return sass.Loop(**{**dict.fromkeys(LOOP, 0), **given})


LOOP = (
    "instructions", "macs", "shared_loads", "shared_bytes", "global_loads", "copies", "barriers", "special",
)  # fmt: skip
ASSUMED = gpu_model.ASSUMED | triton_model.ASSUMED


def sums(*, programs=1000, program_tiles=1, splits=1, lists=(64,), precision="tf32", **loops):
    """A sum over taps whose tiles are those of the programs."""
    begins = torch.tensor([0, *lists]).cumsum(0).int()
    taps = torch.zeros(sum(lists), 2, dtype=torch.int32)
    arguments = {
        "GROUP": 16, "TAPS": 16, "BLOCK": 256, "SPLITS": splits, "begins_ptr": begins, "taps_ptr": taps,
        "tiles": programs * program_tiles, "program_tiles": program_tiles, "outputs": 16, "rows": 512,
        "columns": 512, "cell_columns": 512, "step": 1, "READ": 1, "EPILOGUE": 1, "FINALISE": 1,
        "PRECISION": precision,
    }  # fmt: skip
    kernel = sass.Kernel(
        128, 0, 0, 1024, 3000,
        (loop(instructions=1000, around=-1), loop(instructions=500, macs=512, copies=32, around=0, **loops)),
        200,
    )  # fmt: skip
    of = SimpleNamespace(__name__="tap_sum_kernel", params=())
    grid = (programs, len(lists) * splits, 1)
    return Launch(of, grid, arguments, {"num_warps": 4}), kernel


def work(**given):
    return triton_model.work_of(*sums(**given), ASSUMED)


def test_instructions_of_a_sum_follow_from_its_taps():
    behind = ASSUMED["instructions behind the loops"]
    found = work()
    assert found.instructions == 4 * 1000 * (200 + behind + 1000 + 4 * 500)
    assert (found.longest, found.rounds) == (200 + behind + 1000 + 4 * 500, 4)
    assert found.products == 1000 * 4 * 16 * 16 * 256
    assert work(precision="tf32x3").products == 3 * found.products
    assert found.extra == ASSUMED["last block's sums, us"]
    several = work(program_tiles=3)
    assert several.rounds == 12
    assert several.instructions == 4 * 1000 * (200 + behind + 3 * (1000 + 4 * 500))
    parts = work(splits=2, lists=(64, 32))
    assert parts.rounds == 2
    assert parts.extra == found.extra + ASSUMED["sums of split taps, us"]


def test_loads_count_for_each_thread():
    assert work().loaded == 0
    assert work(shared_bytes=12, stored_bytes=4, global_bytes=16).loaded == 1000 * 128 * 4 * 32


def test_a_launch_takes_as_long_as_what_bounds_it(monkeypatch):
    def row(**given):
        node, kernel = sums(**given)
        monkeypatch.setattr(triton_model, "variant", lambda launch: SimpleNamespace(key="it"))
        return triton_model.modelled(node, {"it": kernel}, ASSUMED)

    many = row()
    assert many["limit"] == "instructions"
    assert many["us"] > row(programs=500)["us"]
    assert row(programs=8, lists=(6400,))["limit"] == "programs one by one"
    assert row(shared_bytes=16000)["limit"] == "loads"
    assert many["kernel"].startswith("tap_sum_kernel<epilogue 1, group 16")


def test_an_operator_moves_its_bytes():
    rows = [triton_model.modelled(Operator("zero_", moved), {}, ASSUMED) for moved in (4, 10**9)]
    assert [row["limit"] for row in rows] == ["start", "bytes"]
    assert rows[0]["us"] == ASSUMED["start and end of a kernel, us"]
    more = triton_model.modelled(Operator("zero_", 10**9), {}, ASSUMED, networks=8)
    assert more["us"] > 7 * rows[1]["us"]


def test_variants_are_compiled_and_read_once(tmp_path):
    philox = pytest.importorskip("oes_fast.kernels.philox", reason="Triton is not installed")
    if not hasattr(philox.random_bits_kernel, "params"):
        pytest.skip("Triton interprets its kernels here")
    nodes: list[object] = []
    with triton_launches.as_on_an_h100(), triton_launches.launches(nodes.append):
        for stream in (0, 1):
            philox.random_bits(torch.zeros(1000, dtype=torch.int64), 0, 0, stream)
    variants = triton_sass.variants(nodes)
    assert (len(nodes), len(variants)) == (2, 1)
    ((key, kernel),) = triton_sass.kernels(variants, cache=tmp_path)[sass.DETAILED].items()
    assert 0 < kernel.registers <= 32
    assert kernel.instructions > 100
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert triton_sass.kernels(variants, cache=tmp_path) == {sass.DETAILED: {key: kernel}}
    assert file.stat().st_mtime_ns == before


def test_workers_compile_every_variant_between_them(monkeypatch):
    jit = pytest.importorskip("triton.runtime.jit", reason="Triton is not installed")
    if triton_interprets():
        pytest.skip("Triton interprets its kernels here")
    compiled = []

    def run(self, *, grid, warmup, **arguments):
        assert warmup
        compiled.append(triton_launches.variant(triton_launches.bound(self, (), arguments, grid)).key)

    monkeypatch.setattr(jit.JITFunction, "run", run)
    small = {"device": "cpu", "sizes": (64, 32), "channels": (4, 6)}
    with triton_launches.as_on_an_h100():
        counts = [gpu_compile.work(None, share, 2, **small) for share in (0, 1)]
    assert len(compiled) == len(set(compiled)) == sum(counts)
    assert min(counts) > 10
    assert {"tap_sum_kernel", "weight_grad_kernel"} <= {key.split("'")[1] for key in compiled}
    assert any("'tf32'" in key for key in compiled)
    assert any("'tf32x3'" in key for key in compiled)


CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   MOV R2, R1 ;
.L_x_1:
        /*0020*/                   STL [R1], R4 ;
        /*0030*/                   STS.64 [R2], R4 ;
.L_x_0:
        /*0040*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR4][R6.64] ;
        /*0050*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0060*/                   LDG.E.64 R4, [R2] ;
        /*0070*/                   HGMMA.64x128x8.F32.TF32 R24, R4, gdesc[UR8], R24 ;
        /*0080*/                   HMMA.1688.F32.TF32 R4, R8, R10, R4 ;
        /*0090*/                   STSM.16.M88.2 [R2], R4 ;
        /*00a0*/              @!P0 BRA `(.L_x_0) ;
        /*00b0*/                   LDL.LU R4, [R1] ;
        /*00c0*/              @!P1 BRA `(.L_x_1) ;
        /*00d0*/                   EXIT ;
"""


def test_machine_code_of_triton_is_read():
    kernel = sass.kernel_of((128, 8, 0, 4096), CODE)
    assert (kernel.registers, kernel.stack, kernel.shared) == (128, 8, 4096)
    assert (kernel.instructions, kernel.before) == (14, 2)
    outer, inner = kernel.loops
    assert (outer.spilled, outer.stored_bytes, outer.around) == (2, 8, -1)
    assert (inner.instructions, inner.spilled, inner.around) == (7, 0, 0)
    assert inner.macs == 64 * 128 * 8 // 128 + 32  # a thread of four warps, and of one
    assert inner.wide_macs == 512
    assert (inner.copies, inner.global_loads, inner.shared_loads) == (1, 1, 1)
    assert (inner.global_bytes, inner.shared_bytes, inner.stored_bytes) == (16 + 8, 16, 8)
    assert kernel.inner == inner
    plain = sass.kernel_of((8, 0, 0, 0), "        /*0000*/                   EXIT ;\n")
    assert (plain.instructions, plain.before, plain.loops) == (1, 1, ())


def test_the_model_of_triton_has_the_path_before_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    assert "Not computed yet" in tables.triton_model()
    row = {"networks": 1, "precision": "tf32", "ms": 1.0, "ms a network": 1.0, "nodes": 92}
    row["ms by limit"] = {"instructions": 0.8, "start": 0.1}
    result = {
        "date": "2026-01-01", "command": "python -m benchmarks.gpu_model", "mask": "drawn",
        "target, ms a network at N = 1": {"training": 0.3, "search": 0.6}, "before": gpu_model.BEFORE,
        "training": [row], "search": [row],
    }  # fmt: skip
    (tmp_path / f"{tables.TRITON_MODEL}.json").write_text(json.dumps(result))
    lines = tables.triton_model().splitlines()
    assert "not measured" in lines[0]
    assert "| training | tf32 | 1.00 | 0.3 | 92 | instructions |" in lines
    assert lines[-2:] == ["| training | 258 | 92 | 1.32 | 1.00 |", "| search | 165 | 92 | 2.04 | 1.00 |"]
    assert tables.measured_gpus() == []
