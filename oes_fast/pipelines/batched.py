"""Networks of one mask trained at once, by kernels that take several: one step is a step of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.copies import copy_network
from oes_fast.errors import CheckpointError, OESWarning, warnings_to
from oes_fast.flat import FlatLayout, flatten, unflatten_
from oes_fast.mask import Mask
from oes_fast.pipelines.cuda_graphs import graphed
from oes_fast.pipelines.functions import RewrittenFunction
from oes_fast.pipelines.loop import Member, run_members
from oes_fast.pipelines.objective import Objective, SquaredError
from oes_fast.pipelines.run_stop import RunStop
from oes_fast.pipelines.train import Training, TrainResult, outcome_of, starting_point
from oes_fast.pipelines.train_run import TrainRun
from oes_fast.rewrite.noisy_input import StepNoise
from oes_fast.rewrite.run.context import FusedLoss, unit_gradient


class BatchedFunction:
    """The rewritten networks as a function of all their weights, one after the other in one vector.

    Args:
        function: that of the first network; what the others are of the same kind as.
        nets: networks, N > 1; left alone.
        z: their inputs, each [1, C, H, W].
        mask: which weights to keep; None for all.
        noisy: :meth:`draw_input` will be called.

    Attributes:
        buffers: running statistics, each [N, ...].
    """

    def __init__(
        self,
        function: RewrittenFunction,
        nets: Sequence[nn.Module],
        z: Sequence[Tensor],
        mask: Mask | None,
        *,
        noisy: bool,
    ) -> None:
        self._nets, self._count = tuple(nets), len(nets)
        self._mask = None if mask is None else mask.flat.to(z[0].device)
        self._update_mask = function.update_mask()
        self._plan = function.plan_of_networks(self._count)
        assert self._plan.in_one_chain(z[0].dtype)  # takes the memory of its buffers here
        self._z = tuple(each.detach() for each in z)
        one = not noisy and all(each is z[0] for each in z)
        with torch.no_grad():
            # With noise it is written again in each step, where recorded steps find it.
            self._source = (self._z[0] if one else torch.cat(self._z)).contiguous()
            self._prepared = None if noisy else self._plan.prepare(self._source)
        self.buffers = {
            name: torch.stack([dict(net.named_buffers())[name].detach() for net in nets])
            for name, _ in nets[0].named_buffers()
        }

    def initial_weights(self) -> Tensor:
        """Copies of the kept parameters, shape [N kept]."""
        return torch.cat([self._kept(flatten(net)) for net in self._nets])

    def update_mask(self) -> Tensor | None:
        """See :class:`GeneratorFunction`: of all networks."""
        return None if self._update_mask is None else self._update_mask.repeat(self._count)

    def __call__(self, weights: Tensor, *, update_stats: bool, fused_loss: FusedLoss | None = None) -> Tensor:
        """Images [N, C, H, W] of ``weights`` [N kept]; ``fused_loss`` is taken along, a loss a network."""
        prepared = self._plan.prepare(self._source) if self._prepared is None else self._prepared
        return self._plan.run(
            weights.view(self._count, -1),
            self.buffers,
            self._source,
            dict(prepared),
            update_stats=update_stats,
            fused_loss=fused_loss,
        )

    def draw_input(self, noise: StepNoise | None) -> None:
        """Read the inputs with the same noise for all, or as they are."""
        for number in range(self._count):
            self.draw_input_of(number, noise)

    def draw_input_of(self, number: int, noise: StepNoise | None) -> None:
        """Read the input of one network with this noise from the next call on, or as it is."""
        out = self._source[number : number + 1]
        if noise is None:
            out.copy_(self._z[number])
        else:
            noise.added(self._z[number], out)

    def to_net(self, weights: Tensor) -> nn.Module:
        """The first network; see :meth:`net_of`."""
        return self.net_of(0, weights.view(self._count, -1)[0], {k: b[0] for k, b in self.buffers.items()})

    def net_of(self, number: int, weights: Tensor, buffers: dict[str, Tensor]) -> nn.Module:
        """A copy of one dense network with these weights [kept] and statistics, in training mode."""
        net = copy_network(self._nets[number]).to(weights)
        flat = weights
        if self._mask is not None:
            flat = weights.new_zeros(FlatLayout.of(net).numel)
            flat[self._mask] = weights
        unflatten_(net, flat)
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(buffers[name])
        return net.train()

    def _kept(self, flat: Tensor) -> Tensor:
        return flat if self._mask is None else flat[self._mask]


class _Input:
    """The input of one of the networks."""

    def __init__(self, function: BatchedFunction, number: int) -> None:
        self._function, self._number = function, number

    def draw_input(self, noise: StepNoise | None) -> None:
        self._function.draw_input_of(self._number, noise)


class BatchRun(TrainRun):
    """The steps of N trainings, whose losses are [N] and whose weights lie one after the other."""

    def __init__(self, function: BatchedFunction, objective: Objective, count: int, **options: Any) -> None:
        super().__init__(function, objective, **options)
        self.function, self.count = function, count
        self.parts: list[BatchPart] = []
        self._loss = self._loss.new_zeros(count)
        self._unit = unit_gradient(self._loss)
        self._recorded: Tensor | None = None  # where recorded steps leave the losses
        self._last_average: Tensor | None = None  # of runs that end
        self.made_steps = False  # any, in this process

    def begin(self, step: int, *, final: bool) -> None:
        """A final evaluation, after which some runs may go on, leaves no trace."""
        if final:
            self._recorded = self._loss
        elif self._recorded is not None:
            self._loss, self._recorded, self._last_average = self._recorded, None, None
        super().begin(step, final=final)

    def evaluate(self, step: int, *, final: bool) -> Tensor:
        """Run the networks and take the losses."""
        output = self.forward(step, final=final)
        if not final:
            self.accumulate(output)
        elif self._decay is not None:
            mean = self._average
            self._last_average = output.clone() if mean is None else mean.lerp(output, 1 - self._decay)
        return output

    def finish(self, step: int) -> None:
        """See :meth:`TrainRun.finish`."""
        super().finish(step)
        self.made_steps = True

    def watch(self, output: Tensor) -> None:
        """Show each run's output to its stopping rule."""
        for part in self.parts:
            part.watch(self._step, output)

    def average(self) -> Tensor | None:
        """Running averages of the outputs; after a final evaluation, of the runs that end with it."""
        return self._average if self._last_average is None else self._last_average

    def split(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of :meth:`state` by runs: a view [N, ...]."""
        if name == "average":
            return tensor.unsqueeze(1)
        return tensor if name.startswith("buffer.") else tensor.view(self.count, -1)

    def take_average(self, number: int, average: Tensor) -> None:
        """Go on from the average of one run [1, C, H, W]."""
        if self._average is None:
            like = self._objective.target
            self._average = torch.zeros_like(like, memory_format=torch.contiguous_format)
        self._average[number : number + 1].copy_(average)


class BatchPart:
    """One of the runs of a :class:`BatchRun`; see :class:`oes_fast.pipelines.run_state.RunPart`.

    Args:
        run: the steps.
        number: of the run.
        stop: when it is to end, or None.
    """

    def __init__(self, run: BatchRun, number: int, stop: RunStop | None = None) -> None:
        self._run, self._number, self._stop = run, number, stop
        run.parts.append(self)
        self._left: dict[str, Tensor] | None = None
        self._average: Tensor | None = None

    def objective(self) -> Tensor:
        """Its loss; a copy, since recorded steps write its memory again."""
        return self._run.objective()[self._number].clone()

    def terms(self) -> tuple[Tensor, None]:
        """The objective; there is no KL term."""
        return self.objective(), None

    def first_gradient(self) -> Tensor:
        """Of its weights."""
        return self._run.split("", self._run.first_gradient())[self._number]

    def keep(self) -> None:
        """Nothing."""

    def fall_back(self) -> bool:
        """There is a result if its stopping rule has found one, with which :meth:`net` has the weights."""
        return self._stop is not None and self._stop.found() is not None

    def average(self) -> Tensor | None:
        """Running average of its outputs [1, C, H, W], None where it is off."""
        averages = self._run.average()
        if self._average is not None or averages is None:
            return self._average
        return averages[self._number : self._number + 1]

    def stop(self) -> RunStop | None:
        """Its rule when to stop, or None."""
        return self._stop

    def watch(self, step: int, outputs: Tensor) -> None:
        """Show its output among all to its stopping rule, as long as it goes on."""
        if self._stop is not None and self._left is None:
            output = outputs[self._number : self._number + 1]
            self._stop.see(step, output, self.average(), lambda: self._parts_of(self._run.network_state()))

    def leave(self) -> None:
        """Keep what there is: the others go on, and what is computed for this one is nobody's."""
        average = self.average()
        self._average = None if average is None else average.clone()
        self._left = {name: tensor.detach().clone() for name, tensor in self.state().items()}

    def state(self) -> dict[str, Tensor]:
        """As that of a training alone."""
        if self._left is not None:
            return self._left
        state = self._parts_of(self._run.state())
        return state if self._stop is None else state | self._stop.state()

    def _parts_of(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its own part of what the steps of all depend on."""
        return {name: self._run.split(name, tensor.detach())[self._number] for name, tensor in whole.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        with torch.no_grad():
            for name, tensor in self._parts_of(self._run.state()).items():
                if name != "average":
                    tensor.copy_(state[name])
        if self._stop is not None:
            self._stop.load_state(state, self._run.weights.device)
        if "average" in state:
            self._run.take_average(self._number, state["average"])

    def net(self) -> nn.Module:
        """The dense network with the trained weights, those of the image that its stopping rule has found."""
        found = None if self._stop is None else self._stop.found()
        state = self.state() if found is None else found
        prefix = "buffer."
        buffers = {k.removeprefix(prefix): b for k, b in state.items() if k.startswith(prefix)}
        return self._run.function.net_of(self._number, state["weights"], buffers)


def batchable(training: Training) -> bool:
    """Whether all that a training does beside its network is done for several at once."""
    return isinstance(training.setup.objective, SquaredError) and training.optimizer is None


class TooManyError(Exception):
    """The device has no memory for so many networks; none has made a step."""


def train_batched(
    trainings: Sequence[Training],
    function: RewrittenFunction,
    backend: str,
    *,
    warn: Callable[[int, str, type[OESWarning]], None],
) -> list[TrainResult | Exception]:
    """Make trainings of one kind at once: of each its result, or why it failed.

    Args:
        trainings: more than one, :func:`batchable`, of networks of one kind, which one chain computes (see
            :meth:`RewrittenFunction.in_one_chain`); where they are resumed, from checkpoints at one step.
        function: that of the first.
        backend: that runs it.
        warn: called with a warning and the number of the training, from 0.

    Raises:
        TooManyError: the device has no memory for so many.
        OutOfMemoryError: it had some at first, and has none any more.
    """
    run: BatchRun | None = None
    try:
        run = _bound(trainings, function, backend)
        return _made(run, trainings, backend, warn)
    except torch.OutOfMemoryError as error:
        if run is not None and run.made_steps:  # which would be lost
            raise
        raise TooManyError from error


def _bound(trainings: Sequence[Training], function: RewrittenFunction, backend: str) -> BatchRun:
    """The steps of all."""
    first = trainings[0]
    setups = [training.setup for training in trainings]
    together = BatchedFunction(
        function,
        [each.net for each in setups],
        [each.z for each in setups],
        first.mask,
        noisy=first.setup.noisy_input,
    )
    for number, each in enumerate(setups):
        each.bound(_Input(together, number), first.mask, backend)
    return BatchRun(
        together,
        _objective([each.objective for each in setups]),
        len(trainings),
        lr=first.setup.rate,
        decay=first.average,
        backend=backend,
        weight_decay=first.weight_decay,
        hooks=[hook for each in setups for hook in each.hooks],
    )


def _made(
    run: BatchRun,
    trainings: Sequence[Training],
    backend: str,
    warn: Callable[[int, str, type[OESWarning]], None],
) -> list[TrainResult | Exception]:
    first, setup = trainings[0], trainings[0].setup
    setups = [training.setup for training in trainings]
    kept = {"average": first.average, **run.optimizer.settings()}
    parts = [BatchPart(run, number, each.new_stop()) for number, each in enumerate(setups)]
    members = [
        Member(
            part,
            clean=each.options.clean,
            callback=each.options.callback,
            checkpoint=each.checkpoint(run.phase, kept, starting_point(each.net)),
            number=number,
            leave=part.leave,
        )
        for number, (part, each) in enumerate(zip(parts, setups, strict=True))
    ]
    stopping = setup.options.stopping

    def stopped() -> bool:
        """A checkpoint that cannot be gone on from ends all, see :func:`oes_fast.train_many`."""
        return any(isinstance(member.error, CheckpointError) for member in members) or (
            stopping is not None and stopping()
        )

    run_members(
        graphed(run, backend, setup.z.device),
        members,
        steps=setup.options.steps,
        record_every=setup.options.record_every,
        progress=False,
        stopping=stopped,
    )
    return _results(trainings, members, parts, run.phase, warn)


def _results(
    trainings: Sequence[Training],
    members: Sequence[Member],
    parts: Sequence[BatchPart],
    phase: str,
    warn: Callable[[int, str, type[OESWarning]], None],
) -> list[TrainResult | Exception]:
    results: list[TrainResult | Exception] = []
    for number, (training, member, part) in enumerate(zip(trainings, members, parts, strict=True)):
        if member.finished is None:
            assert member.error is not None
            results.append(member.error)
            continue

        def warned(message: str, category: type[OESWarning], number: int = number) -> None:
            warn(number, message, category)

        with warnings_to(warned):
            outcome = outcome_of(training.setup, training.mask, phase, member.finished, part.net())
            results.append(TrainResult(**outcome))
    return results


def _objective(each: Sequence[Objective]) -> SquaredError:
    """The squared errors of all images; a loss of several is none that the operations of PyTorch take."""
    errors = [one for one in each if isinstance(one, SquaredError)]
    weights = [one.weight for one in errors if one.weight is not None]
    return SquaredError(
        torch.cat([one.target for one in errors]).contiguous(), torch.cat(weights) if weights else None
    )
