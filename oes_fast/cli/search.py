"""``oes-fast search``."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oes_fast.analysis import Layer, layer_densities
from oes_fast.cli import options as o
from oes_fast.cli import signals
from oes_fast.cli.console import EXIT_OK, warn
from oes_fast.cli.estimate import Estimate
from oes_fast.cli.model import ModelChoice, check_fits, describe
from oes_fast.cli.outputs import Outputs
from oes_fast.cli.problem import ImageOptions, Problem, load_problem
from oes_fast.cli.progress import ProgressReport
from oes_fast.cli.report import decibels, describe_run, measure, plain, print_table
from oes_fast.cli.search_size import searched_on
from oes_fast.cli.settings import RunSettings, SearchSettings, find_seed, search_options
from oes_fast.errors import InputError
from oes_fast.io.files import write_json
from oes_fast.io.plots import layer_density, probability_histogram
from oes_fast.mask import Mask
from oes_fast.mask_notes import with_network
from oes_fast.pipelines.progress import duration
from oes_fast.pipelines.search import SearchResult, search_mask
from oes_fast.pipelines.transfer import fresh_generator
from oes_fast.recipe import Recipe


def search(
    image: o.ImageIn,
    output: o.MaskOut,
    size: o.Size = None,
    sigma: o.Sigma = None,
    noise_seed: o.NoiseSeed = None,
    clean: o.Clean = None,
    density: o.Density = None,
    steps: o.SearchSteps = None,
    lr: o.SearchRate = None,
    kl: o.KL = None,
    temperature: o.Temperature = None,
    start: o.Start = None,
    search_size: o.SearchSize = None,
    mask_option: o.MaskOption = "topk",
    schedule: o.ScheduleName = None,
    input_noise: o.InputNoise = 0.0,
    model: o.Model = None,
    model_option: o.ModelOption = None,
    preset: o.PresetName = o.DEFAULT_PRESET,
    seed: o.SearchSeed = None,
    device: o.Device = "auto",
    backend: o.Backend = "auto",
    precision: o.Precision = "float32",
    verify: o.Verify = True,
    threads: o.Threads = None,
    resume: o.Resume = None,
    checkpoint_seconds: o.CheckpointSeconds = 60.0,
    plots: o.Plots = True,
    json: o.Json = None,
    quiet: o.Quiet = False,
) -> int:
    """Find which weights of an untrained network to keep for an image: the first half of `denoise`.

    Writes, for -o MASK.safetensors:

    * MASK.safetensors, the mask, with its settings and the network it belongs to;
    * MASK_probabilities.png, a histogram of the probabilities of the weights to be kept;
    * MASK_layers.png, the density of every layer;
    * MASK.json, everything about the run, for programs.

    While it runs it keeps MASK.search.ckpt: a search that was stopped or killed goes on with --resume. Ctrl-C
    writes the mask as it is.
    """
    settings = SearchSettings.of(
        preset,
        density=density,
        steps=steps,
        lr=lr,
        kl=kl,
        temperature=temperature,
        mask_option=mask_option,
        start=start,
        size=search_size,
        schedule=schedule,
        input_noise=input_noise,
    )
    run = RunSettings.of(
        device=device,
        backend=backend,
        precision=precision,
        verify=verify,
        threads=threads,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        quiet=quiet,
        plots=plots,
        json=json,
    )
    options = ImageOptions(image, size, sigma, clean)
    options.check()
    recipe = ModelChoice(model, tuple(model_option or ())).resolve()
    seed = find_seed("--seed", seed)
    noise_seed = find_seed("--noise-seed", noise_seed, seed)
    outputs = _plan(output, options, run, settings)
    with outputs.owned(settings.steps):
        return _search(outputs, options, run, settings, recipe, seed, noise_seed)


def _search(
    outputs: Outputs,
    options: ImageOptions,
    run: RunSettings,
    settings: SearchSettings,
    recipe: Recipe,
    seed: int,
    noise_seed: int,
) -> int:
    problem = load_problem(options, noise_seed=noise_seed, device=run.device)
    check_fits(recipe, problem.shape, run.device)
    net, z = fresh_generator(problem.noisy, model=recipe.name, options=recipe.options, seed=seed)
    arguments = settings.arguments(net)
    problem, z = searched_on(problem, z, settings.size, recipe, seed)
    kept = outputs.checkpoints
    with outputs.computing("density"):
        with ProgressReport(quiet=run.quiet) as progress:
            progress.estimate = estimate = None if run.quiet else Estimate(run.device, "search")
            found = kept.run(
                "search",
                lambda resume: search_mask(
                    net,
                    z,
                    problem.noisy,
                    seed=seed,
                    **problem.arguments(),
                    backend=run.backend,
                    precision=run.precision,
                    verify=run.verify,
                    callback=progress.watch,
                    checkpoint=kept.paths["search"],
                    checkpoint_seconds=run.checkpoint_seconds,
                    resume=resume,
                    **arguments,
                ),
            )
        if found.interrupted:
            signals.stop.note(signal.SIGINT)
        work = _Search(problem, run, settings, recipe, seed, found, layer_densities(net, found.mask))
        _write(outputs, work, estimate)
    if not run.quiet:
        print_table(_rows(work), outputs.written.values())
    outputs.finish(complete=not work.interrupted)
    if work.interrupted:
        made = f"{signals.stop.words} after {found.steps} steps"
        warn(f"{made}, the mask so far was written{outputs.kept()}")
    return signals.stop.exit_code if work.interrupted else EXIT_OK


@dataclass(frozen=True)
class _Search:
    """What was searched and what came of it."""

    problem: Problem
    run: RunSettings
    settings: SearchSettings
    recipe: Recipe
    seed: int
    found: SearchResult
    layers: list[Layer]

    @property
    def mask(self) -> Mask:
        return with_network(self.found.mask, self.recipe, self.seed)

    @property
    def interrupted(self) -> bool:
        return self.found.steps < self.settings.steps

    @property
    def figures(self) -> dict[str, Any] | None:
        return measure(self.problem, self.found, None)


def _plan(output: Path, options: ImageOptions, run: RunSettings, settings: SearchSettings) -> Outputs:
    if output.suffix != ".safetensors":
        raise InputError(
            f"{output}: expected a name that ends in .safetensors, got {output.suffix or 'no extension'}"
        )
    outputs = Outputs(output, options.image, options.clean, settings.file)
    outputs.plan(mask=output)
    if run.plots:
        outputs.plan(probabilities=outputs.beside("_probabilities.png"), layers=outputs.beside("_layers.png"))
    outputs.plan(json=run.json or outputs.beside(".json"))
    outputs.plan_checkpoints(run.resume, search=search_options("--"))
    return outputs


def _write(outputs: Outputs, work: _Search, estimate: Estimate | None) -> None:
    found = work.found
    outputs.write("mask", work.mask.save)
    outputs.write("probabilities", lambda p: probability_histogram(p, found.logits))
    names, densities = [layer.name for layer in work.layers], [layer.density for layer in work.layers]
    outputs.write("layers", lambda p: layer_density(p, names, densities, found.mask.density))
    result = describe_run(
        "search",
        work.problem,
        work.run,
        work.seed,
        [found],
        {**describe(work.recipe), "search": plain(work.settings)},
    )
    result |= {
        "estimate": None if estimate is None else estimate.described(),
        "layers": [plain(layer) for layer in work.layers],
        "psnr": work.figures,
        "files": {**outputs.written, "json": outputs.paths["json"]},
        "not_written": outputs.failed,
        "interrupted": work.interrupted,
    }
    outputs.write("json", lambda p: write_json(p, result))


def _rows(work: _Search) -> list[tuple[str, str]]:
    rows = [
        (layer.name, f"{100 * layer.density:5.1f} %  {layer.kept} of {layer.count}") for layer in work.layers
    ]
    mask = work.found.mask
    rows += [("all", f"{100 * mask.density:5.1f} %  {mask.kept} of {mask.flat.numel()}")]
    figures = work.figures
    if figures is not None:
        rows += [("Noisy", decibels(figures["noisy"])), ("Mask alone", decibels(figures["masked"]))]
    return [*rows, ("Time", duration(work.found.seconds))]
