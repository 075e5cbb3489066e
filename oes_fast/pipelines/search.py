"""Optimal Eye Surgeon: learn a sparse mask over the initial weights from the noisy image.

Ghosh et al. 2024, section 3.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_choice, check_integer, check_number, check_scale
from oes_fast.backends import AUTO, resolve
from oes_fast.entry import Entry
from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout, flatten
from oes_fast.ops._clock import Clock
from oes_fast.ops._library import candidates
from oes_fast.ops.gumbel_mask import gumbel_mask
from oes_fast.ops.mask_kl import mask_kl
from oes_fast.ops.mask_update import mask_update
from oes_fast.pipelines.checkpoint import digest
from oes_fast.pipelines.clean import CleanView
from oes_fast.pipelines.divergence import finite_logits
from oes_fast.pipelines.extract_mask import MASK_OPTIONS, extract_mask
from oes_fast.pipelines.functions import GeneratorFunction
from oes_fast.pipelines.hooks import StepHook
from oes_fast.pipelines.loop import Callback
from oes_fast.pipelines.objective import Forward, Loss, Objective, evaluate, zero_loss
from oes_fast.pipelines.results import RunResult
from oes_fast.pipelines.schedule import Factor, Schedule
from oes_fast.pipelines.setup import RunOptions, Setup
from oes_fast.pipelines.start_logits import Start, start_logits, start_settings
from oes_fast.precision import DEFAULT, in_precision
from oes_fast.reference.level_mask import initial_logit
from oes_fast.reference.philox import SEARCH_INPUT_NOISE
from oes_fast.rewrite.run.context import unit_gradient


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult(RunResult):
    """What :func:`search_mask` returns.

    Attributes:
        mask: global top-k of the logits, or what ``mask_option`` asked for.
        logits: s, shape [number of parameters]; sigmoid(s) is the probability of a weight to be kept. Of a
            mask of q > 2 levels, shape [q - 1, number of parameters]: :mod:`oes_fast.reference.level_mask`.
        level: of each weight under the mask, shape [number of parameters]: 1 where it is kept, 0 elsewhere;
            with q > 2 levels, the likeliest level above 0 where it is kept. Training starts from the whole
            weights all the same.
        output: image [1, C, H, W] of the initial weights times ``level``, without any training; with
            mask_option "mean" the mean of the images under the drawn masks.
        history: step, objective and PSNR of the recorded steps; the outputs are those of sampled masks.
        steps: updates made.
        interrupted: stopped before the last step.
        collapsed: ``output`` is flat.
        diverged: the loss left for good: it ended clearly above where it began, or lost most of what it had
            reached.
        seconds: time this call took.
        backend: that ran it.
    """

    logits: Tensor
    level: Tensor


@in_precision
def search_mask(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    weight: Tensor | None = None,
    entry: Entry | None = None,
    tv: float = 0.0,
    density: float = 0.05,
    steps: int = 60_000,
    lr: float = 1e-2,
    schedule: str | Factor | None = None,
    input_noise: float = 0.0,
    kl: float = 1e-9,
    temperature: float = 0.2,
    levels: int = 2,
    start: Start | None = None,
    mask_option: str = "topk",
    draws: int = 10,
    seed: int = 0,
    clean: Tensor | CleanView | None = None,
    backend: str = "auto",
    verify: bool = True,
    precision: str = DEFAULT,
    record_every: int = 10,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
) -> SearchResult:
    """Learn which of the network's initial weights to keep.

    Each step draws m ~ BinaryConcrete(sigmoid(s), temperature) over all parameters and moves s by Adam on

        mean((G(w0 * m, z) - noisy)^2) + kl * sum KL(Ber(sigmoid s) || Ber(density)).

    s starts at 0, or as ``start`` says. The mask keeps the int(density * n) largest s over all parameters
    together.

    With more than two levels a weight has levels - 1 logits, and m lies between the levels
    1, .., 1 / (levels - 1), 0; each logit has its KL term, as published. The mask then keeps the largest
    expected levels: the published code does not say how to cut it. Such a mask is drawn and its logits are
    updated by the reference, whatever backend runs the network.

    Args:
        net: generator with its initial weights w0; neither they nor its running statistics are changed.
            Weights of parameters that it holds fixed (``requires_grad`` off) may be masked like any other.
        z: fixed input, shape [1, C, H, W], see :func:`oes_fast.noise_input`. Networks other than
            :func:`oes_fast.models.skip`'s may take one of another size than the image's; [1, C] and
            [1, C, L] on the reference. Or N of them for N images, see :func:`oes_fast.train_sparse`.
        noisy: image to fit, shape [1, C', H', W'] as the network gives, same dtype and device as the network;
            N for N inputs. With ``forward`` what was measured instead.
        forward: from an image to its measurement, as for :func:`oes_fast.train_sparse`, and so are ``loss``,
            ``weight`` and ``tv``.
        loss: of (measured, noisy), in the place of the mean squared error.
        weight: of each squared error.
        entry: which of several results of the network is the image.
        tv: weight of the image's total variation.
        density: wanted share of kept weights, p0 and the k of the top-k, in (0, 1).
        steps: updates to make.
        lr: Adam's learning rate.
        schedule: factor on it in each update, see :func:`oes_fast.train_sparse`.
        input_noise: standard deviation, >= 0, of Gaussian noise added to ``z`` anew in each step, see
            :func:`oes_fast.train_sparse`; ``output`` is that of ``z`` itself.
        kl: weight of the KL term.
        temperature: of the relaxation, > 0, fixed over the search.
        levels: q >= 2 of the mask.
        start: where s starts: at the probability of every weight to be kept, in (0, 1), instead of 1/2; at
            logits, finite, of the shape that ``logits`` of the result has, dtype and device of the network;
            or at a mask of this network, as of another image, whose weights start at a probability of 1/2
            and all others at ``density``.
        mask_option: how the mask is cut from the logits: "topk" (published as "det"), "drawn" (one mask drawn
            from the probabilities, whatever density that comes to; published as "single") or "mean" (the
            weights kept most often over many drawn masks; published as "multiple"). A resumed search may have
            another.
        draws: how many masks "mean" takes.
        seed: of the masks, the tie-break, the draws and the noise on the input, in [0, 2^64).
        clean: image, as the network gives, to report the PSNR against; it does not enter the search.
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
        resume: go on from ``checkpoint`` where it exists. Without, the
            file of an unfinished run is set aside ("run.old.ckpt") with a CheckpointWarning, and that of a
            finished one overwritten.

    Returns:
        :class:`SearchResult`.

    Raises:
        InputError: an argument does not fit, with its name.
        CheckpointError: the checkpoint belongs to another run.
        BackendError: the backend cannot run here, or was named and has no mask of more than two levels.
        OESError: the loss became infinite or NaN; the message says when and what may be to blame.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> found = oes.search_mask(net, z, noisy, density=0.2, steps=5)
        >>> found.mask.kept, found.history.step
        (674, [0, 5])
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
        stream=SEARCH_INPUT_NOISE,
    )
    numel = FlatLayout.of(net).numel
    density = check_number("density", density, above=0.0, below=1.0)
    if int(density * numel) == 0:
        raise InputError(f"density: expected to keep one weight of {numel} at least, got {density}")
    options: dict[str, Any] = {
        "density": density,
        "lr": setup.lr,
        "kl": check_scale("kl", kl, setup.dtype, minimum=0.0),
        "temperature": check_scale(
            "temperature", temperature, setup.dtype, minimum=torch.finfo(setup.dtype).tiny
        ),
        "seed": check_integer("seed", seed, minimum=0, below=2**64),
        "levels": check_integer("levels", levels, minimum=2, below=2**16),
    }
    check_choice("mask_option", mask_option, MASK_OPTIONS)
    check_integer("draws", draws, minimum=1, below=2**32)
    if levels > 2 and backend not in (AUTO, "reference", "torch"):
        resolve(backend, z.device, candidates(z.dtype, levels=True))  # says what it lacks
    weights = flatten(net)
    shape = (numel,) if levels == 2 else (levels - 1, numel)
    first = start_logits(start, net, shape=shape, like=weights, density=density)
    function, backend = setup.bind(None)
    run = SearchRun(
        function,
        setup.objective,
        backend,
        **(options | {"lr": setup.rate}),
        start=first,
        hooks=setup.hooks,
    )
    finished = setup.run(run, options | start_settings(start), digest(weights))
    # The top-k of the search may not draw on the stream of its noise: the tie-break has its own.
    found = {"steps": finished.steps, **{name: options[name] for name in ("lr", "kl", "temperature")}}
    found["backend"] = backend
    if levels > 2:
        found["levels"] = levels
    if precision != DEFAULT:
        found["precision"] = precision
    found |= setup.rate.settings()
    found |= start_settings(start)
    if setup.hooks:
        found["input_noise"] = float(input_noise)
    logits = finite_logits(run.logits)
    mask, level, output = extract_mask(
        net,
        run.w0,
        logits,
        lambda weights: function(weights, update_stats=False),
        option=mask_option,
        density=density,
        seed=options["seed"],
        draws=draws,
        settings=found,
    )
    return SearchResult(**setup.outcome(finished, output, run.phase), mask=mask, logits=logits, level=level)


