"""What moves the weights of a training: Adam on the flat vector, or an optimiser of the caller's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from oes_fast.errors import InputError, OESError
from oes_fast.ops._clock import Clock
from oes_fast.ops.masked_adam import masked_adam
from oes_fast.pipelines.optimizer_state import (
    STATE,
    describe_optimizer,
    load_optimizer_state,
    optimizer_state,
)
from oes_fast.pipelines.schedule import Schedule

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


class FlatOptimizer(Protocol):
    """Moves one flat vector of weights by its gradient, step by step."""

    def update(self, grad: Tensor, step: int | Clock) -> None:
        """Take the gradient [n] of a step that may be recorded, and move the weights if that may be too."""

    def finish(self, step: int, loss: Tensor, again: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """What is never recorded.

        Args:
            step: number of the update, from 0.
            loss: scalar that the gradient was of.
            again: (loss, gradient) of the weights as they are by now.
        """

    def first_gradient(self) -> Tensor:
        """[n], finite after the first update where its gradient was."""

    def clock(self) -> Clock:
        """For recorded steps."""

    def settings(self) -> dict[str, Any]:
        """What a result depends on, as JSON values."""

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, but the weights."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave, among others."""


def adam_settings(lr: float, weight_decay: float) -> dict[str, Any]:
    """What a result of :class:`Adam` depends on, as JSON values."""
    return {"lr": lr} | ({"weight_decay": weight_decay} if weight_decay else {})


