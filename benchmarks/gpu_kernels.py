"""Single operations at the sizes of the published network, kernels against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import oes_fast
from benchmarks.bench_sparse_conv2d import LAYERS
from benchmarks.report import NUMEL
from benchmarks.timer import device_time
from oes_fast.functional import (
    SparsePattern,
    batch_norm_act,
    gumbel_mask,
    mask_update,
    masked_adam,
    masked_conv2d,
    output_head,
    phase_split,
    sparse_conv2d,
    sparse_up_conv2d,
)
from oes_fast.ops import _library

# Live input and output channels, side of the input and share of kept weights of the 3x3 decoder convolutions.
UP_LAYERS = ((90, 75, 16, 0.4), (75, 55, 32, 0.4), (55, 30, 64, 0.4), (30, 14, 128, 0.4), (14, 6, 256, 0.4))


class Case(NamedTuple):
    """One operation.

    Attributes:
        name: of the operation and its size.
        ours, theirs: calls on the backend and in plain PyTorch.
        moved: bytes that have to be read and written, or 0.
        macs: multiply-adds of the kept weights, or 0.
        precision: of ours.
        torch_precision: of theirs, the same where PyTorch has it.
    """

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    moved: int = 0
    macs: int = 0
    precision: str = "float32"
    torch_precision: str = "float32"


def _drawn(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _pattern(outputs: int, inputs: int, kernel: int, kept: int) -> SparsePattern:
    mask = torch.zeros(outputs * inputs * kernel**2, dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=torch.Generator().manual_seed(0))[:kept]] = True
    return SparsePattern.of(mask.view(outputs, inputs, kernel, kernel))


def _both_ways(result: Tensor, leaves: list[Tensor]) -> object:
    return torch.autograd.grad(result, leaves, torch.ones_like(result))


def sparse_cases(device: str, backend: str, scale: int) -> Iterator[Case]:
    """Sparse convolutions, forward and with both gradients, against dense ones over the same channels."""
    for inputs, outputs, side, stride, kept in LAYERS:
        side = max(8, side // scale)
        pattern, x = (
            _pattern(outputs, inputs, 5, kept),
            _drawn(device, 1, inputs, side, side).requires_grad_(),
        )
        values = _drawn(device, kept).requires_grad_()
        weight = values.new_zeros(pattern.shape).masked_scatter(pattern.mask.to(device), values).detach()
        weight.requires_grad_()
        size = ((side - 5) // stride + 1) ** 2
        name = f"sparse_conv2d {inputs}->{outputs} @{side} /{stride}"

        def ours(x=x, values=values, pattern=pattern, stride=stride) -> Tensor:  # type: ignore[no-untyped-def]
            source = phase_split(x, backend=backend) if stride == 2 else x
            return sparse_conv2d(source, values, pattern, stride=stride, backend=backend)

        def theirs(x=x, weight=weight, stride=stride) -> Tensor:  # type: ignore[no-untyped-def]
            return F.conv2d(x, weight, stride=stride)

        yield from _directions(name, ours, theirs, [x, values], [x, weight], kept * size)


def up_cases(device: str, backend: str, scale: int) -> Iterator[Case]:
    """Convolutions after an up-sampling, against the three layers they replace."""
    for inputs, outputs, side, share in UP_LAYERS:
        side = max(2, side // scale)
        kept = int(share * inputs * outputs * 9)
        pattern, x = (
            _pattern(outputs, inputs, 3, kept),
            _drawn(device, 1, inputs, side, side).requires_grad_(),
        )
        values = _drawn(device, kept).requires_grad_()
        weight = values.new_zeros(pattern.shape).masked_scatter(pattern.mask.to(device), values).detach()
        weight.requires_grad_()

        def ours(x=x, values=values, pattern=pattern) -> Tensor:  # type: ignore[no-untyped-def]
            return sparse_up_conv2d(x, values, pattern, backend=backend)

        def theirs(x=x, weight=weight) -> Tensor:  # type: ignore[no-untyped-def]
            up = F.interpolate(x, scale_factor=2, mode="nearest")
            return F.conv2d(F.pad(up, (1, 1, 1, 1), mode="reflect"), weight)

        name = f"sparse_up_conv2d {inputs}->{outputs} @{side}"
        yield from _directions(name, ours, theirs, [x, values], [x, weight], kept * side**2)


def _directions(
    name: str,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    leaves: list[Tensor],
    others: list[Tensor],
    macs: int,
) -> Iterator[Case]:
    yield Case(name, ours, theirs, macs=macs)
    yield Case(
        f"{name}, with gradients",
        lambda: _both_ways(ours(), leaves),
        lambda: _both_ways(theirs(), others),
        macs=3 * macs,
    )


def dense_cases(device: str, backend: str, scale: int) -> Iterator[Case]:
    """The masked dense convolution in each precision, forward."""
    if backend == "cpu":
        return
    for inputs, outputs, side, kernel in ((32, 16, 256, 5), (128, 128, 64, 5), (128, 128, 128, 3)):
        side = max(8, side // scale)
        x, weight = _drawn(device, 1, inputs, side, side), _drawn(device, outputs, inputs, kernel, kernel)
        mask = weight > 0
        for precision in ("float32", "tf32", "bf16") if backend == "triton" else ("float32",):
            yield Case(
                f"masked_conv2d {inputs}->{outputs} @{side} {kernel}x{kernel} {precision}",
                lambda x=x, w=weight, m=mask, p=precision: masked_conv2d(
                    x, w, m, precision=p, backend=backend
                ),  # type: ignore[misc]
                lambda x=x, w=weight, m=mask: F.conv2d(x, w * m),  # type: ignore[misc]
                macs=inputs * outputs * kernel**2 * (side - kernel + 1) ** 2,
                precision=precision,
                torch_precision="tf32" if precision == "tf32" else "float32",
            )


def other_cases(device: str, backend: str, scale: int) -> Iterator[Case]:
    """Norm, head and what goes over all weights once."""
    channels, side = 8, max(8, 512 // scale)
    x = _drawn(device, 1, channels, side, side).requires_grad_()
    weight, bias = _drawn(device, channels).requires_grad_(), _drawn(device, channels).requires_grad_()

    def norm() -> Tensor:
        return batch_norm_act(x, weight, bias, backend=backend)

    def eager_norm() -> Tensor:
        return F.leaky_relu(F.batch_norm(x, None, None, weight, bias, True), 0.2)

    image = 4 * x.numel()
    yield Case(f"batch_norm_act {channels} @{side}", norm, eager_norm, moved=3 * image)
    leaves = [x, weight, bias]
    yield Case(
        f"batch_norm_act {channels} @{side}, with gradients",
        lambda: _both_ways(norm(), leaves),
        lambda: _both_ways(eager_norm(), leaves),
        moved=8 * image,
    )
    head, target = (
        _drawn(device, 3, channels, 1, 1).requires_grad_(),
        _drawn(device, 1, 3, side, side).sigmoid(),
    )
    yield Case(
        f"output_head {channels}->3 @{side}, with gradients",
        lambda: torch.autograd.grad(output_head(x, head, None, target, backend=backend)[1], [x, head]),
        lambda: torch.autograd.grad(F.mse_loss(F.conv2d(x, head).sigmoid(), target), [x, head]),
        moved=3 * image,
    )
    n = NUMEL // scale
    vectors = [_drawn(device, n) for _ in range(5)]
    w0, logits, grad, first, second = vectors
    second.abs_()
    yield Case(
        f"gumbel_mask {n}",
        lambda: gumbel_mask(w0, logits, seed=0, step=0, backend=backend),
        lambda: gumbel_mask(w0, logits, seed=0, step=0, backend="reference"),
        moved=12 * n,
    )
    yield Case(
        f"mask_update {n}",
        lambda: mask_update(logits, grad, w0, first, second, seed=0, step=9, backend=backend),
        lambda: mask_update(logits, grad, w0, first, second, seed=0, step=9, backend="reference"),
        moved=32 * n,
    )
    yield Case(
        f"masked_adam {n}",
        lambda: masked_adam(w0, grad, first, second, step=9, backend=backend),
        lambda: masked_adam(w0, grad, first, second, step=9, backend="reference"),
        moved=28 * n,
    )


def kernel_rows(device: str = "cuda", backend: str = "triton", scale: int = 1) -> list[dict[str, Any]]:
    """Every case: milliseconds of both, how many times faster, GB/s and GMAC/s; a failed one has its error.

    Args:
        device: where.
        backend: whose kernels.
        scale: by how much to shrink the images, to try the plumbing.
    """
    rows = []
    for cases in (sparse_cases, up_cases, dense_cases, other_cases):
        for case in cases(device, backend, scale):
            row: dict[str, Any] = {
                "name": case.name,
                "precision": {"ours": case.precision, "torch": case.torch_precision},
            }
            try:
                if backend == "triton":
                    with _library.measuring():
                        case.ours()
                row["ms"] = device_time(case.ours, device=device)
                with oes_fast.precision(case.torch_precision):
                    row["torch ms"] = device_time(case.theirs, device=device)
                row["times faster"] = row["torch ms"]["min"] / row["ms"]["min"]
                if case.moved:
                    row["GB/s"] = case.moved / row["ms"]["min"] / 1e6
                if case.macs:
                    row["GMAC/s"] = case.macs / row["ms"]["min"] / 1e6
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:500]
            rows.append(row)
    return rows
