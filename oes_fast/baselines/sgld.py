"""Langevin dynamics on the deep image prior.

Cheng et al., "A Bayesian perspective on the deep image prior", CVPR 2019.

The update is that of the published code, which the OES paper's comparison follows. With g the gradient of the
mean squared error under input noise, step t from 0 is

    w <- Adam_t(w, g + weight_decay * w)                  torch.optim.Adam: betas 0.9, 0.999, coupled decay
    w <- w + param_noise * lr * N(0, 1)                   weights of convolutions alone

The paper writes w <- w + (eps / 2) (gradient of the log posterior) + N(0, eps), with a plain gradient: the
code puts Adam in its place, and noise whose standard deviation, not variance, goes with the step.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from oes_fast._checks import check_integer, check_scale
from oes_fast.entry import Entry
from oes_fast.pipelines.clean import CleanView
from oes_fast.pipelines.loop import Callback, psnr_tensor
from oes_fast.pipelines.objective import Forward, Loss
from oes_fast.pipelines.posterior import Posterior
from oes_fast.pipelines.schedule import Factor
from oes_fast.pipelines.setup import RunOptions, Setup
from oes_fast.pipelines.train import TrainResult, fit
from oes_fast.pipelines.weight_noise import WeightNoise
from oes_fast.precision import DEFAULT, in_precision


@dataclass(frozen=True, eq=False, repr=False)
class SgldResult(TrainResult):
    """What :func:`sgld` returns: what a training does, and the posterior.

    Attributes:
        output: image [1, C, H, W] of the last step, of z without noise; one sample, not the estimate.
        posterior_mean: mean of the sampled images [1, C, H, W], the estimate; None where the run ended before
            the first sample.
        posterior_std: their standard deviation [1, C, H, W], pixel by pixel; None with fewer than two.
        posterior_psnr: of the mean in dB; None without it, or without a clean image.
        samples: how many images they are of.
    """

    posterior_mean: Tensor | None
    posterior_std: Tensor | None
    posterior_psnr: float | None
    samples: int

    def report(self) -> dict[str, float | int | None]:
        """Peak, end and average in dB, see :meth:`oes_fast.History.report`, and ``posterior_mean``'s PSNR."""
        return {**super().report(), "posterior": self.posterior_psnr}


@in_precision
def sgld(
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
    lr: float = 1e-2,
    schedule: str | Factor | None = None,
    weight_decay: float = 5e-8,
    input_noise: float = 1 / 30,
    param_noise: float = 2.0,
    burn_in: int = 7_000,
    sample_every: int = 50,
    clean: Tensor | CleanView | None = None,
    average: float | None = None,
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
) -> SgldResult:
    """Train all weights by Adam with noise on input and weights; average the images after the burn-in.

    Each step, see :mod:`oes_fast.baselines.sgld`: one of Adam, then param_noise * lr * N(0, 1) on the weights
    of the convolutions. The defaults are those of the published code of Cheng et al. (whose runs have 20,000
    steps); that of the OES paper has param_noise 0.5, no weight decay, and no posterior mean. Going back to
    earlier weights where the fit gets worse by some decibels, which both have had, is left out.

    Args:
        net: generator, such as :func:`oes_fast.fresh_generator`'s or :func:`oes_fast.models.deep_decoder`;
            copied, and left alone. Parameters that it holds fixed (``requires_grad`` off) stay as
            they are, unless it holds all fixed.
        z: fixed input, shape [1, C, h, w], see :func:`oes_fast.noise_input`. Networks other than
            :func:`oes_fast.models.skip`'s may take one of another size than the image's.
        noisy: image to fit, shape [1, C', H, W] as the network gives, same dtype and device as the network.
            With ``forward`` what was measured instead.
        forward: from an image to its measurement, as for :func:`oes_fast.train_sparse`, and so are ``loss``,
            ``weight`` and ``tv``.
        loss: of (measured, noisy), in the place of the mean squared error.
        weight: of each squared error.
        entry: which of several results of the network is the image.
        tv: weight of the image's total variation.
        steps: updates to make.
        lr: Adam's learning rate.
        schedule: factor in each update on it, and so on the weights' noise; see
            :func:`oes_fast.train_sparse`.
        weight_decay: >= 0, coupled as in torch.optim.Adam: the Gaussian prior of the weights.
        input_noise: standard deviation, >= 0, of the noise on ``z`` in each step, see
            :func:`oes_fast.baselines.dense_dip`.
        param_noise: standard deviation, >= 0, of the noise on the weights after each step, in units of
            ``lr``.
        burn_in: updates before images are sampled, >= 0.
        sample_every: the samples are the images after s updates, s > burn_in a multiple of this, >= 1.
        clean: image to report the PSNR against; it does not enter the training.
        average: decay of a running average of the outputs, such as 0.99; None for none.
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
        :class:`SgldResult`, whose mask keeps every weight.

    Raises:
        InputError: an argument does not fit, with its name.
        CheckpointError: the checkpoint belongs to another run.
        BackendError: the backend cannot run here.
        OESError: the loss became infinite or NaN; the message says when and what may be to blame.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> fit = oes.baselines.sgld(net, z, noisy, steps=20, burn_in=10, sample_every=2, param_noise=0.1)
        >>> fit.posterior_mean.shape, fit.samples
        (torch.Size([1, 3, 32, 32]), 4)
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
        ),
    )
    settings: dict[str, Any] = {
        "weight_decay": check_scale("weight_decay", weight_decay, setup.dtype, minimum=0.0),
        "input_noise": float(input_noise),
        "param_noise": check_scale("param_noise", param_noise, setup.dtype, minimum=0.0),
        "burn_in": check_integer("burn_in", burn_in, minimum=0),
        "sample_every": check_integer("sample_every", sample_every, minimum=1),
        "seed": seed,
    }
    on_weights = WeightNoise(net, settings["param_noise"] * setup.lr, setup.rate, seed=seed)
    posterior = Posterior(burn_in=settings["burn_in"], every=settings["sample_every"], device=setup.z.device)
    fields = fit(
        setup,
        None,
        average=average,
        weight_decay=settings["weight_decay"],
        hooks=(on_weights, posterior),
        settings=settings,
    )
    mean = posterior.mean(noisy.dtype)
    return SgldResult(
        **fields,
        posterior_mean=mean,
        posterior_std=posterior.std(noisy.dtype),
        posterior_psnr=None if mean is None or clean is None else float(psnr_tensor(mean, clean)),
        samples=posterior.samples,
    )
