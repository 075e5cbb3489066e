"""``oes-fast batch``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from oes_fast._checks import check_integer
from oes_fast.batch import Batch, Outcome, Settings, Step, Watcher, restore_all
from oes_fast.cli import options as o
from oes_fast.cli import signals
from oes_fast.cli.console import EXIT_OK, EXIT_UNEXPECTED, warn
from oes_fast.cli.many_progress import ManyProgress
from oes_fast.cli.model import ModelChoice
from oes_fast.cli.naming import naming, options_of
from oes_fast.cli.ray_options import RayAddress, RayCpus, RayGpus, ray_device, ray_engine
from oes_fast.cli.report import decibels, print_table
from oes_fast.cli.settings import average_decay, find_backend, find_preset
from oes_fast.errors import InputError
from oes_fast.pipelines.progress import duration

_SHOWN = 20  # images of the table


def batch(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            show_default=False,
            help="Images: folders, patterns such as 'photos/*.png', lists (.txt with a path in every line, "
            "or - for standard input), files, or skimage:NAME.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", show_default=False, help="Folder to keep everything in."
        ),
    ],
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive/--not-recursive",
            "-r",
            rich_help_panel=o.IMAGE,
            help="Take images in folders within folders.",
        ),
    ] = False,
    size: o.Size = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            rich_help_panel=o.IMAGE,
            help="The images are clean: add Gaussian noise of standard deviation S (pixel values in 0..1), "
            "clipped to 0..1, and measure the PSNR against them.  [default: no noise, the images are noisy]",
        ),
    ] = None,
    noise_seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.IMAGE,
            help="Seed of the noise that --sigma adds to each image.  [default: that of its weights]",
        ),
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=o.IMAGE,
            help="Folder of clean images, which lie there as the images do in theirs, to measure the PSNR "
            "against.",
        ),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            rich_help_panel=o.SEARCH,
            help="Skip the search and use this mask for all images of its number of channels: .safetensors, "
            "or a published .npz or .pkl (never run). May be given twice, for grey and RGB images.",
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            rich_help_panel=o.SEARCH,
            help="What the mask is searched on: first, the first image; a number N, the first N at once; "
            "each, every image has its own. Grey and RGB images have a mask each.",
        ),
    ] = "first",
    density: o.Density = None,
    search_steps: o.SearchSteps = None,
    search_lr: o.SearchRate = None,
    kl: o.KL = None,
    temperature: o.Temperature = None,
    mask_option: o.MaskOption = "topk",
    train_steps: o.TrainSteps = None,
    train_lr: o.TrainRate = None,
    runs: o.Runs = 1,
    weight_decay: o.WeightDecay = 0.0,
    average: o.Average = o.DEFAULT_AVERAGE,
    stop: o.Stop = "none",
    schedule: o.ScheduleName = None,
    input_noise: o.InputNoise = 0.0,
    model: o.Model = None,
    model_option: o.ModelOption = None,
    preset: o.PresetName = o.DEFAULT_PRESET,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.RUN,
            help="Seed of the search; images are restored from fresh weights of seed N + 1, with --search "
            "each from those of N. With --mask, of the weights that images are restored from.  [default: 0; "
            "with --mask, one more than the seed it was found with, 0 if that is unknown]",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=o.RUN,
            help="Images at once, each in a process of its own. On a CPU, one for each core with one thread "
            "should give most images an hour, as far as memory goes.",
        ),
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.RUN,
            help="CPU threads of each.  [default: the cores divided by --workers]",
        ),
    ] = None,
    device: o.Device = "auto",
    backend: o.Backend = "auto",
    precision: o.Precision = "float32",
    verify: Annotated[
        bool,
        typer.Option(
            rich_help_panel=o.RUN,
            help="Compare the rewritten network with the dense one first, once for each mask and size of "
            "image; where they differ, warn and run the dense one.",
        ),
    ] = True,
    checkpoint_seconds: o.CheckpointSeconds = 60.0,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", rich_help_panel=o.RUN, help="Try images again that failed in an earlier run."
        ),
    ] = False,
    ray: RayAddress = None,
    ray_cpus: RayCpus = None,
    ray_gpus: RayGpus = None,
    image_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            rich_help_panel=o.OUTPUT,
            help="Of the images to write: png, tif or jpg.",
        ),
    ] = "png",
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.OUTPUT,
            help="Bits per channel of the images to write, 8 or 16.  [default: those of each image]",
        ),
    ] = None,
    quiet: o.Quiet = False,
) -> int:
    """Restore every image of a set with one mask, or with a mask each.

    An image is restored as `transfer` restores it: fresh weights, of which the mask keeps some. With --search
    each, as by `denoise`.

    Writes into FOLDER, at the path of each image below its source:

    * NAME.png, the restored image, and NAME.json, what it was made of and its figures;
    * NAME_mask.safetensors, with --search each; NAME_spread.png and .npy, with --runs;
    * batch.csv, a line for every image, and batch.json, the whole;
    * batch_mask_rgb.safetensors, batch_mask_grey.safetensors, the masks that images share;
    * batch.sqlite, the manifest: what is done and what is not.

    The same command again, after Ctrl-C or any kill, restores what is missing, goes on in the middle of the
    images that were under way, takes images that were added and those whose file or clean image has changed.
    Other settings are refused. An image that cannot be restored is reported and the others go on; the exit
    code is then 1.
    """
    masks = mask or []
    choice = ModelChoice(model, tuple(model_option or ()))
    recipes = [choice.resolve(path) for path in masks] or [choice.resolve()]
    if masks and search != "first":
        raise InputError(f"--search: expected no search beside --mask, got {search}")
    settings = _settings(
        preset,
        average=average,
        search=_search(search),
        density=density,
        search_steps=search_steps,
        search_lr=search_lr,
        kl=kl,
        temperature=temperature,
        mask_option=mask_option,
        train_steps=train_steps,
        train_lr=train_lr,
        runs=runs,
        stop=stop,
        weight_decay=weight_decay,
        schedule=schedule,
        input_noise=input_noise,
        size=size,
        sigma=sigma,
        noise_seed=noise_seed,
        seed=seed,
        format=image_format,
        bits=bits,
        model=recipes[0].name,
        model_options=recipes[0].options,
        backend=find_backend(backend, here=ray is None),
        precision=precision,
    )
    if sigma is not None and clean is not None:
        raise InputError("--clean: expected no --sigma beside it, which takes the images for clean, got both")
    where, gpus = ray_device(ray, ray_gpus, device)
    check_integer("--workers", workers, minimum=1)
    if threads is not None:
        check_integer("--threads", threads, minimum=1, below=2**15)
    signals.stop.patient = True  # there is something to finish: it takes a second signal to end at once
    with (
        ray_engine(ray, ray_cpus, gpus, workers=workers, threads=threads) as engine,
        BatchProgress(quiet=quiet) as progress,
    ):
        done = restore_all(
            sources,
            output,
            settings,
            masks=masks,
            recursive=recursive,
            clean=clean,
            workers=workers,
            threads=threads,
            device=where,
            verify=verify,
            checkpoint_seconds=checkpoint_seconds,
            retry_failed=retry_failed,
            engine=engine,
            watcher=progress,
            stopping=lambda: signals.stop.requested,
        )
    return _finish(done, progress, quiet)


class BatchProgress(ManyProgress, Watcher):
    """Shows a set on stderr.

    Args:
        quiet: show nothing but failures.
        console: where to; stderr if None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        super().__init__("images", quiet=quiet, console=console, every=False)
        self.restored = 0

    def listed(self, count: int, done: int) -> None:
        """Show what there is to do."""
        self.begin(count, done)

    def step(self, step: Step) -> None:
        """Show how far an image or a search has come."""
        self.show(step.name, step.name, step.phase, step.step, step.steps, step.psnr)

    def ended(self, outcome: Outcome) -> None:
        """Count an image, and say why it failed."""
        self.restored += outcome.failure is None
        self.end(outcome.name, outcome.name, outcome.failure)

    def searched(self, outcome: Outcome) -> None:
        """Take the search away."""
        self.remove(outcome.name)


