"""``oes-fast denoise``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oes_fast.cli import options as o
from oes_fast.cli.model import ModelChoice
from oes_fast.cli.problem import ImageOptions
from oes_fast.cli.restore import Request, restore
from oes_fast.cli.settings import RunSettings, SearchSettings, TrainSettings


def denoise(
    image: o.ImageIn,
    output: o.ImageOut,
    size: o.Size = None,
    sigma: o.Sigma = None,
    noise_seed: o.NoiseSeed = None,
    clean: o.Clean = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=o.SEARCH,
            help="Skip the search and use this mask: .safetensors, or a published .npz or .pkl (never run).",
        ),
    ] = None,
    density: o.Density = None,
    search_steps: o.SearchSteps = None,
    search_lr: o.SearchRate = None,
    kl: o.KL = None,
    temperature: o.Temperature = 0.2,
    mask_option: o.MaskOption = "topk",
    train_steps: o.TrainSteps = None,
    train_lr: o.TrainRate = None,
    weight_decay: o.WeightDecay = 0.0,
    average: o.Average = o.DEFAULT_AVERAGE,
    schedule: o.ScheduleName = None,
    input_noise: o.InputNoise = 0.0,
    model: o.Model = None,
    model_option: o.ModelOption = None,
    preset: o.PresetName = "paper",
    seed: o.Seed = None,
    device: o.Device = "auto",
    backend: o.Backend = "auto",
    precision: o.Precision = "float32",
    verify: o.Verify = True,
    threads: o.Threads = None,
    resume: o.Resume = None,
    checkpoint_seconds: o.CheckpointSeconds = 60.0,
    bits: o.Bits = None,
    plots: o.Plots = True,
    json: o.Json = None,
    quiet: o.Quiet = False,
) -> int:
    """Restore one image: search a mask over an untrained network's weights, then train the weights it keeps.

    Writes, for -o OUT.png:

    * OUT.png, the restored image, with the bits and the alpha channel of IN;
    * OUT_mask.safetensors, the mask, for `train` and `transfer`;
    * OUT_comparison.png, noisy, restored and clean side by side;
    * OUT_psnr.png, the PSNR over the steps (with --sigma or --clean);
    * OUT.json, everything about the run, for programs.

    While it runs it keeps OUT.search.ckpt and OUT.train.ckpt, and removes them when every result is written:
    a run that was stopped or killed goes on with --resume and ends where it would have ended. Ctrl-C writes
    what there is.

    A run whose output has become flat has collapsed: a warning and "collapsed" in the JSON say so, the
    results are written, and the exit code is 0.
    """
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
    search = SearchSettings.of(
        preset,
        density=density,
        steps=search_steps,
        lr=search_lr,
        kl=kl,
        temperature=temperature,
        mask_option=mask_option,
        schedule=schedule,
        input_noise=input_noise,
        prefix="--search-",
    )
    return restore(
        Request(
            command="denoise",
            image=ImageOptions(image, size, sigma, clean),
            output=output,
            bits=bits,
            run=run,
            train=TrainSettings.of(
                preset,
                steps=train_steps,
                lr=train_lr,
                average=average,
                schedule=schedule,
                weight_decay=weight_decay,
                input_noise=input_noise,
                prefix="--train-",
            ),
            search=search if mask is None else None,
            mask=mask,
            seed=seed,
            noise_seed=noise_seed,
            model=ModelChoice(model, tuple(model_option or ())),
        )
    )