class Adam:
    """The fused kernel, with coupled weight decay as that of torch.optim.Adam.

    Args:
        weights: flat [n], updated in place.
        mask: bool [n], entries that are moved; None for all.
        rate: learning rate of each step.
        weight_decay: times the weights is added to the gradient, and goes through Adam's moments. (Decoupled
            decay, as AdamW has it, is another method.)
        backend: of the kernel.
    """

    def __init__(
        self, weights: Tensor, mask: Tensor | None, rate: Schedule, weight_decay: float, backend: str
    ) -> None:
        self._weights, self._mask = weights, mask
        self._rate, self._weight_decay = rate, weight_decay
        self._backend = backend
        self._exp_avg = torch.zeros_like(weights)
        self._exp_avg_sq = torch.zeros_like(weights)

    @torch.no_grad()
    def update(self, grad: Tensor, step: int | Clock) -> None:
        """See :class:`FlatOptimizer`: one step of Adam; a clock has the learning rates of its own."""
        if self._weight_decay:
            grad = grad.add(self._weights, alpha=self._weight_decay)
        masked_adam(
            self._weights,
            grad,
            self._exp_avg,
            self._exp_avg_sq,
            step=step,
            lr=self._rate(0 if isinstance(step, Clock) else step),
            mask=self._mask,
            backend=self._backend,
        )

    def finish(self, step: int, loss: Tensor, again: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """See :class:`FlatOptimizer`: nothing."""

    def first_gradient(self) -> Tensor:
        """See :class:`FlatOptimizer`: the first moment, a share of it."""
        return self._exp_avg

    def clock(self) -> Clock:
        """See :class:`FlatOptimizer`."""
        return self._rate.clock(self._weights)

    def settings(self) -> dict[str, Any]:
        """See :class:`FlatOptimizer`."""
        return adam_settings(self._rate.lr, self._weight_decay)

    def state(self) -> dict[str, Tensor]:
        """See :class:`FlatOptimizer`: both moments."""
        return {"exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See :class:`FlatOptimizer`."""
        self._exp_avg.copy_(state["exp_avg"])
        self._exp_avg_sq.copy_(state["exp_avg_sq"])


class OwnOptimizer:
    """An optimiser that the caller's factory makes of the weights.

    The gradient may be recorded; the optimiser's step never is. Entries that are not moved have no gradient
    and are put back after each step, whatever the optimiser does to them. Without weights it makes no step.

    Args:
        weights: flat [n], a leaf that requires a gradient, updated in place.
        mask: bool [n], entries that are moved; None for all.
        rate: factors on the learning rates that the optimiser's groups begin with.
        factory: makes it of [weights].

    Raises:
        InputError: the factory fails, or makes something else.
    """

    def __init__(
        self, weights: Tensor, mask: Tensor | None, rate: Schedule, factory: OptimizerFactory
    ) -> None:
        self._weights, self._rate = weights, rate
        self._held = None if mask is None else ~mask
        self._values = None if mask is None else weights.detach().clone()  # of what is held
        self._grad = torch.zeros_like(weights, requires_grad=False)
        self._optimizer = _made(factory, weights)
        self._rates: list[Any] = [group.get("lr") for group in self._optimizer.param_groups]
        if rate.varies and not all(isinstance(lr, int | float) for lr in self._rates):
            raise InputError(
                "schedule: expected an optimizer whose groups have a number as lr, got "
                f"{type(self._optimizer).__name__} with {self._rates[0]!r}"
            )
        parameters = inspect.signature(self._optimizer.step).parameters
        self._takes_closure = "closure" in parameters
        self._settings = {"optimizer": describe_optimizer(self._optimizer)}

    def update(self, grad: Tensor, step: int | Clock) -> None:
        """See :class:`FlatOptimizer`: keeps the gradient."""
        self._grad.copy_(grad if self._held is None else grad.masked_fill(self._held, 0))

    def finish(self, step: int, loss: Tensor, again: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """See :class:`FlatOptimizer`: the optimiser's step, which begins with the gradient that is known.

        Raises:
            InputError: the optimiser's code fails, or puts other memory in the place of the weights.
        """
        if self._weights.numel() == 0:
            return
        if self._rate.varies:
            for group, lr in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = float(lr) * self._rate.factor(step)
        at, known = self._weights.data_ptr(), True
        failed: Exception | None = None  # within the evaluation, which is none of the optimiser's

        def closure() -> Tensor:
            nonlocal known, failed
            if known:
                known = False
                self._weights.grad = self._grad
                return loss
            self._put_back()
            try:
                other, grad = again()
            except Exception as error:
                failed = error
                raise
            self._weights.grad = grad if self._held is None else grad.masked_fill(self._held, 0)
            return other

        try:
            if self._takes_closure:
                self._optimizer.step(closure)  # type: ignore[arg-type]  # a scalar tensor, as torch's examples
            else:
                closure()
                self._optimizer.step()
        except Exception as error:
            if error is failed or isinstance(error, torch.OutOfMemoryError | OESError):
                raise
            raise InputError(
                f"optimizer: expected one that takes a dense gradient of {self._weights.dtype} and shape "
                f"{tuple(self._weights.shape)}, {type(self._optimizer).__name__} raises in step {step} "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        self._weights.grad = None
        if self._weights.data_ptr() != at:
            raise InputError(
                "optimizer: expected one that updates the weights in place, "
                f"{type(self._optimizer).__name__} replaces them"
            )
        self._put_back()

    def _put_back(self) -> None:
        if self._held is not None and self._values is not None:
            with torch.no_grad():
                self._weights.copy_(torch.where(self._held, self._values, self._weights))

    def first_gradient(self) -> Tensor:
        """See :class:`FlatOptimizer`."""
        return self._grad

    def clock(self) -> Clock:
        """See :class:`FlatOptimizer`; nothing recorded reads its corrections."""
        return Clock(self._weights.device, dtype=self._weights.dtype, rows=1)

    def settings(self) -> dict[str, Any]:
        """See :class:`FlatOptimizer`: class and options that it began with."""
        return self._settings

    def state(self) -> dict[str, Tensor]:
        """See :class:`FlatOptimizer`: the optimiser's own."""
        return optimizer_state(self._optimizer)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See :class:`FlatOptimizer`."""
        load_optimizer_state(self._optimizer, {k: v for k, v in state.items() if k.startswith(STATE)})


def _made(factory: OptimizerFactory, weights: Tensor) -> torch.optim.Optimizer:
    if not callable(factory):
        raise InputError(
            "optimizer: expected a function that makes a torch.optim.Optimizer of [weights], "
            f"got {type(factory).__name__}"
        )
    try:
        optimizer = factory([weights])
    except (torch.OutOfMemoryError, OESError):
        raise
    except Exception as error:
        raise InputError(
            "optimizer: expected a function that makes a torch.optim.Optimizer of [weights], it raises "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            f"optimizer: expected it to make a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(held) != 1 or held[0] is not weights:
        raise InputError(
            f"optimizer: expected one of the weights that it is given alone, got {len(held)} tensors"
        )
    return optimizer


def check_optimizer(
    factory: OptimizerFactory | None, *, lr: float, default: float, weight_decay: float
) -> None:
    """Raise :class:`InputError` where an optimiser comes with what is its own to have."""
    if factory is None:
        return
    for name, value, usual in (("lr", lr, default), ("weight_decay", weight_decay, 0.0)):
        if value != usual:
            raise InputError(f"{name}: expected none beside optimizer, which has its own, got {value!r}")