class SearchRun:
    """Adam over the flat logits of a generator function's weights.

    Args:
        function: the generator.
        objective: what is compared with what.
        backend: of masks and Adam.
        density, kl, temperature, seed, levels: see :func:`search_mask`.
        lr: learning rate, one or that of each step.
        start: first logits, shape [] or that of all of them; None for equal probabilities of all levels.
        hooks: what else each step does before its evaluation.
    """

    phase = "search"

    def __init__(
        self,
        function: GeneratorFunction,
        objective: Objective,
        backend: str,
        *,
        density: float,
        lr: float | Schedule,
        kl: float,
        temperature: float,
        seed: int,
        levels: int = 2,
        start: Tensor | None = None,
        hooks: Sequence[StepHook] = (),
    ) -> None:
        self._function = function
        self._objective = objective
        self._backend = "reference" if levels > 2 else backend
        self._density, self._rate, self._kl = density, Schedule.of(lr), kl
        self._hooks = tuple(hooks)
        self._temperature, self._seed = temperature, seed
        self.w0 = function.initial_weights()
        shape = (self.w0.numel(),) if levels == 2 else (levels - 1, self.w0.numel())
        self._start = self.w0.new_tensor(initial_logit(levels)) if start is None else start
        self.logits = self._start.expand(shape).clone(memory_format=torch.contiguous_format)
        self._kept: Tensor | None = None
        self._exp_avg = torch.zeros_like(self.logits)
        self._exp_avg_sq = torch.zeros_like(self.logits)
        self._weights = torch.empty_like(self.w0)
        self._loss = zero_loss(objective)
        self._unit = unit_gradient(self._loss)

    def begin(self, step: int, *, final: bool) -> None:
        """What the hooks do before the evaluation, in which the mask is drawn."""
        for hook in self._hooks:
            hook.begin(step, final=final)

    def evaluate(self, step: int, *, final: bool) -> Tensor:
        """Draw the mask of this step and run the generator under it."""
        return self.forward(step, final=final)

    def accumulate(self, output: Tensor) -> None:
        """Nothing: the outputs of a search are samples."""

    def clock(self) -> Clock:
        """For recorded steps."""
        return self._rate.clock(self.w0)

    def forward(self, step: int | Clock, *, final: bool) -> Tensor:
        """:meth:`evaluate` of a step that may be recorded."""
        gumbel_mask(
            self.w0,
            self.logits,
            seed=self._seed,
            step=step,
            temperature=self._temperature,
            out=self._weights.requires_grad_(False),
            backend=self._backend,
        )
        self._weights.requires_grad_(not final)
        with torch.set_grad_enabled(not final):
            output, self._loss = evaluate(self._objective, self._function, self._weights, update_stats=False)
        return output.detach()

    def objective(self) -> Tensor:
        """Data term plus the weighted KL term."""
        return self._loss.detach() + self._kl * mask_kl(self.logits, density=self._density)

    def terms(self) -> tuple[Tensor, tuple[float, float]]:
        """(data term, weight of the KL term and what the term was at the start)."""
        initial = mask_kl(self._start.expand_as(self.logits).contiguous(), density=self._density)
        return self._loss.detach(), (self._kl, self._kl * float(initial))

    def keep(self) -> None:
        """Remember the logits: a mask can be cut from them whatever becomes of the search."""
        if self._kept is None:
            self._kept = self.logits.clone()
        else:
            self._kept.copy_(self.logits)

    def fall_back(self) -> bool:
        """Take the logits last kept."""
        if self._kept is None:
            return False
        self.logits.copy_(self._kept)
        return True

    def update(self, step: int | Clock) -> None:
        """Gradient of the masked weights, then the fused update of the logits."""
        (grad,) = torch.autograd.grad(self._loss, self._weights, self._unit)
        mask_update(
            self.logits,
            grad,
            self.w0,
            self._exp_avg,
            self._exp_avg_sq,
            seed=self._seed,
            step=step,
            temperature=self._temperature,
            kl=self._kl,
            density=self._density,
            lr=self._rate(0 if isinstance(step, Clock) else step),
            backend=self._backend,
        )

    def first_gradient(self) -> Tensor:
        """Adam's first moment."""
        return self._exp_avg

    def finish(self, step: int) -> None:
        """Nothing."""

    def average(self) -> Tensor | None:
        """None: the outputs of a search are samples."""
        return None

    def stop(self) -> None:
        """None: a search makes all its steps."""

    def state(self) -> dict[str, Tensor]:
        """Logits and Adam's moments."""
        return {"logits": self.logits, "exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.keep()
