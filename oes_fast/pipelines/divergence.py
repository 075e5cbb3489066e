"""Runs that go wrong: a loss that left for good, one that is no longer finite, and what is to blame."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from oes_fast.errors import DivergedRunWarning, InputError, OESError, warn_caller
from oes_fast.pipelines.history import History

_MIN_STEPS = 10  # updates before a run is judged: Adam's first ones may go up
_MIN_RECORDS = 3
_FLOOR = 1e-6  # losses of images below it, 60 dB, are as good as equal


class _Rule(NamedTuple):
    """When a loss has left.

    Attributes:
        above_start: times the first loss that the last ones must exceed, or else
        above_best: times the lowest loss reached, with half of what was gained lost again.
    """

    above_start: float
    above_best: float


# The losses of a search are those of drawn masks, which scatter by a fifth, and its KL term may grow with the
# probabilities: it must go further.
_RULES = {"train": _Rule(1.25, 2.0), "search": _Rule(1.5, 3.0)}


def has_diverged(losses: Sequence[float], steps: int, phase: str, *, unit: float = 1.0) -> bool:
    """Whether a run's loss ended clearly above where it began, or lost most of what it had reached.

    The end is the median of the last records (three, or a tenth of them), and what was reached the lowest
    median of as many in a row, so that single spikes do not count; a loss that falls slowly, rises and falls
    or stands still has not diverged.

    Args:
        losses: of the recorded steps, finite.
        steps: updates made.
        phase: "train" or "search".
        unit: of the losses, > 0: 1 for squared errors of images in 0..1.
    """
    if steps < _MIN_STEPS or len(losses) < _MIN_RECORDS:
        return False
    window = min(max(3, len(losses) // 10), len(losses) - 1)
    medians = [statistics.median(losses[i : i + window]) for i in range(len(losses) - window + 1)]
    start, best, end = losses[0], min(medians), medians[-1]
    rule, floor = _RULES[phase], _FLOOR * unit
    if min(end, losses[-1]) > max(rule.above_start * start, floor):
        return True
    lost = end - best > 0.5 * max(start - best, 0.0)
    return lost and best < start and min(end, losses[-1]) > max(rule.above_best * best, floor)


def detect_divergence(history: History, steps: int, phase: str, *, of_images: bool = True) -> bool:
    """:func:`has_diverged` of a run; warns with :class:`DivergedRunWarning` if so.

    Args:
        history: of the run.
        steps: updates made.
        phase: "train" or "search".
        of_images: the losses are squared errors of images; others are measured by the first of them.
    """
    losses = history.loss
    unit = 1.0 if of_images or not losses else abs(losses[0])
    if not has_diverged(losses, steps, phase, unit=unit):
        return False
    best = min(history, key=lambda record: record.loss)
    remedy = "a lower learning rate may help" + (", or a smaller kl" if phase == "search" else "")
    warn_caller(
        f"{phase}: the run has diverged: the loss was {losses[0]:.4g} at the start, {best.loss:.4g} at step "
        f"{best.step}, the lowest, and is {losses[-1]:.4g} at the end; {remedy}",
        DivergedRunWarning,
    )
    return True


def check_finite_network(net: nn.Module) -> None:
    """Raise :class:`InputError` that names the parameter or buffer, if one is not finite at the start.

    A buffer may hold infinity, as masks of attention do, but for a batch norm's statistics.
    """
    for name, parameter in net.named_parameters():
        if parameter.is_meta:
            raise InputError(f"net: expected weights with values, got parameter {name} on the meta device")
        _check_finite(f"parameter {name}", parameter, ~torch.isfinite(parameter.detach()))
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point() or buffer.is_complex():
            statistic = name.rpartition(".")[2] in ("running_mean", "running_var")
            _check_finite(f"buffer {name}", buffer, ~torch.isfinite(buffer) if statistic else buffer.isnan())


def _check_finite(what: str, tensor: Tensor, bad: Tensor) -> None:
    count = int(bad.sum())
    if count:
        raise InputError(
            f"net: expected finite weights and buffers, got {count} NaN or infinite of {tensor.numel()} in "
            f"the {what}"
        )


def check_first_gradient(phase: str, gradient: Tensor) -> None:
    """Raise :class:`OESError` if the first gradient, or Adam's first moment of it, is not finite.

    Nothing has been moved before that gradient is taken, so no learning rate helps.
    """
    bad = gradient.numel() - int(torch.isfinite(gradient).sum())
    if bad:
        raise OESError(
            f"{phase}: the gradient of the first step is NaN or infinite for {bad} of {gradient.numel()} "
            "weights, so the learning rate is not to blame: the network's weights may be too large, or its "
            "code has no derivative there, as a root at 0"
        )


def finite_logits(logits: Tensor) -> Tensor:
    """``logits``, infinite ones cut to the largest of the dtype and NaN taken for never kept.

    Args:
        logits: s, shape [n] or [q - 1, n].

    Raises:
        OESError: none of them is a number.
    """
    if bool(torch.isfinite(logits).all()):
        return logits
    bad = int((~torch.isfinite(logits)).sum())
    if bool(logits.isnan().all()):
        raise OESError("search: none of the logits is a number, so there is no mask to cut")
    warn_caller(
        f"search: {bad} of {logits.numel()} logits are NaN or infinite: infinite ones are taken as the "
        "largest there are, NaN as never kept",
        DivergedRunWarning,
    )
    lowest = torch.finfo(logits.dtype).min
    return torch.nan_to_num(logits, nan=lowest)


def blame(
    phase: str,
    step: int,
    loss: float,
    data_loss: float,
    output: Tensor,
    history: History,
    kl: tuple[float, float] | None,
) -> str:
    """One line on a loss that is not finite: since when, and what is to blame.

    Args:
        phase: "train" or "search".
        step: updates made.
        loss: the objective.
        data_loss: its mean squared error alone.
        output: image of this step.
        history: records before it.
        kl: weight of the KL term and the term's value at the start, None where there is none.
    """
    said = f"{phase}: the loss is {loss} at step {step}"
    records = list(history)
    if records:
        said += f", after {records[-1].loss:.4g} at step {records[-1].step}"
    if kl is not None:
        weight, initial = kl
        data_at_start = records[0].loss - initial if records else data_loss
        if math.isfinite(data_loss) or not math.isfinite(initial) or initial > 10 * max(data_at_start, 1.0):
            return (
                f"{said}: kl = {weight:g} is too large, its term outweighs the image; a smaller kl may help"
            )
    if step == 0:
        bad = output.numel() - int(torch.isfinite(output).sum())
        return (
            f"{said}, before any update, so the learning rate is not to blame: {bad} of {output.numel()} "
            "outputs of the network are NaN or infinite, or they are too large to square; its weights may be "
            "too large, or its code divides by 0"
        )
    return f"{said}; a lower learning rate may help"
