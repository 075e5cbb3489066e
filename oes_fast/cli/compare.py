"""``oes-fast compare``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from torch import Tensor

from oes_fast._checks import check_integer, check_number
from oes_fast.cli import options as o
from oes_fast.cli import signals
from oes_fast.cli.comparison_progress import ComparisonProgress
from oes_fast.cli.console import EXIT_OK, EXIT_UNEXPECTED, warn
from oes_fast.cli.model import ModelChoice, check_fits
from oes_fast.cli.naming import naming, options_of
from oes_fast.cli.report import print_table
from oes_fast.cli.settings import average_decay, find_backend, find_device, find_preset
from oes_fast.comparison import NAMES, Comparison, Settings
from oes_fast.comparison import compare as run
from oes_fast.errors import InputError, OutputError
from oes_fast.io.image import check_side, load_image
from oes_fast.pipelines.progress import duration

BASELINES = "Networks without a mask"

Value = TypeVar("Value")


def compare(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", show_default=False, help="Clean images: files, or skimage:NAME."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", show_default=False, help="Folder to keep everything in."
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help=f"What to compare, separated by commas: {', '.join(NAMES)}. The first seven are ways to a "
            "mask, then come networks without one, then classical denoisers.",
        ),
    ] = "oes,random,dense_dip,nlm,tv",
    densities: Annotated[
        str | None,
        typer.Option(
            metavar="P,...",
            help="Shares of the weights that the ways to a mask keep, separated by commas.  "
            f"[default: {o.by_preset('density')}]",
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(metavar="N,...", help="Seeds of weights, input, method and noise, separated by commas."),
    ] = "0",
    size: o.Size = None,
    sigma: Annotated[
        float,
        typer.Option(
            metavar="S",
            rich_help_panel=o.IMAGE,
            help="Standard deviation of the Gaussian noise added to each image (pixel values in 0..1).",
        ),
    ] = 0.1,
    noise_seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.IMAGE,
            help="Seed of the noise, the same in all cells.  [default: the seed of each cell]",
        ),
    ] = None,
    train_steps: o.TrainSteps = None,
    train_lr: Annotated[
        float | None,
        typer.Option(
            metavar="LR",
            rich_help_panel=o.TRAIN,
            help=f"Adam's learning rate for what a mask keeps.  [default: {o.by_preset('train_lr')}]",
        ),
    ] = None,
    average: Annotated[
        str,
        typer.Option(
            metavar="DECAY",
            rich_help_panel=o.TRAIN,
            help="Decay of the running average of the outputs, or off.",
        ),
    ] = o.DEFAULT_AVERAGE,
    record_every: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=o.TRAIN, help="Steps from one PSNR to the next."),
    ] = 10,
    ssim_every: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.TRAIN,
            help="Steps from one SSIM to the next, a multiple of --record-every.  [default: about 50 in all]",
        ),
    ] = None,
    search_steps: o.SearchSteps = None,
    search_lr: o.SearchRate = None,
    kl: Annotated[
        float | None,
        typer.Option(
            "--kl",
            metavar="W",
            rich_help_panel=o.SEARCH,
            help=f"Weight of the search's KL divergence.  [default: {o.by_preset('search_kl')}]",
        ),
    ] = None,
    temperature: o.Temperature = None,
    scope: o.Scope = "global",
    small: o.Small = "keep",
    imp_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.PRUNING,
            help="Steps of each round of imp.  [default: --train-steps]",
        ),
    ] = None,
    imp_densities: Annotated[
        str | None,
        typer.Option(
            metavar="P,...",
            rich_help_panel=o.PRUNING,
            help="What the rounds of imp prune to, falling, all of --densities among them.  "
            "[default: a fifth of the weights each round, and --densities]",
        ),
    ] = None,
    rewind_step: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=o.PRUNING, help="Step whose weights the tickets of imp start from."
        ),
    ] = 0,
    dense_lr: Annotated[
        float, typer.Option(metavar="LR", rich_help_panel=BASELINES, help="Learning rate of dense_dip.")
    ] = 1e-3,
    weight_decay: Annotated[
        float, typer.Option(metavar="W", rich_help_panel=BASELINES, help="Weight decay of dense_dip.")
    ] = 0.0,
    input_noise: Annotated[
        float,
        typer.Option(
            metavar="S",
            rich_help_panel=BASELINES,
            help="Standard deviation of the noise on the input of dense_dip in each step.",
        ),
    ] = 0.0,
    decoder_lr: Annotated[
        float, typer.Option(metavar="LR", rich_help_panel=BASELINES, help="Learning rate of deep_decoder.")
    ] = 1e-2,
    sgld_lr: Annotated[
        float, typer.Option(metavar="LR", rich_help_panel=BASELINES, help="Learning rate of sgld.")
    ] = 1e-2,
    param_noise: Annotated[
        float,
        typer.Option(
            metavar="X",
            rich_help_panel=BASELINES,
            help="Noise of sgld on its weights, in multiples of its learning rate.",
        ),
    ] = 2.0,
    burn_in: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=BASELINES,
            help="Steps before the posterior mean of sgld begins.  [default: 7000, at most half of all]",
        ),
    ] = None,
    model: o.Model = None,
    model_option: o.ModelOption = None,
    preset: o.PresetName = "paper",
    jobs: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=o.RUN,
            help="Cells to run at once, each in a process of its own. Small images gain from one for each "
            "core.",
        ),
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.RUN,
            help="CPU threads of each cell.  [default: the cores divided by --jobs]",
        ),
    ] = None,
    device: o.Device = "auto",
    backend: o.Backend = "auto",
    precision: o.Precision = "float32",
    verify: o.Verify = True,
    checkpoint_seconds: o.CheckpointSeconds = 60.0,
    plots: o.Plots = True,
    quiet: o.Quiet = False,
) -> int:
    """Compare OES with other ways to prune, other networks and classical denoisers on the same noisy images.

    A cell is one method on one image at one density from one seed; a seed's noise, weights and input are the
    same for every method, and so is the number of training steps. The same command again runs the cells that
    are missing, and goes on in the middle of those that were stopped or killed; cells of other settings in
    FOLDER are refused. Ctrl-C writes the summary of what there is.

    Writes into FOLDER:

    * compare.json and compare.csv, every figure: mean and spread over the seeds, and every cell;
    * psnr.png and ssim.png, the curves over the steps;
    * images.png, the results side by side;
    * masked.png, the image of the initial weights under each mask;
    * densities.png, what each method keeps of every layer;
    * cells/, for every cell its result (.json), images and mask, and checkpoints while it runs.

    A cell that fails is reported and the others go on; the exit code is then 1.
    """
    recipe = ModelChoice(model, tuple(model_option or ())).resolve()
    settings = _settings(
        preset,
        methods=_names("--methods", methods),
        densities=None if densities is None else _numbers("--densities", densities, float),
        seeds=_numbers("--seeds", seeds, int),
        sigma=sigma,
        noise_seed=noise_seed,
        train_steps=train_steps,
        train_lr=train_lr,
        record_every=record_every,
        ssim_every=ssim_every,
        search_steps=search_steps,
        search_lr=search_lr,
        kl=kl,
        temperature=temperature,
        scope=scope,
        small=small,
        imp_steps=imp_steps,
        imp_densities=None if imp_densities is None else _numbers("--imp-densities", imp_densities, float),
        rewind_step=rewind_step,
        dense_lr=dense_lr,
        weight_decay=weight_decay,
        input_noise=input_noise,
        decoder_lr=decoder_lr,
        sgld_lr=sgld_lr,
        param_noise=param_noise,
        burn_in=burn_in,
        average=average,
        backend=find_backend(backend),
        precision=precision,
        model=recipe.name,
        model_options=recipe.options,
    )
    where = find_device(device)
    check_integer("--jobs", jobs, minimum=1)
    if threads is not None:
        check_integer("--threads", threads, minimum=1, below=2**15)
    check_number("--checkpoint-seconds", checkpoint_seconds, minimum=0.0)
    clean = _load(images, size)
    for label, image in clean.items():
        check_fits(recipe, image.shape[1:], where, label)
    signals.stop.patient = True  # there is something to finish: it takes a second signal to end at once
    with ComparisonProgress(quiet=quiet) as progress:
        done = run(
            clean,
            output,
            settings,
            jobs=jobs,
            threads=threads,
            device=where,
            verify=verify,
            checkpoint_seconds=checkpoint_seconds,
            draw=plots,
            watcher=progress,
            stopping=lambda: signals.stop.requested,
        )
    return _finish(done, output, quiet)


def _finish(done: Comparison, output: Path, quiet: bool) -> int:
    """Say how it went; the exit code."""
    if not quiet:
        if done.rows:
            print(f"{done.table()}\n")
        print_table([("Time", duration(done.seconds))], done.files.values())
    if done.failed:
        warn(f"{len(done.failed)} cells failed; the same command tries them again")
    if done.not_written:
        raise OutputError("; ".join(done.not_written.values()))
    if done.interrupted:
        counts = (
            f"{len(done.cells)} of {len(done.cells) + len(done.failed) + len(done.missing)} cells are done"
        )
        warn(f"{signals.stop.words}: {counts}; the same command goes on from there")
        return signals.stop.exit_code
    return EXIT_UNEXPECTED if done.failed else EXIT_OK


def _settings(preset: str, *, average: str, **given: Any) -> Settings:
    """Settings of a preset and options, whose errors name the options."""
    base = find_preset(preset)
    decay = average_decay(average)
    with naming(options_of(given)):
        return Settings.of_preset(base, average=decay, **given)


def _load(sources: list[str], size: int | None) -> dict[str, Tensor]:
    """The images by the names of their files."""
    if size is not None:
        check_side("--size", size)
    found: dict[str, Tensor] = {}
    for source in sources:
        image = load_image(source, size=size)
        label = "".join(c if c.isalnum() or c in "_.+-" else "-" for c in image.name)
        if label in found:
            raise InputError(f"{source}: expected images of different names, got {label} twice")
        found[label] = image.pixels
    return found


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{option}: expected one at least, separated by commas, got {text!r}")
    return names


def _numbers(option: str, text: str, kind: Callable[[str], Value]) -> list[Value]:
    try:
        return [kind(number) for number in _names(option, text)]
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option}: expected {what} separated by commas, got {text!r}") from None
