"""Deep image prior: train all weights of the generator on the noisy image (Ulyanov et al., CVPR 2018)."""

from __future__ import annotations

import os

from torch import Tensor, nn

from oes_fast._checks import check_scale
from oes_fast.entry import Entry
from oes_fast.pipelines.clean import CleanView
from oes_fast.pipelines.loop import Callback
from oes_fast.pipelines.objective import Forward, Loss
from oes_fast.pipelines.optimizers import OptimizerFactory, check_optimizer
from oes_fast.pipelines.schedule import Factor
from oes_fast.pipelines.setup import RunOptions, Setup
from oes_fast.pipelines.stop_rule import StopRule
from oes_fast.pipelines.train import TrainResult, fit
from oes_fast.precision import DEFAULT, in_precision

LR = 1e-3


@in_precision
def dense_dip(
    net: nn.Module,
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
    """Train all weights by Adam on mean((G(w, z + input_noise * N(0, 1)) - noisy)^2).

    The defaults are those of the OES paper's comparison: no weight decay, no noise. Without ``stop`` it fits
    the noise in the end: see the peak in :meth:`TrainResult.report`.

    Args:
        net: generator, such as :func:`oes_fast.fresh_generator`'s or :func:`oes_fast.models.deep_decoder`;
            copied, and left alone. Parameters that it holds fixed (``requires_grad`` off) stay as
            they are, unless it holds all fixed.
        z: fixed input, shape [1, C, h, w], see :func:`oes_fast.noise_input`. Networks other than
            :func:`oes_fast.models.skip`'s may take one of another size than the image's. Or N of them for N
            images, see :func:`oes_fast.train_sparse`.
        noisy: image to fit, shape [1, C', H, W] as the network gives, same dtype and device as the network;
            N for N inputs. With ``forward`` what was measured instead.
        forward: from an image to its measurement, as for :func:`oes_fast.train_sparse`, and so are ``loss``,
            ``weight`` and ``tv``.
        loss: of (measured, noisy), in the place of the mean squared error.
        weight: of each squared error.
        entry: which of several results of the network is the image.
        tv: weight of the image's total variation.
        steps: updates to make.
        lr: Adam's learning rate.
        schedule: factor on it in each update, see :func:`oes_fast.train_sparse`.
        weight_decay: >= 0, coupled as in torch.optim.Adam: its multiple of the weights is added to the
            gradient before the moments are taken.
        optimizer: function that makes a torch.optim.Optimizer of [weights], to take Adam's place, see
            :func:`oes_fast.train_sparse`.
        input_noise: standard deviation, >= 0, of Gaussian noise added to ``z`` anew in each step (1/30 is
            reg_noise_std of the deep-image-prior code, where z is drawn from U(0, 0.1)); a function of
            (seed, step) alone, the same on every backend. The images of the history, of callbacks and of the
            running average are those under that noise; the last one, the result's ``output``, is that of
            ``z`` itself.
        clean: image to report the PSNR against; it does not enter the training.
        average: decay of a running average of the outputs, such as 0.99; None for none.
        stop: rule that may end the run before ``steps``, and says which step's image is the result; see
            :func:`oes_fast.train_sparse`.
        backend: "auto", "reference", "torch", "cpu", "triton" or "cuda", see :func:`oes_fast.backends`.
        verify: compare the rewritten network with ``net`` first, see :func:`oes_fast.train_sparse`.
        precision: of float32 products, see :func:`oes_fast.precision`.
        record_every: steps from one record of the history to the next.
        callback: called with a :class:`StepInfo` after every evaluation; returning anything true ends the
            run.
        progress: show step, loss, PSNR and the time left, see :func:`oes_fast.train_sparse`.
        checkpoint: file to keep the state in.
        checkpoint_seconds: time between two saves.
        resume: go on from ``checkpoint`` where it exists: bit for bit as without the break. Without, the file
            of an unfinished run is set aside ("run.old.ckpt") with a CheckpointWarning, and that of a
            finished one overwritten.
        seed: of the noise, in [0, 2^64).

    Returns:
        :class:`TrainResult`, whose mask keeps every weight.

    Raises:
        InputError: an argument does not fit, with its name.
        CheckpointError: the checkpoint belongs to another run.
        BackendError: the backend cannot run here.
        OESError: the loss became infinite or NaN; the message says when and what may be to blame.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> fit = oes.baselines.dense_dip(net, z, noisy, steps=20, lr=1e-2, input_noise=1 / 30)
        >>> fit.output.shape, fit.mask.density
        (torch.Size([1, 3, 32, 32]), 1.0)
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
    check_optimizer(optimizer, lr=lr, default=LR, weight_decay=weight_decay)
    decay = check_scale("weight_decay", weight_decay, setup.dtype, minimum=0.0)
    return TrainResult(
        **fit(
            setup,
            None,
            average=average,
            weight_decay=decay,
            optimizer=optimizer,
            settings={"weight_decay": decay, "input_noise": float(input_noise), "seed": seed},
        )
    )
