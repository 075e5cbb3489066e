"""Fingerprints of functions that come from the caller: what they do to probes, which a seed draws.

Names and code say little: two lambdas have one name, a closure's values are not in its code, and the same
operator is written in many ways. What a function gives for random numbers tells all of them apart, and is the
same for the same script run again. The results are kept as a few projections, compared with a tolerance:
other numbers of threads and other processors round otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

PROJECTIONS = 4
SCALES = (1.0, 10.0)  # of normal numbers that an operator is probed with beside those in 0..1
ERRORS = (0.01, 1.0, 10.0)  # scales of normal errors that a loss is probed with, in units of the target's
TOLERANCE = 1e-5  # of the largest number in a list

Fingerprint = list[list[float]]


def of_operator(operator: Callable[[Tensor], Any], image: Tensor) -> Fingerprint | None:
    """What an operator measures of random images: in 0..1, and normal ones, negative and larger too.

    Args:
        operator: from image to measurement.
        image: of the shape, dtype and device of the network's.

    Returns:
        Root mean square and projections of each, nothing of normal ones that it refuses; None where the
        operator gives something else each time, or fails, which is left to the run to say.
    """

    def find(probe: Tensor) -> Fingerprint:
        return [_projected(operator(probe.clone()))]

    return _of_probes(find, _drawn(image, seed=0), [scale * _normal(image, seed=3) for scale in SCALES])


def of_loss(loss: Callable[[Tensor], Tensor], target: Tensor) -> Fingerprint | None:
    """Value and gradient of a loss of what is measured, near the target and further from it.

    Args:
        loss: of what was measured.
        target: what it is compared with.

    Returns:
        As :func:`of_operator`.
    """
    scale = float(target.abs().double().square().mean().sqrt()) or 1.0

    def find(error: Tensor) -> Fingerprint:
        with torch.enable_grad():
            measured = (target + scale * error).detach().requires_grad_()
            value = loss(measured)
            (gradient,) = torch.autograd.grad(value, measured)
        return [[float(value.detach())], _projected(gradient * gradient.numel())]

    others = [size * _normal(target, seed=4) for size in ERRORS]
    return _of_probes(find, _drawn(target, seed=1) - 0.5, others)


def same(found: object, wanted: object) -> bool:
    """Whether two fingerprints, or parts of them, are those of one function; other values by equality."""
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        if not all(isinstance(each, float) for each in (*found, *wanted)):
            return all(same(one, other) for one, other in zip(found, wanted, strict=True))
        most = TOLERANCE * max((abs(each) for each in wanted), default=0.0)
        return all(abs(one - other) <= most for one, other in zip(found, wanted, strict=True))
    return found == wanted


def name_of(function: object) -> str:
    """How a message calls a function, or the object that is called."""
    if isinstance(function, functools.partial):
        return f"partial of {name_of(function.func)}"
    owner = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(owner, '__module__', None) or '?'}.{getattr(owner, '__qualname__', '?')}"


def _of_probes(
    find: Callable[[Tensor], Fingerprint], first: Tensor, others: Sequence[Tensor]
) -> Fingerprint | None:
    """What ``find`` gives for probes: None where not for the first, an empty part where not for another."""
    found = _twice(lambda: find(first), first)
    if found is None:
        return None
    for probe in others:
        found = [*found, *(_twice(functools.partial(find, probe), probe) or [[]])]
    return found


def _twice(find: Callable[[], Fingerprint], like: Tensor) -> Fingerprint | None:
    """What ``find`` gives, if it gives it again; the caller's random numbers go on as if it had not run."""
    on_gpu = like.device.type == "cuda"

    def seeded() -> Fingerprint:
        torch.default_generator.manual_seed(0)
        if on_gpu:
            with torch.cuda.device(like.device):
                torch.cuda.manual_seed(0)
        return find()

    with torch.random.fork_rng([like.device] if on_gpu else []):
        try:
            first, second = seeded(), seeded()
        except Exception:
            return None
    finite = all(math.isfinite(number) for part in first for number in part)
    return first if finite and same(first, second) else None


def _projected(tensor: Tensor) -> list[float]:
    """Root mean square, and sums of the values under random signs, in units of it for random values."""
    tensor = tensor.detach().cpu().resolve_conj()
    values = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten().double()
    generator = torch.Generator("cpu").manual_seed(2)
    found = [float(values.square().mean().sqrt())]
    for _ in range(PROJECTIONS):
        signs = torch.randint(0, 2, values.shape, generator=generator, device="cpu", dtype=torch.int8)
        found.append(float((values * (2 * signs - 1)).sum()) / math.sqrt(values.numel()))
    return found


def _drawn(like: Tensor, *, seed: int) -> Tensor:
    """Uniform in 0..1, of the shape, dtype and device of ``like``; the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.rand(like.shape, dtype=like.dtype, generator=generator, device="cpu").to(like.device)


def _normal(like: Tensor, *, seed: int) -> Tensor:
    """Normal with variance 1, as :func:`_drawn`."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(like.shape, dtype=like.dtype, generator=generator, device="cpu").to(like.device)
