"""Sparse-DIP: train the weights a mask keeps on the noisy image (Ghosh et al. 2024, section 3)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_number, check_scale
from oes_fast.entry import Entry
from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout, flatten
from oes_fast.mask import Mask
from oes_fast.pipelines.checkpoint import digest
from oes_fast.pipelines.clean import CleanView
from oes_fast.pipelines.hooks import StepHook
from oes_fast.pipelines.loop import Callback, Finished
from oes_fast.pipelines.objective import Forward, Loss
from oes_fast.pipelines.optimizers import OptimizerFactory, adam_settings, check_optimizer
from oes_fast.pipelines.results import StoppedResult
from oes_fast.pipelines.schedule import Factor
from oes_fast.pipelines.setup import RunOptions, Setup
from oes_fast.pipelines.stop_rule import StopRule
from oes_fast.pipelines.train_run import TrainRun
from oes_fast.precision import DEFAULT, in_precision

LR = 1e-2


@dataclass(frozen=True, eq=False, repr=False)
class TrainResult(StoppedResult):
    """What :func:`train_sparse` returns.

    Attributes:
        output: restored image [1, C, H, W]: what ``net`` gives for z in training mode. With ``stop``, that of
            the step that the rule has found, with the noise on the input of that step where there is any.
        average: running average of the outputs [1, C, H, W], None where ``average`` was not asked for; with
            ``stop``, that of the rule's step.
        history: step, loss, PSNR (and PSNR of the average) of the recorded steps.
        net: the dense network with the trained weights in place, zeros where the mask drops.
        mask: the mask trained with.
        steps: updates made.
        interrupted: stopped before the last step.
        collapsed: the output is flat.
        diverged: the loss left for good: it ended clearly above where it began, or lost most of what it had
            reached.
        seconds: time this call took.
        backend: that ran it.
        stop: where and why the run stopped; None without ``stop``.
    """

    average: Tensor | None
    net: nn.Module


@in_precision
def train_sparse(
    net: nn.Module,
    mask: Mask,
    z: Tensor,
    noisy: Tensor,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    weight: Tensor | None = None,
    entry: Entry | None = None,
    tv: float = 0.0,
    steps: int = 40_000,
    lr: float = LR,
    schedule: str | Factor | None = None,
    weight_decay: float = 0.0,
    optimizer: OptimizerFactory | None = None,
    input_noise: float = 0.0,
    clean: Tensor | CleanView | None = None,
    average: float | None = None,
    stop: StopRule | None = None,
    backend: str = "auto",
    verify: bool = True,
    precision: str = DEFAULT,
    record_every: int = 10,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
    seed: int = 0,
) -> TrainResult:
    """Train the kept weights by Adam on mean((G(w * mask, z) - noisy)^2); the dropped ones stay zero.

    Args:
        net: generator; copied, and left alone. Parameters that it holds fixed (``requires_grad`` off) stay as
            they are, but for what the mask drops; a network that holds all fixed is trained whole.
        mask: which weights to keep.
        z: fixed input, shape [1, C, H, W], see :func:`oes_fast.noise_input`. Networks other than
            :func:`oes_fast.models.skip`'s may take one of another size than the image's; [1, C] and
            [1, C, L] on the reference. Or N of them, [N, C, H, W], for N images that the one network is to
            give: the loss is the mean over all, batch norms take their statistics over all, and so does the
            PSNR. Rows of kernels take one image only: N run on PyTorch's operations.
        noisy: image to fit, shape [1, C', H', W'] as the network gives, same dtype and device as the network;
            N for N inputs. With ``forward`` what was measured instead: of any shape, real or complex, in the
            same precision.
        forward: what leads from an image to its measurement, None for nothing: a function of the network's
            image whose result has the shape and dtype of ``noisy``, or an object with such a method ``A``, as
            deepinv's physics are. Autograd differentiates it; it is to do the same each time, and on a GPU
            without waiting for it. deepinv.physics.Inpainting becomes ``weight``.
        loss: function of (measured, noisy) that gives a scalar, such as torch.nn.L1Loss(); None for the mean
            squared error, of complex numbers that of their differences' absolute values.
        weight: of each squared error, real and >= 0 or bool, of a shape that expands to that of ``noisy``:
            the loss is mean(weight * |measured - noisy|^2) over all numbers of ``noisy``. Not with ``loss``.
        entry: which of several results of the network is the image: an index of a tuple or list, a name in a
            dict or named tuple; None where it gives the image.
        tv: weight, >= 0, of the image's total variation, which is added to the loss; see
            :func:`oes_fast.functional.total_variation`.
        steps: updates to make.
        lr: Adam's learning rate.
        schedule: factor on the learning rate in update t of T, from t = 0: "cosine", (1 + cos(pi t / T)) / 2;
            "linear", 1 - t / T; a function of t that gives one, finite and >= 0, and the same whenever it is
            asked; None for 1. A run with one is resumed with the same number of steps; a function is known
            to checkpoints by its values, at all steps, or at 100,000 among more.
        weight_decay: >= 0, coupled as in torch.optim.Adam: its multiple of the weights is added to the
            gradient before the moments are taken. For AdamW's, see ``optimizer``.
        optimizer: function that makes a torch.optim.Optimizer of [weights], one flat tensor, to take Adam's
            place: ``lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9)``. ``lr`` and ``weight_decay`` are its
            own then, and ``schedule`` multiplies the learning rates it starts with. One that evaluates
            several times a step, as torch.optim.LBFGS, moves the running statistics once. Its ``state_dict``
            goes into checkpoints: tensors, numbers and text alone. Each backend takes it; it is never part
            of a recorded step, so on a GPU it costs launches.
        input_noise: standard deviation, >= 0, of Gaussian noise added to ``z`` anew in each step (1/30 is
            reg_noise_std of the deep-image-prior code, where z is drawn from U(0, 0.1)); a function of
            (seed, step) alone, the same on every backend. The images of the history, of callbacks and of the
            running average are those under that noise; the last one, the result's ``output``, is that of
            ``z`` itself.
        clean: image, as the network gives, to report the PSNR against; it does not enter the training.
        average: decay of a running average of the outputs, such as 0.99 (Ulyanov et al. 2018, section 4);
            None for none, as published.
        stop: :class:`oes_fast.VarianceStop`, :class:`oes_fast.HoldoutStop` or
            :class:`oes_fast.DiscrepancyStop`, which may end the run before ``steps``; the result is of the
            step that the rule has found, whether it ended the run or not, see docs/stopping.md. The rule
            itself is left alone: each run has a copy. The last two need squared errors of real numbers; with
            ``forward``, a holdout leaves out places of the measurement, of shape [N, C, ...].
        backend: "auto", "reference", "torch", "cpu", "triton" or "cuda", see :func:`oes_fast.backends`.
        verify: compare the rewritten network with ``net`` on ``z`` before the first step, which takes as long
            as 12 to 15 dense steps, in float64 where memory allows; where they differ, warn and run ``net``.
        precision: of float32 products: "float32"; "tf32", whose operands a GPU may round to 11 bits; or
            "tf32x3", three such products for one on a GPU's kernels; see :func:`oes_fast.precision`.
        record_every: steps from one record of the history to the next.
        callback: called with a :class:`StepInfo` after every evaluation; returning anything true (True, a
            NumPy or tensor boolean, a number other than 0) ends the run.
        progress: show step, loss, PSNR and the time left: a bar in a notebook and, on stderr, in a terminal;
            elsewhere a line every ten seconds on stderr.
        checkpoint: file to keep the state in. With one, SIGTERM and SIGHUP save before they end the process,
            where the application has set no handler of its own.
        checkpoint_seconds: time between two saves.
        resume: go on from ``checkpoint`` where it exists: bit for bit as without the break. Without, the file
            of an unfinished run is set aside ("run.old.ckpt") with a CheckpointWarning, and that of a
            finished one overwritten.
        seed: of the noise on the input, in [0, 2^64).

    Returns:
        :class:`TrainResult`.

    Raises:
        InputError: an argument does not fit, with its name.
        MaskMismatchError: the mask belongs to another network.
        CheckpointError: the checkpoint belongs to another run.
        BackendError: the backend cannot run here.
        OESError: the loss became infinite or NaN; the message says when and what may be to blame.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> mask = oes.search_mask(net, z, noisy, density=0.2, steps=5).mask
        >>> fit = oes.train_sparse(net, mask, z, noisy, steps=20, average=0.9)
        >>> fit.output.shape, fit.history.loss[-1] < fit.history.loss[0]
        (torch.Size([1, 3, 32, 32]), True)
    """
    setup = Setup(
        net,
        z,
        noisy,
        RunOptions(
            steps=steps,
            lr=lr,
            clean=clean,
            backend=backend,
            verify=verify,
            precision=precision,
            record_every=record_every,
            callback=callback,
            progress=progress,
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            resume=resume,
            forward=forward,
            loss=loss,
            weight=weight,
            tv=tv,
            entry=entry,
            schedule=schedule,
            input_noise=input_noise,
            seed=seed,
            stop=stop,
        ),
    )
    if not isinstance(mask, Mask):
        raise InputError(f"mask: expected an oes_fast.Mask, got {type(mask).__name__}")
    return Training(setup, mask, average=average, weight_decay=weight_decay, optimizer=optimizer).run()


class Training:
    """A training of :func:`train_sparse` before it begins, its arguments checked.

    Args:
        setup: network, input, image and options, checked.
        mask: which weights to keep, None for all.
        average: decay of the running average of the outputs, or None.
        weight_decay: see :func:`train_sparse`.
        optimizer: in Adam's place, or None.

    Attributes:
        setup, mask, average, weight_decay, optimizer: as given.

    Raises:
        InputError: an argument does not fit, with its name.
        MaskMismatchError: the mask belongs to another network.
    """

    def __init__(
        self,
        setup: Setup,
        mask: Mask | None,
        *,
        average: float | None,
        weight_decay: float,
        optimizer: OptimizerFactory | None,
    ) -> None:
        if mask is not None:
            mask.check(setup.net)
        check_optimizer(optimizer, lr=setup.lr, default=LR, weight_decay=weight_decay)
        self.setup, self.mask = setup, mask
        self.average, self.weight_decay = check_average(average, weight_decay, setup.dtype)
        self.optimizer = optimizer

    def check_checkpoint(self) -> None:
        """Refuse the checkpoint to go on from, as far as it can be judged before the network is bound.

        Raises:
            CheckpointError: see :meth:`oes_fast.pipelines.checkpoint.Checkpoint.load`.
        """
        options = self.setup.options
        if not options.resume or options.checkpoint is None or not os.path.exists(options.checkpoint):
            return
        settings = None
        if self.optimizer is None:
            settings = {"average": self.average, **adam_settings(self.setup.lr, self.weight_decay)}
        self.setup.check_checkpoint(self.mask, settings, starting_point(self.setup.net))

    def run(self) -> TrainResult:
        """Train; see :func:`train_sparse`."""
        return TrainResult(
            **fit(
                self.setup,
                self.mask,
                average=self.average,
                weight_decay=self.weight_decay,
                optimizer=self.optimizer,
            )
        )


def check_average(
    average: float | None, weight_decay: float, dtype: torch.dtype
) -> tuple[float | None, float]:
    """Both, if they are in range for a network of ``dtype``.

    Raises:
        InputError: one is not.
    """
    if average is not None:
        average = check_number("average", average, minimum=0.0, below=1.0)
    return average, check_scale("weight_decay", weight_decay, dtype, minimum=0.0)


def fit(
    setup: Setup,
    mask: Mask | None,
    *,
    average: float | None,
    weight_decay: float = 0.0,
    optimizer: OptimizerFactory | None = None,
    hooks: Sequence[StepHook] = (),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train from the network's weights on, and give what a :class:`TrainResult` holds.

    Args:
        setup: network, input, image and options, checked.
        mask: which weights to keep, None for all.
        average: decay of the running average of the outputs, or None.
        weight_decay: see :func:`train_sparse`.
        optimizer: in Adam's place, or None.
        hooks: what else each step does.
        settings: what the result depends on beside what is named here and in ``setup``, as JSON values.

    Raises:
        InputError: ``average`` or ``weight_decay`` is out of range, or ``optimizer`` makes no optimiser.
    """
    average, decay = check_average(average, weight_decay, setup.dtype)
    net = setup.net
    function, backend = setup.bind(mask)
    run = TrainRun(
        function,
        setup.objective,
        setup.rate,
        average,
        backend,
        weight_decay=decay,
        optimizer=optimizer,
        hooks=(*setup.hooks, *hooks),
        stop=setup.new_stop(),
    )
    kept = {"average": average, **run.optimizer.settings(), **(settings or {})}
    finished = setup.run(run, kept, starting_point(net))
    run.take_stop()
    return outcome_of(setup, mask, run.phase, finished, function.to_net(run.weights.detach()))


def starting_point(net: nn.Module) -> str:
    """A hash of the weights and statistics that a training begins with."""
    return digest(flatten(net), *net.buffers())


def outcome_of(
    setup: Setup, mask: Mask | None, phase: str, finished: Finished, net: nn.Module
) -> dict[str, Any]:
    """What a :class:`TrainResult` holds.

    Args:
        setup: of the run.
        mask: which weights were kept, None for all.
        phase: of the run.
        finished: how its steps ended.
        net: the dense network with the trained weights.
    """
    return {
        **setup.outcome(finished, finished.output, phase),
        "average": finished.average,
        "stop": finished.stop,
        "net": net,
        "mask": Mask.from_flat(
            setup.net, torch.ones(FlatLayout.of(setup.net).numel, dtype=torch.bool, device="cpu")
        )
        if mask is None
        else mask,
    }
