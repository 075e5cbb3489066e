"""The Gumbel-sampled relaxed mask: checks, autograd and choice of backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_integer, check_logits, check_number, check_tensor, check_written
from oes_fast.backends import resolve
from oes_fast.ops import _library
from oes_fast.ops._clock import Clock


def gumbel_mask(
    w0: Tensor,
    logits: Tensor,
    *,
    seed: int,
    step: int | Clock,
    temperature: float = 0.2,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Masked weights w0 * m, m = sigmoid((s + L) / T), L ~ Logistic(0, 1) (Ghosh et al. 2024, section 3).

    The noise is a function of (seed, step, element), see :mod:`oes_fast.reference.philox`, and every backend
    draws the same; nothing is stored of it, the derivative draws it again. The kernels' m is within 2e-6 of
    the float64 reference in float32 and within 1e-14 in float64.

    Logits of shape [q - 1, n] make a mask of q > 2 levels, m = sum of v_k softmax((log p_k + g_k) / T) over
    the levels v_k = 1, .., 1 / (q - 1), 0: see :mod:`oes_fast.reference.level_mask`, which alone has it.

    Args:
        w0: initial weights, float32 or float64, shape [n].
        logits: s, shape [n] or [q - 1, n], same dtype and device.
        seed: key of the noise, in [0, 2^64).
        step: search step, in [0, 2^32); or a clock, for launches that are recorded, with "triton" and
            "cuda" alone and without a derivative.
        temperature: T > 0.
        out: where to write them, shape [n], contiguous, in memory of its own; there is no derivative then. A
            search draws into the same memory in every step, which spares the system the pages.
        backend: "auto", "reference", "torch" (the same here), "cpu", "triton" (float32 only) or "cuda".

    Returns:
        Tensor of shape [n], ``out`` where it is given; differentiable in ``w0`` and ``logits``, twice with
        backend "reference".

    Raises:
        InputError: shapes, dtypes or devices that do not fit, a number out of range, or an ``out`` that is
            not contiguous or shares memory with another argument.
        BackendError: the named backend cannot run here, or has no more than two levels.

    Example:
        >>> w0, logits = torch.ones(4), torch.tensor([-20.0, 0.0, 0.0, 20.0])
        >>> masked = oes.functional.gumbel_mask(w0, logits, seed=0, step=0)
        >>> masked[[0, 3]].round()
        tensor([0., 1.])
    """
    check_tensor("w0", w0, ndim=1)
    check_logits(logits, like=w0, numel=w0.numel())
    check_integer("seed", seed, minimum=0, below=2**64)
    if not isinstance(step, Clock):
        check_integer("step", step, minimum=0, below=2**32)
    check_number("temperature", temperature, above=0.0)
    chosen = resolve(backend, w0.device, _library.candidates(w0.dtype, cuda=True, levels=logits.ndim == 2))
    if out is not None:
        check_tensor("out", out, shape=w0.shape, like=w0)
        check_written({"out": out, "w0": w0, "logits": logits}, ("out",))
    if out is None and not isinstance(step, Clock):
        if chosen == "reference":
            return reference.gumbel_mask(w0, logits, seed=seed, step=step, temperature=temperature)
        kernel = _library.kernel("gumbel_mask", chosen)
        return kernel(w0.contiguous(), logits.contiguous(), _library.as_signed(seed), step, temperature)
    with torch.no_grad():
        masked = torch.empty_like(w0) if out is None else out
        if isinstance(step, Clock):
            step.check(chosen, w0)
            launch = _library.launcher(chosen, "gumbel_mask", "gumbel_mask_out")
            launch(masked, w0.contiguous(), logits.contiguous(), seed, 0, temperature, step.ticks)
        elif chosen == "reference":
            masked.copy_(reference.gumbel_mask(w0, logits, seed=seed, step=step, temperature=temperature))
        else:
            kernel = _library.kernel("gumbel_mask_out", chosen)
            kernel(masked, w0.contiguous(), logits.contiguous(), _library.as_signed(seed), step, temperature)
    return masked


def _fake(w0: Tensor, logits: Tensor, seed: int, step: int, temperature: float) -> Tensor:
    return torch.empty_like(w0)


def _fake_backward(
    grad: Tensor,
    w0: Tensor,
    logits: Tensor,
    seed: int,
    step: int,
    temperature: float,
    needs_w0: bool,
    needs_logits: bool,
) -> tuple[Tensor, Tensor]:
    return w0.new_empty(w0.numel() if needs_w0 else 0), w0.new_empty(w0.numel() if needs_logits else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    w0, logits, *ctx.numbers = inputs
    ctx.save_for_backward(w0, logits)


def _backward(ctx: Any, backend: str, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_w0, needs_logits = ctx.needs_input_grad[:2]
    kernel = _library.kernel("gumbel_mask_backward", backend)
    grad_w0, grad_logits = kernel(grad.contiguous(), *ctx.saved_tensors, *ctx.numbers, needs_w0, needs_logits)
    return grad_w0 if needs_w0 else None, grad_logits if needs_logits else None, None, None, None


def _refuse_second_derivative(ctx: Any, backend: str, *grads: Tensor) -> tuple[None, ...]:
    raise NotImplementedError(
        f'gumbel_mask: backend "{backend}" has no second derivative; use backend="reference"'
    )


_library.define(
    "gumbel_mask",
    "(Tensor w0, Tensor logits, SymInt seed, SymInt step, float temperature) -> Tensor",
    fake=_fake,
    module="gumbel_mask",
    backends=("cpu", "triton", "cuda"),
)
_library.define(
    "gumbel_mask_out",
    "(Tensor(a!) out, Tensor w0, Tensor logits, SymInt seed, SymInt step, float temperature) -> ()",
    fake=lambda *_: None,
    module="gumbel_mask",
    backends=("cpu", "triton", "cuda"),
)
_library.define(
    "gumbel_mask_backward",
    "(Tensor grad, Tensor w0, Tensor logits, SymInt seed, SymInt step, float temperature, "
    "bool needs_w0, bool needs_logits) -> (Tensor, Tensor)",
    fake=_fake_backward,
    module="gumbel_mask",
    backends=("cpu", "triton", "cuda"),
)
_library.define_backward("gumbel_mask", _backward, _setup_context)
_library.define_backward("gumbel_mask_backward", _refuse_second_derivative, _setup_context)
