"""Iterative magnitude pruning with rewinding: lottery tickets (Frankle, Dziugaite, Roy and Carbin, 2019)."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_flag, check_integer, check_number, check_steps
from oes_fast.entry import Entry, check_entry
from oes_fast.errors import InputError, OESError
from oes_fast.flat import flatten
from oes_fast.mask import Mask
from oes_fast.pipelines.inputs import check_run_inputs
from oes_fast.pipelines.loop import Callback
from oes_fast.pipelines.objective import Forward, Loss
from oes_fast.precision import DEFAULT
from oes_fast.pruning.published import share_to_prune
from oes_fast.pruning.select import check_options
from oes_fast.pruning.tickets import ImpResult, Schedule, Tickets

_MAX_ROUNDS = 2**16
_SHARE = 0.2  # of the weights left, pruned by a round (Frankle et al. 2019)


def imp_rounds(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    weight: Tensor | None = None,
    entry: Entry | None = None,
    tv: float = 0.0,
    densities: Sequence[float] | None = None,
    density: float | None = None,
    rounds: int | None = None,
    share: float | None = None,
    steps: int = 40_000,
    lr: float = 1e-2,
    rewind_step: int = 0,
    scope: str = "global",
    small: str = "keep",
    seed: int = 0,
    published: bool = False,
    clean: Tensor | None = None,
    backend: str = "auto",
    verify: bool = True,
    precision: str = DEFAULT,
    record_every: int = 10,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
) -> ImpResult:
    """Train, prune the smallest of the trained weights, rewind those that are left, and again.

    Every round trains by :func:`oes_fast.train_sparse` under its mask, on the rewritten, sparse network; the
    first under a full one. Then the weights of the smallest absolute values are dropped, and the others go
    back to what they were after ``rewind_step`` updates of the first round, from where the next round makes
    the ``steps - rewind_step`` updates that are left. Adam starts anew in every round.

    Which densities the rounds prune to is said in one of three ways: by ``densities``; by ``density`` and
    ``rounds``, round k of them pruning to density^(k / rounds); or by ``density`` and ``share``, the share of
    the weights left that every round drops, the last as many as are too many.

    Biases, scales and shifts of norms: all kept by default, as in lottery-ticket code, and trained and
    rewound. With small="score" they compete by their trained absolute values: most scales, which start at 1,
    are kept; a shift is kept where training has moved it far enough.

    Args:
        net: generator with its initial weights; copied, and left alone. Parameters that it holds fixed
            (``requires_grad`` off) are pruned like others and not trained.
        z: fixed input, shape [1, C, H, W].
        noisy: image to fit, shape [1, C', H', W'], or with ``forward`` a measurement.
        forward: as for :func:`oes_fast.train_sparse`, and so are ``loss``, ``weight`` and ``tv``.
        loss: of (measured, noisy).
        weight: of each squared error.
        entry: which of several results of the network is the image.
        tv: weight of the image's total variation.
        densities: shares of all parameters to keep after each round, each less than the one before.
        density: the last of them; with ``densities`` to be left out.
        rounds: how many.
        share: of the weights left that each round drops, in (0, 1); 0.2 where nothing else says it.
        steps: updates of the first round, at least 1.
        lr: Adam's learning rate.
        rewind_step: to which update of the first round weights go back, from 0, the initial weights, to
            ``steps - 1``.
        scope: "global", "tensor" or "erdos_renyi_kernel", see :func:`oes_fast.pruning.select`.
        small: "keep" or "score", see :func:`oes_fast.pruning.select`.
        seed: of the choice among equal magnitudes, in [0, 2^64).
        published: prune as the published code does, which has scope "global" alone: parameters that are 0 at
            the start, the shifts of batch norms, are dropped before the first round; of all others, whatever
            ``small`` says, every round drops ceil(count * share), the last one too, so that what is kept is
            less than ``density`` asks for. It has 13 such rounds of 20 %, which leave 5.5 %, and rewinds to
            step 0.
        clean: image to report the PSNR against; it does not enter the training.
        backend: as for :func:`oes_fast.train_sparse`.
        verify: as for :func:`oes_fast.train_sparse`, in every round.
        precision: as for :func:`oes_fast.train_sparse`.
        record_every: steps from one record of a history to the next.
        callback: called with a :class:`oes_fast.StepInfo` after every evaluation, whose ``phase`` is
            "imp round 1 of 4" and so on; returning anything true ends the run.
        progress: show every round's steps.
        checkpoint: folder to keep the state in, made if it is missing.
        checkpoint_seconds: time between two saves within a round.
        resume: go on from ``checkpoint`` where there is one, in the middle of a round: on the CPU, the result
            is bit for bit that of a run without a break. Without, the files of an unfinished run are set
            aside in the folder "rounds.old" within it, with a CheckpointWarning.

    Returns:
        :class:`ImpResult`. Warns with :class:`oes_fast.EmptyLayerWarning` of layers that lose everything,
        once for each round.

    Raises:
        InputError: an argument does not fit, with its name.
        CheckpointError: the checkpoint belongs to another run.
        BackendError: the backend cannot run here.
        OESError: a loss became infinite or NaN.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.rand(1, 3, 32, 32), 0.1, seed=0)
        >>> found = oes.pruning.imp_rounds(net, z, noisy, densities=[0.5, 0.2], steps=5, rewind_step=2)
        >>> [round.mask.kept for round in found.rounds]
        [1686, 674]
        >>> fit = oes.train_sparse(found.net, found.mask, z, noisy, steps=5)
    """
    check_run_inputs(net, z, noisy, clean, forward=forward)
    check_steps("steps", steps, minimum=1)
    check_integer("rewind_step", rewind_step, minimum=0, below=steps)
    if callback is not None and not callable(callback):
        raise InputError(f"callback: expected a function, got {type(callback).__name__}")
    if check_flag("published", published):
        if densities is not None:
            raise InputError("densities: expected density and share with published=True, got densities")
        cuts = published_schedule(net, density, rounds, share, scope=scope, seed=seed)
        small = "score"
    else:
        cuts = schedule(densities, density, rounds, share)
        for cut in reversed(cuts):  # the last is the one asked for
            check_options(net, cut, scope=scope, small=small, seed=seed)
    plan = Schedule(cuts, int(steps), float(lr), int(rewind_step), scope, small, int(seed), published)
    options: dict[str, Any] = {
        **{"forward": forward, "loss": loss, "weight": weight, "tv": tv},
        **{
            "entry": check_entry(entry),
            "clean": clean,
            "backend": backend,
            "verify": verify,
            "precision": precision,
        },
        **{"record_every": record_every, "progress": progress, "checkpoint_seconds": checkpoint_seconds},
    }
    return Tickets(net, z, noisy, plan, options, folder=checkpoint, resume=resume).run(callback)


def imp(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    density: float,
    scope: str = "global",
    small: str = "keep",
    seed: int = 0,
    **options: Any,
) -> Mask:
    """The mask of the last round of :func:`imp_rounds`, which says what becomes of small parameters.

    Args:
        net: generator with its initial weights; left alone.
        z: fixed input, shape [1, C, H, W].
        noisy: image to fit, shape [1, C', H', W'].
        density: share of all parameters to keep, in (0, 1].
        scope: "global", "tensor" or "erdos_renyi_kernel", see :func:`oes_fast.pruning.select`.
        small: "keep" or "score", see :func:`oes_fast.pruning.select`.
        seed: of the choice among equal magnitudes, in [0, 2^64).
        **options: further arguments of :func:`imp_rounds`.

    Returns:
        The mask. The ticket is trained from the weights of step ``rewind_step``, which :func:`imp_rounds`
        returns beside it; with rewind_step=0, the default, those are the ones of ``net``.

    Raises:
        OESError: the run was stopped before its end, or as :func:`imp_rounds`.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.rand(1, 3, 32, 32), 0.1, seed=0)
        >>> oes.pruning.imp(net, z, noisy, density=0.2, rounds=2, steps=5).kept
        674
    """
    found = imp_rounds(net, z, noisy, density=density, scope=scope, small=small, seed=seed, **options)
    if found.interrupted:
        raise OESError(
            f"imp: stopped after {len(found.rounds)} rounds, before a mask of density {density} was found; "
            "with a checkpoint, resume=True goes on from there"
        )
    return found.mask


def schedule(
    densities: Sequence[float] | None, density: float | None, rounds: int | None, share: float | None
) -> tuple[float, ...]:
    """What each round prunes to: see :func:`imp_rounds`."""
    if densities is not None:
        if (density, rounds, share) != (None, None, None):
            raise InputError(
                "densities: expected them without density and rounds, and without share, got both"
            )
        if isinstance(densities, str) or not isinstance(densities, Sequence) or not densities:
            raise InputError(f"densities: expected one number or more, got {densities!r}")
        points = tuple(check_number("densities", each, above=0.0, maximum=1.0) for each in densities)
        if any(after >= before for before, after in itertools.pairwise(points)):
            raise InputError(f"densities: expected each to be less than the one before, got {points}")
        return points
    if density is None:
        raise InputError("density: expected a number, or densities, got None")
    density = check_number("density", density, above=0.0, maximum=1.0)
    if rounds is not None:
        rounds = check_integer("rounds", check_integer("rounds", rounds, minimum=1), below=_MAX_ROUNDS)
        if share is not None:
            raise InputError("share: expected it without rounds, which say what each prunes, got both")
        return (*(density ** (k / rounds) for k in range(1, rounds)), density)
    share = check_number("share", _SHARE if share is None else share, above=0.0, below=1.0)
    left = 1 - share
    # A density that is a power of what is left, but for rounding, needs no round more.
    count = max(1.0, math.log(density) / math.log1p(-share) - 1e-9)
    if not count < _MAX_ROUNDS:
        raise InputError(
            f"share: expected one that comes to the density {density} in fewer than {_MAX_ROUNDS} rounds, "
            f"got {share}"
        )
    count = math.ceil(count)
    return (*(left**k for k in range(1, count)), density)


def published_schedule(
    net: nn.Module, density: float | None, rounds: int | None, share: float | None, *, scope: str, seed: int
) -> tuple[float, ...]:
    """What each round of the published code leaves, as shares of all parameters."""
    if (density is None) == (rounds is None):
        raise InputError("density: expected it or rounds with published=True, got both or neither")
    target = 0.0 if density is None else density  # by the number of rounds, if there is none
    share_to_prune(net, 1.0 if density is None else density, scope=scope, seed=seed, scopes=("global",))
    share = check_number("share", _SHARE if share is None else share, above=0.0, below=1.0)
    most = math.inf if rounds is None else check_integer("rounds", rounds, minimum=1, below=_MAX_ROUNDS)
    weights = flatten(net)
    kept = int((weights != 0).sum())
    counts: list[int] = []
    while len(counts) < most and (not counts or kept > target * weights.numel()):
        kept -= math.ceil((torch.tensor(kept, dtype=torch.float32, device="cpu") * share).item())  # as there
        if kept == 0:
            raise InputError("density: expected a weight to be left after every round, got none")
        counts.append(kept)
        if len(counts) == _MAX_ROUNDS:
            raise InputError(f"share: expected one that takes fewer than {_MAX_ROUNDS} rounds, got {share}")
    return tuple(count / weights.numel() for count in counts)
