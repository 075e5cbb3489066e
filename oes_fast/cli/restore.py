"""Restoring an image: what `denoise`, `train` and `transfer` have in common."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from oes_fast.cli import signals
from oes_fast.cli.console import EXIT_OK, warn
from oes_fast.cli.estimate import Estimate, training_after
from oes_fast.cli.masks import drawn_mask, load_mask, mask_seed
from oes_fast.cli.model import ModelChoice, check_fits, describe
from oes_fast.cli.outputs import Outputs, check_image_name
from oes_fast.cli.problem import ImageOptions, Problem, load_problem
from oes_fast.cli.progress import ProgressReport
from oes_fast.cli.report import describe_run, describe_stop, plain, print_table
from oes_fast.cli.restoration import Restoration
from oes_fast.cli.runs import check_runs, phases_of, seeds_of, train_runs, warn_of_others
from oes_fast.cli.search_size import Seen, searched_on
from oes_fast.cli.settings import (
    RunSettings,
    SearchSettings,
    TrainSettings,
    find_seed,
    search_options,
    train_options,
)
from oes_fast.cli.watched import watching
from oes_fast.errors import InputError
from oes_fast.io.arrays import save_numbers
from oes_fast.io.files import write_json
from oes_fast.io.image import save_image
from oes_fast.io.plots import psnr_curve, side_by_side
from oes_fast.mask import Mask
from oes_fast.mask_notes import with_network
from oes_fast.pipelines.search import search_mask
from oes_fast.pipelines.train import train_sparse
from oes_fast.pipelines.transfer import fresh_generator
from oes_fast.recipe import Recipe
from oes_fast.weights_file import load_weights


@dataclass(frozen=True)
class Request:
    """A restoration, as the user asked for it.

    Attributes:
        command: its name.
        image: what to restore.
        output: image file to write.
        bits: per channel of it, None for those of the input.
        run: how to run.
        train: settings of the training.
        search: settings of the mask search, None where ``mask`` or ``profile`` is given.
        mask: mask file to use.
        profile: density of the mask to draw with the layer profile of a found one.
        seed: of network and search, None for the default.
        noise_seed: of the noise to add, None for ``seed``.
        fresh: draw other weights than those the mask was found on.
        weights: file of the weights to start from, None for those of ``seed``.
        model: the network to take.
        tv: weight of the image's total variation.
        runs: trainings to make, of which the image is the mean.
    """

    command: str
    image: ImageOptions
    output: Path
    bits: int | None
    run: RunSettings
    train: TrainSettings
    search: SearchSettings | None = None
    mask: Path | None = None
    profile: float | None = None
    seed: int | None = None
    noise_seed: int | None = None
    fresh: bool = False
    weights: Path | None = None
    model: ModelChoice = field(default_factory=ModelChoice)
    tv: float = 0.0
    runs: int = 1


def restore(request: Request) -> int:
    """Restore, write every result, print the table; returns the exit code.

    Raises:
        OESError: bad input, or a result could not be written.
        Interrupted: Ctrl-C before there was anything to write.
    """
    request.image.check()
    check_runs(request.runs, request.weights)
    outputs = _plan(request)
    steps = [] if request.search is None else [request.search.steps]
    with outputs.owned(*steps, *[request.train.steps] * request.runs):
        warn_of_others(outputs)
        return _restore(request, outputs)


def _restore(request: Request, outputs: Outputs) -> int:
    work, net, z, mask = _prepare(request)
    search: dict[str, Any] = {}
    seen = Seen(work.problem, z)
    if request.search is not None:
        search = request.search.arguments(net)
        seen = searched_on(work.problem, z, request.search.size, work.recipe, work.seed)
    with outputs.computing("density", "tv"):
        with ProgressReport(quiet=request.run.quiet) as progress:
            _compute(request, outputs, progress, work, net, z, mask, search, seen)
        figures = work.measure()
        _write(request, outputs, work, figures)
    if not request.run.quiet:
        print_table(work.rows(figures), outputs.written.values())
    outputs.finish(complete=not work.interrupted)
    if work.interrupted:
        made = f"{signals.stop.words} {work.stopped_after()}"
        warn(f"{made}, results so far were written{outputs.kept()}")
    return signals.stop.exit_code if work.interrupted else EXIT_OK


def _plan(request: Request) -> Outputs:
    """Every file of the run, reserved."""
    check_image_name(request.output, request.bits)
    started = None if request.search is None else request.search.file
    outputs = Outputs(request.output, *request.image.files(), request.mask, request.weights, started)
    outputs.plan(restored=request.output)
    if request.image.keeps_complex:
        outputs.plan(complex=outputs.beside(".npy"))
    if request.search is not None or request.profile is not None:
        outputs.plan(mask=outputs.beside("_mask.safetensors"))
    if request.runs > 1:
        outputs.plan(spread_numbers=outputs.beside("_spread.npy"))
    if request.run.plots:
        if request.runs > 1:
            outputs.plan(spread=outputs.beside("_spread.png"))
        outputs.plan(comparison=outputs.beside("_comparison.png"))
        if request.image.has_clean:
            outputs.plan(psnr_curve=outputs.beside("_psnr.png"))
    outputs.plan(json=request.run.json or outputs.beside(".json"))
    phases = {} if request.search is None else {"search": search_options("--search-")}
    prefix = "--" if request.search is None and request.profile is None else "--train-"
    phases |= {phase: train_options(prefix) for phase in phases_of(request.runs)}
    outputs.plan_checkpoints(request.run.resume, **phases)
    return outputs


def _write(request: Request, outputs: Outputs, work: Restoration, figures: dict[str, Any] | None) -> None:
    """Write every result there is, the JSON last: it names the others."""
    problem, restored, found, several = work.problem, work.restored, work.found, work.several
    image = None if restored is None else problem.shown(restored)
    if image is not None:
        bits = request.bits or problem.image.bits
        alpha, profile = problem.image.alpha, problem.image.icc_profile
        outputs.write("restored", lambda p: save_image(p, image, bits=bits, alpha=alpha, icc_profile=profile))
    if restored is not None:
        outputs.write("complex", lambda p: save_numbers(p, problem.complex_image(restored)))
    if (mask := work.drawn if found is None else found.mask) is not None:
        outputs.write("mask", with_network(mask, work.recipe, work.seed).save)
    if image is not None:
        outputs.write("comparison", lambda p: side_by_side(p, work.panels(image, figures)))
    if figures is not None and (curves := work.curves()) is not None:
        mean = None if several is None else figures["restored"]
        outputs.write("psnr_curve", lambda p: psnr_curve(p, curves, figures["noisy"], mean))
    if several is not None:
        several.write_spread(outputs, problem)
    settings = {**describe(work.recipe), "train": plain(request.train)}
    if request.search is not None:
        settings["search"] = plain(request.search)
    if request.profile is not None:
        settings["profile"] = {"density": request.profile}
    if request.tv:
        settings["tv"] = request.tv
    if request.runs > 1:
        settings["runs"] = request.runs
    result = describe_run(request.command, problem, request.run, work.seed, work.results, settings)
    if several is not None:
        result = several.described(result, problem)
    if request.weights is not None:
        result["weights"] = request.weights
    result["estimated_sigma"] = problem.estimated_sigma()
    result["estimate"] = None if work.estimate is None else work.estimate.described()
    if several is None:
        result["stop"] = None if work.fit is None else describe_stop(work.fit.stop)
    result |= {"psnr": figures, "files": {**outputs.written, "json": outputs.paths["json"]}}
    result |= {"not_written": outputs.failed, "interrupted": work.interrupted}
    outputs.write("json", lambda p: write_json(p, result))


def _prepare(request: Request) -> tuple[Restoration, nn.Module, Tensor, Mask | None]:
    recipe = request.model.resolve(request.mask)
    known = None if request.mask is None else mask_seed(request.mask)
    if known is not None and request.fresh:
        known += 1
    seed = find_seed("--seed", request.seed, known)
    seeds_of(seed, request.runs)
    noise_seed = find_seed("--noise-seed", request.noise_seed, seed)
    problem = load_problem(request.image, noise_seed=noise_seed, device=request.run.device)
    recipe = Recipe(recipe.name, {**problem.model_options, **recipe.options})
    check_fits(recipe, problem.shape, request.run.device)
    net, z = _generator(problem, recipe, seed)
    mask = None if request.mask is None else load_mask(request.mask, net)
    if request.weights is not None:
        load_weights(request.weights, net)
    elif mask is not None and not request.fresh and (step := mask.settings.get("rewind_step")):
        warn(
            f"{request.mask}: the mask was found for the weights of step {step}, and is trained from those "
            "of step 0; --weights takes their file, which prune wrote as MASK_weights.safetensors"
        )
    problem.check_rule(request.train.arguments(seed=seed)["stop"])
    work = Restoration(problem, seed, request.train.steps, recipe)
    if request.profile is not None:
        mask = work.drawn = drawn_mask(net, request.profile, seed)
    return work, net, z, mask


def _compute(
    request: Request,
    outputs: Outputs,
    progress: ProgressReport,
    work: Restoration,
    net: nn.Module,
    z: Tensor,
    mask: Mask | None,
    search: Mapping[str, Any],
    seen: Seen,
) -> None:
    """Search, if there is no mask, and train, if no signal came before."""
    run, problem = request.run, work.problem
    kept = outputs.checkpoints
    if (watch := watching.get()) is not None:
        density = None if request.search is None else request.search.density
        watch.begin(net, problem.measured, problem.shown, density)
    common: dict[str, Any] = {
        **problem.arguments(),
        "tv": request.tv,
        "backend": run.backend,
        "precision": run.precision,
        "verify": run.verify,
        "callback": progress.watch,
        "checkpoint_seconds": run.checkpoint_seconds,
    }
    if not run.quiet:
        work.estimate = progress.estimate = _estimate(request, outputs, work, net, z, common)
    if request.search is not None:
        settings = {"seed": work.seed, "checkpoint": kept.paths["search"], **search, **common}
        settings |= seen.problem.arguments()
        found = work.found = kept.run(
            "search", lambda resume: search_mask(net, seen.z, seen.problem.noisy, resume=resume, **settings)
        )
        if found.interrupted:
            signals.stop.note(signal.SIGINT)
        if signals.stop.requested:
            return
        mask = found.mask
    if mask is None:
        raise InputError("mask: expected a mask file or settings of a search, got neither")
    cut = mask
    if request.runs > 1:
        _train_several(request, outputs, progress, work, (net, z), cut, common)
        return
    train = request.train.arguments(seed=work.seed)
    settings = {"seed": work.seed, "checkpoint": kept.paths["train"], **train, **common}
    work.fit = kept.run(
        "train", lambda resume: train_sparse(net, cut, z, problem.noisy, resume=resume, **settings)
    )
    if work.fit.interrupted:
        signals.stop.note(signal.SIGINT)


def _estimate(
    request: Request,
    outputs: Outputs,
    work: Restoration,
    net: nn.Module,
    z: Tensor,
    common: Mapping[str, Any],
) -> Estimate:
    """What will say how long it takes."""
    device, paths = request.run.device, outputs.checkpoints.paths
    known: dict[str, Any] = {"runs": request.runs, "stops": request.train.stop != "none"}
    if request.search is not None:
        after = training_after(
            net,
            z,
            work.problem.noisy,
            density=request.search.density,
            search=(request.search.steps, paths["search"]),
            checkpoints=[paths[phase] for phase in phases_of(request.runs)],
            **{**common, **request.train.arguments(seed=work.seed)},
        )
        if after is not None:
            return Estimate(device, "search", after=after, **known)
    return Estimate(device, "train", **known)


def _train_several(
    request: Request,
    outputs: Outputs,
    progress: ProgressReport,
    work: Restoration,
    first: tuple[nn.Module, Tensor],
    mask: Mask,
    common: Mapping[str, Any],
) -> None:
    """Train several times: from ``first``, network and input, then from those of the seeds after it."""
    kept, problem, seeds = outputs.checkpoints, work.problem, seeds_of(work.seed, request.runs)
    generators = [first, *(_generator(problem, work.recipe, seed) for seed in seeds[1:])]
    phases = phases_of(request.runs)
    settings = {**request.train.arguments(seed=work.seed), **common}
    del settings["callback"]
    work.several = kept.run(
        phases[0],
        lambda resume: train_runs(
            generators,
            mask,
            problem,
            seeds=seeds,
            checkpoints=[kept.paths[phase] for phase in phases],
            progress=progress,
            resume=resume,
            **settings,
        ),
    )
    if any(result.interrupted for result in work.several.there):
        signals.stop.note(signal.SIGINT)


def _generator(problem: Problem, recipe: Recipe, seed: int) -> tuple[nn.Module, Tensor]:
    return fresh_generator(
        problem.noisy, shape=problem.shape, model=recipe.name, options=recipe.options, seed=seed
    )
