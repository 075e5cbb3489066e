"""What the mask search and every training set up and end in the same way."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from oes_fast._checks import check_flag, check_integer, check_scale, check_steps
from oes_fast.entry import Entry, check_entry
from oes_fast.mask import Mask
from oes_fast.pipelines.checkpoint import Checkpoint, digest, network_digest, take_checkpoint_choices
from oes_fast.pipelines.clean import CleanView, clean_pixels
from oes_fast.pipelines.cuda_graphs import Recordable, graphed
from oes_fast.pipelines.differences import describe_image, describe_mask, describe_network
from oes_fast.pipelines.divergence import detect_divergence
from oes_fast.pipelines.functions import GeneratorFunction, make_function
from oes_fast.pipelines.hooks import StepHook
from oes_fast.pipelines.input_noise import InputNoise, ReadsInput
from oes_fast.pipelines.inputs import check_run_inputs, detect_collapse, ordinary
from oes_fast.pipelines.loop import Callback, Finished, run_steps
from oes_fast.pipelines.objective import Forward, Loss, Objective, SquaredError, make_objective, prepare
from oes_fast.pipelines.run_stop import RunStop, bind_rule, check_rule
from oes_fast.pipelines.schedule import Factor, Schedule
from oes_fast.pipelines.stop_rule import StopRule
from oes_fast.reference.philox import STEP_INPUT_NOISE


@dataclass(frozen=True)
class RunOptions:
    """Arguments that :func:`oes_fast.search_mask` and :func:`oes_fast.train_sparse` share; see there.

    ``stopping`` is that of :func:`oes_fast.pipelines.loop.run_steps`, ``make`` makes the generator function.
    """

    steps: int
    lr: float
    clean: Tensor | CleanView | None
    backend: str
    verify: bool
    precision: str
    record_every: int
    callback: Callback | None
    progress: bool
    checkpoint: str | os.PathLike[str] | None
    checkpoint_seconds: float
    resume: bool
    forward: Forward | None = None
    loss: Loss | None = None
    weight: Tensor | None = None
    tv: float = 0.0
    entry: Entry | None = None
    schedule: str | Factor | None = None
    input_noise: float = 0.0
    seed: int = 0  # of that noise
    stop: StopRule | None = None
    stopping: Callable[[], bool] | None = None
    make: Callable[..., tuple[GeneratorFunction, str]] = make_function


class Setup:
    """A network, its input and what it is fitted to, checked; then bound to a backend.

    Args:
        net: generator; left alone.
        z: input [N, C, ...].
        noisy: N images to fit.
        options: as given by the caller.
        stream: of the noise on the input.

    Attributes:
        net: as given.
        z: as given, or a copy that autograd takes.
        options: as given.
        objective: what is compared with what.
        dtype: of the network.
        lr: Adam's learning rate.
        rate: that of each step.
        hooks: of a bound one: the noise on the input, where there is any.

    Raises:
        InputError: an argument does not fit, with its name.
    """

    def __init__(
        self,
        net: nn.Module,
        z: Tensor,
        noisy: Tensor,
        options: RunOptions,
        *,
        stream: int = STEP_INPUT_NOISE,
    ) -> None:
        check_run_inputs(net, z, noisy, options.clean, forward=options.forward, batch=True)
        check_steps("steps", options.steps)
        check_integer("record_every", options.record_every, minimum=1)
        check_flag("verify", options.verify)
        check_flag("progress", options.progress)
        check_flag("resume", options.resume)
        check_entry(options.entry)
        self.dtype = next(net.parameters()).dtype
        self.lr = check_scale("lr", options.lr, self.dtype, above=0.0)
        self.rate = Schedule(self.lr, options.schedule, options.steps)
        self.net = net
        self.z = ordinary(z)
        self._rule = check_rule(options.stop)
        objective: Objective = make_objective(
            ordinary(noisy),
            forward=options.forward,
            loss=options.loss,
            weight=options.weight,
            tv=options.tv,
            clean=options.clean if isinstance(options.clean, Tensor) else None,
        )
        self.objective = bind_rule(self._rule, objective)
        std = check_scale("input_noise", options.input_noise, self.dtype, minimum=0.0)
        seed = check_integer("seed", options.seed, minimum=0, below=2**64)
        self._std, self._seed, self._stream = std, seed, stream
        self.hooks: tuple[StepHook, ...] = ()
        self.options = options
        self._mask: Mask | None = None
        self._backend = options.backend

    def bind(self, mask: Mask | None) -> tuple[GeneratorFunction, str]:
        """The generator on a backend, see :func:`make_function`, with the choices of a run that is resumed.

        Args:
            mask: which weights to keep, or None for all.

        Returns:
            (function, name of the backend that runs it).
        """
        options = self.options
        if options.make is make_function:  # another takes them itself, at the time that it plans the network
            take_checkpoint_choices(options.checkpoint, resume=options.resume)
        function, backend = options.make(
            self.net,
            self.z,
            mask,
            options.backend,
            verify=options.verify,
            noisy=self._std > 0,
            entry=options.entry,
        )
        self.bound(function, mask, backend)
        if options.checkpoint is not None:
            prepare(
                self.objective,
                lambda: function(function.initial_weights(), update_stats=False),
                self.z.device,
            )
        return function, backend

    def bound(self, function: ReadsInput, mask: Mask | None, backend: str) -> None:
        """Take note of what it is bound to, and have the noise on the input drawn for that.

        Args:
            function: reads the input.
            mask: which weights to keep, or None for all.
            backend: that runs it.
        """
        if self._std:
            self.hooks = (InputNoise(function, self._std, seed=self._seed, stream=self._stream),)
        self._mask, self._backend = mask, backend

    def unbind(self) -> None:
        """Let go of what it was bound to, for which the noise on the input is drawn."""
        self.hooks = ()

    def new_stop(self) -> RunStop | None:
        """The stopping rule of a run that begins; None for none."""
        return None if self._rule is None else RunStop(self._rule.fresh())

    @property
    def noisy_input(self) -> bool:
        """Whether there is noise on the input."""
        return self._std > 0

    def run(self, run: Recordable, settings: Mapping[str, Any], weights: str) -> Finished:
        """Make the steps, recorded once where the device has recordings, and keep the checkpoint.

        Args:
            run: the steps, on what :meth:`bind` gave.
            settings: what its result depends on beside the options here; kept in checkpoints.
            weights: digest of what it starts from.
        """
        options = self.options
        return run_steps(
            graphed(run, self._backend, self.z.device),
            steps=options.steps,
            record_every=options.record_every,
            clean=options.clean,
            callback=options.callback,
            progress=options.progress,
            stopping=options.stopping,
            checkpoint=self.checkpoint(run.phase, settings, weights),
        )

    def checkpoint(self, phase: str, settings: Mapping[str, Any], weights: str) -> Checkpoint:
        """The run's, on what it is bound to.

        Args:
            phase: "search" or "train".
            settings: as for :meth:`run`.
            weights: as for :meth:`run`.
        """
        options, clean, mask = self.options, self.options.clean, self._mask
        return Checkpoint(
            options.checkpoint,
            {
                "phase": phase,
                "backend": self._backend,
                "precision": options.precision,
                **settings,
                **self.rate.settings(),
                **({"input_noise": self._std, "seed": self._seed} if self._std else {}),
                "record_every": options.record_every,
                "network": network_digest(self.net),
                "weights": weights,
                **({} if mask is None else {"mask": digest(mask.flat)}),
                "z": digest(self.z),
                **({} if options.entry is None else {"entry": options.entry}),
                **self.objective.settings(),
                **({} if self._rule is None else {"stop": self._rule.describe()}),
                "clean": None if clean is None else digest(clean_pixels(clean)),
            },
            steps=options.steps,
            every_seconds=options.checkpoint_seconds,
            resume=options.resume,
            words={
                "network": describe_network(self.net),
                **({} if mask is None else {"mask": describe_mask(mask.flat)}),
                "z": describe_image(self.z),
                **self.objective.words(),
                **({} if clean is None else {"clean": describe_image(clean_pixels(clean))}),
            },
            device=self.z.device,
        )

    def check_checkpoint(self, mask: Mask | None, settings: Mapping[str, Any] | None, weights: str) -> None:
        """Refuse the checkpoint of a training before it is bound to anything.

        Args:
            mask: as for :meth:`bind`.
            settings: as for :meth:`run`; None where they are not known before.
            weights: as for :meth:`run`.

        Raises:
            CheckpointError: the file is no complete checkpoint, or one of a run with other settings.
        """
        if isinstance(self.objective, SquaredError):  # another one knows its settings once it is bound
            self._mask = mask
            checkpoint = self.checkpoint("train", settings or {}, weights)
            del checkpoint.settings["backend"]
            checkpoint.check(None if settings is None else ["backend"])

    def outcome(self, finished: Finished, output: Tensor, phase: str) -> dict[str, Any]:
        """What a :class:`RunResult` holds but the mask; warns where the run collapsed or diverged.

        Args:
            finished: how the steps ended.
            output: images [N, C, H, W] of the result.
            phase: "search" or "train".
        """
        options = self.options
        return {
            "output": output,
            "history": finished.history,
            "steps": finished.steps,
            "interrupted": finished.interrupted,
            "collapsed": detect_collapse(
                *self.objective.spreads(output), phase, forward=options.forward is not None
            ),
            "diverged": finished.fell_back
            or detect_divergence(
                finished.history,
                finished.steps,
                phase,
                of_images=isinstance(self.objective, SquaredError),
            ),
            "seconds": finished.seconds,
            "backend": self._backend,
        }
