"""Launches of Triton kernels as they are recorded, and what Triton compiles for them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_compile, triton_launches
from oes_fast.backends import triton_interprets


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
        parameter("other_ptr"),
        parameter("count"),
        parameter("general", general=True),
        parameter("BLOCK", constant=True),
    )
    arg_names = [each.name for each in params]  # noqa: RUF012


MEMORY = torch.zeros(64)


def launch(x=MEMORY, y=MEMORY, other=None, count=3, general=3, block=64, **options):
    return triton_launches.bound(
        Kernel(), (x, y, other, count), {"general": general, "BLOCK": block, **options}, (5,)
    )


def variant(**given):
    return triton_launches.variant(launch(**given))


def test_a_launch_is_taken_apart():
    found = triton_launches.bound(
        Kernel(), (MEMORY, MEMORY), {"count": 7, "other_ptr": None, "general": 1, "BLOCK": 2, "num_warps": 4},
        lambda named: (named["count"], 2),
    )  # fmt: skip
    assert (found.name, found.grid, found.options) == ("kernel", (7, 2, 1), {"num_warps": 4})
    assert list(found.arguments) == Kernel.arg_names


def test_a_variant_is_what_triton_compiles_for():
    unaligned = torch.zeros(64)[1:]
    same = [variant(count=5), variant(general=16), variant(general=1), variant(y=unaligned)]
    assert set(same) == {variant()}
    others = [
        variant(), variant(count=1), variant(count=32), variant(count=2**31 + 1), variant(count=0.5),
        variant(count=True), variant(x=unaligned), variant(x=torch.zeros(64).double()), variant(block=128),
        variant(other=MEMORY), variant(num_warps=8),
    ]  # fmt: skip
    assert len(set(others)) == len(others)


def test_what_no_kernel_takes_is_an_error():
    with pytest.raises(TypeError, match="kernel: argument count is a str"):
        variant(count="three")


def test_workers_compile_every_variant_between_them(monkeypatch):
    jit = pytest.importorskip("triton.runtime.jit", reason="Triton is not installed")
    if triton_interprets():
        pytest.skip("Triton interprets its kernels here")
    compiled = []

    def run(self, *, grid, warmup, **arguments):
        assert warmup
        compiled.append(triton_launches.variant(triton_launches.bound(self, (), arguments, grid)))

    monkeypatch.setattr(jit.JITFunction, "run", run)
    small = {"device": "cpu", "sizes": (64, 32), "channels": (4, 6)}
    with triton_launches.as_on_an_h100():
        counts = [gpu_compile.work(None, share, 2, **small) for share in (0, 1)]
    assert len(compiled) == len(set(compiled)) == sum(counts)
    assert min(counts) > 10
    assert {"tap_sum_kernel", "weight_grad_kernel"} <= {which.split()[0] for which in compiled}