def _finish(done: Batch, progress: BatchProgress, quiet: bool) -> int:
    """Say how it went; the exit code."""
    total = sum(done.counts.values())
    if not quiet:
        if total <= _SHOWN:
            _print_images(done)
        print_table(_rows(done, progress.restored), done.files.values())
    if done.counts["failed"]:
        count = done.counts["failed"]
        warn(f"images that failed: {count}; --retry-failed tries them again; batch.csv says why")
    if done.interrupted:
        counts = f"{done.counts['done']} of {total} images are restored"
        warn(f"{signals.stop.words}: {counts}; the same command goes on from there")
        return signals.stop.exit_code
    return EXIT_UNEXPECTED if done.counts["failed"] else EXIT_OK


def _print_images(done: Batch) -> None:
    """A line for each image."""
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("Image", "Pixels", "Noisy", "Restored", "Time"):
        table.add_column(name, justify="left" if name == "Image" else "right", overflow="fold")
    for line in islice(done.lines(), _SHOWN):
        if line["state"] == "done":
            figures = [f"{line['width']} x {line['height']}", _decibels(line["psnr_noisy"])]
            figures += [_decibels(line["psnr"]), duration(float(line["seconds"] or 0))]
        else:
            figures = ["", "", line["state"], ""]
        table.add_row(line["name"], *figures)
    Console(highlight=False, markup=False).print(table)
    print()


def _decibels(text: str) -> str:
    return decibels(float(text) if text else None)


def _rows(done: Batch, restored: int) -> list[tuple[str, str]]:
    counts, means = done.counts, done.means
    images = f"{counts['done']} of {sum(counts.values())} restored"
    images += f", {counts['failed']} failed" if counts["failed"] else ""
    images += f"; other files, left out: {done.left_out}" if done.left_out else ""
    rows = [("Images", images)]
    if means["psnr"] is not None:
        spread = f"{decibels(means['psnr_lowest'])} to {decibels(means['psnr_highest'])}"
        rows += [("Noisy", f"{decibels(means['psnr_noisy'])} on average")]
        rows += [("Restored", f"{decibels(means['psnr'])} on average, {spread}")]
    rate = f", {3600 * restored / done.seconds:.3g} images an hour" if restored and done.seconds else ""
    return [*rows, ("Time", f"{duration(done.seconds)}{rate}")]


def _search(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _settings(preset: str, *, average: str, **given: Any) -> Settings:
    """Settings of a preset and options, whose errors name the options."""
    base, decay = find_preset(preset), average_decay(average)
    with naming(options_of(given)):
        return Settings.of_preset(base, average=decay, **given)
