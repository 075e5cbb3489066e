"""``oes-fast train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oes_fast.cli import options as o
from oes_fast.cli.model import ModelChoice
from oes_fast.cli.problem import ImageOptions
from oes_fast.cli.restore import Request, restore
from oes_fast.cli.settings import RunSettings, TrainSettings


def train(
    image: o.ImageIn,
    mask: o.MaskIn,
    output: o.ImageOut,
    size: o.Size = None,
    sigma: o.Sigma = None,
    noise_seed: o.NoiseSeed = None,
    clean: o.Clean = None,
    steps: o.TrainSteps = None,
    lr: o.TrainRate = None,
    weight_decay: o.WeightDecay = 0.0,
    average: o.Average = o.DEFAULT_AVERAGE,
    stop: o.Stop = "none",
    runs: o.Runs = 1,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=o.TRAIN,
            help="Start from these weights: MASK_weights.safetensors of `oes-fast prune`.  "
            "[default: those of the seed]",
        ),
    ] = None,
    schedule: o.ScheduleName = None,
    input_noise: o.InputNoise = 0.0,
    model: o.Model = None,
    model_option: o.ModelOption = None,
    preset: o.PresetName = o.DEFAULT_PRESET,
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
    """Restore an image with a mask that `search` or `prune` has found for it: the second half of `denoise`.

    The weights are those the mask was found on (its seed is in the mask file). `search` and `train` with the
    options of one `denoise` give the same image.

    Writes, for -o OUT.png: OUT.png, OUT_comparison.png, OUT_psnr.png (with --sigma or --clean) and OUT.json;
    OUT.train.ckpt while it runs; with --runs also OUT_spread.png and OUT_spread.npy. `oes-fast denoise
    --help` describes them.
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
    return restore(
        Request(
            command="train",
            image=ImageOptions(image, size, sigma, clean),
            output=output,
            bits=bits,
            run=run,
            train=TrainSettings.of(
                preset,
                steps=steps,
                lr=lr,
                average=average,
                schedule=schedule,
                weight_decay=weight_decay,
                input_noise=input_noise,
                stop=stop,
            ),
            mask=mask,
            seed=seed,
            noise_seed=noise_seed,
            model=ModelChoice(model, tuple(model_option or ())),
            weights=weights,
            runs=runs,
        )
    )
