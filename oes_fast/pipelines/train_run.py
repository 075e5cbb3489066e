"""The steps of a training: an optimiser over the flat weights of a generator function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oes_fast.ops._clock import Clock
from oes_fast.pipelines.functions import GeneratorFunction
from oes_fast.pipelines.hooks import StepHook
from oes_fast.pipelines.objective import Objective, evaluate, zero_loss
from oes_fast.pipelines.optimizers import Adam, FlatOptimizer, OptimizerFactory, OwnOptimizer
from oes_fast.pipelines.run_stop import RunStop
from oes_fast.pipelines.schedule import Schedule
from oes_fast.rewrite.run.context import unit_gradient


class TrainRun:
    """Steps of an optimiser over the flat weights of a generator function.

    Args:
        function: the generator.
        objective: what is compared with what.
        lr: learning rate, one or that of each step.
        decay: of the running average of the outputs, None for none.
        backend: of Adam.
        weight_decay: see :class:`oes_fast.pipelines.optimizers.Adam`.
        optimizer: makes the one in Adam's place, or None.
        hooks: what else each step does.
        stop: when to end, or None.

    Attributes:
        weights: flat, a leaf that requires a gradient.
        optimizer: what moves them.
    """

    phase = "train"

    def __init__(
        self,
        function: GeneratorFunction,
        objective: Objective,
        lr: float | Schedule,
        decay: float | None,
        backend: str = "auto",
        *,
        weight_decay: float = 0.0,
        optimizer: OptimizerFactory | None = None,
        hooks: Sequence[StepHook] = (),
        stop: RunStop | None = None,
    ) -> None:
        self._function = function
        self._objective = objective
        self._decay = decay
        self._hooks, self._stop = tuple(hooks), stop
        self._step, self._final = 0, False  # of the evaluation under way
        self.weights = function.initial_weights().requires_grad_()
        rate, mask = Schedule.of(lr), function.update_mask()
        self.optimizer: FlatOptimizer
        if optimizer is None:
            # "cpu" has no kernel of its own for every operation: what "auto" comes to on its tensors is best.
            self.optimizer = Adam(
                self.weights, mask, rate, weight_decay, "auto" if backend == "cpu" else backend
            )
        else:
            self.optimizer = OwnOptimizer(self.weights, mask, rate, optimizer)
        self._average: Tensor | None = None
        self._loss = zero_loss(objective)
        self._unit = unit_gradient(self._loss)

    def begin(self, step: int, *, final: bool) -> None:
        """What the hooks do before the evaluation."""
        self._step, self._final = step, final
        for hook in self._hooks:
            hook.begin(step, final=final)

    def evaluate(self, step: int, *, final: bool) -> Tensor:
        """Run the generator and take the loss."""
        output = self.forward(step, final=final)
        self.accumulate(output)
        return output

    def clock(self) -> Clock:
        """For recorded steps."""
        return self.optimizer.clock()

    def forward(self, step: int | Clock, *, final: bool) -> Tensor:
        """:meth:`evaluate` of a step that may be recorded, without the average."""
        with torch.set_grad_enabled(not final):
            output, self._loss = evaluate(
                self._objective, self._function, self.weights, update_stats=not final
            )
        # In one layout, whatever the backend's: the PSNR sums in its order, also after a resume.
        return output.detach().contiguous()

    def accumulate(self, output: Tensor) -> None:
        """Take the output into the running average, and show it to the hooks and to the stopping rule."""
        for hook in self._hooks:
            hook.seen(output)
        if self._decay is not None:
            self._average = (
                output.clone() if self._average is None else self._average.lerp(output, 1 - self._decay)
            )
        if not self._final:  # which leaves everything as it is
            self.watch(output)

    def watch(self, output: Tensor) -> None:
        """Show an output to the stopping rule."""
        if self._stop is not None:
            self._stop.see(self._step, output, self._average, self.network_state)

    def objective(self) -> Tensor:
        """The loss."""
        return self._loss.detach()

    def terms(self) -> tuple[Tensor, None]:
        """The objective; there is no KL term."""
        return self._loss.detach(), None

    def keep(self) -> None:
        """Nothing: the image of weights that are not finite is none."""

    def fall_back(self) -> bool:
        """There is a result if a stopping rule has found one: see :meth:`take_stop`."""
        return self._stop is not None and self._stop.found() is not None

    def update(self, step: int | Clock) -> None:
        """Gradient and, where it may be recorded, the optimiser's step."""
        (grad,) = torch.autograd.grad(self._loss, self.weights, self._unit)
        self.optimizer.update(grad, step)

    def first_gradient(self) -> Tensor:
        """See :meth:`oes_fast.pipelines.optimizers.FlatOptimizer.first_gradient`."""
        return self.optimizer.first_gradient()

    def finish(self, step: int) -> None:
        """The optimiser's step where it was not yet made, and what the hooks do after it."""
        self.optimizer.finish(step, self._loss.detach(), self._again)
        for hook in self._hooks:
            hook.finish(step, self.weights)

    def _again(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the weights as they are within an optimiser's step."""
        with torch.enable_grad():
            _, loss = evaluate(self._objective, self._function, self.weights, update_stats=False)
        (grad,) = torch.autograd.grad(loss, self.weights, self._unit)
        return loss.detach(), grad

    def average(self) -> Tensor | None:
        """Running average of the outputs, None where it is off."""
        return self._average

    def stop(self) -> RunStop | None:
        """Its rule when to stop, or None."""
        return self._stop

    def network_state(self) -> dict[str, Tensor]:
        """Weights and running statistics."""
        buffers = self._function.buffers.items()
        return {"weights": self.weights, **{f"buffer.{name}": buffer for name, buffer in buffers}}

    def take_stop(self) -> None:
        """Go back to the weights and statistics of the image that the stopping rule has found, if any."""
        found = None if self._stop is None else self._stop.found()
        if found is not None:
            with torch.no_grad():
                for name, tensor in self.network_state().items():
                    tensor.copy_(found[name])

    def state(self) -> dict[str, Tensor]:
        """Weights, the optimiser's state, running statistics, average and what hooks and rule keep."""
        state = {**self.network_state(), **self.optimizer.state()}
        if self._average is not None:
            state["average"] = self._average
        for hook in self._hooks:
            state |= hook.state()
        return state if self._stop is None else state | self._stop.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        with torch.no_grad():
            self.weights.copy_(state["weights"])
            self.optimizer.load_state(state)
            for name, buffer in self._function.buffers.items():
                buffer.copy_(state[f"buffer.{name}"])
        for hook in self._hooks:
            hook.load_state(state)
        if self._stop is not None:
            self._stop.load_state(state, self.weights.device)
        if "average" in state:
            self._average = state["average"].to(self._objective.target.device)
