"""``oes-fast transfer``."""

from __future__ import annotations

from oes_fast.cli import options as o
from oes_fast.cli.model import ModelChoice
from oes_fast.cli.problem import ImageOptions
from oes_fast.cli.restore import Request, restore
from oes_fast.cli.settings import RunSettings, TrainSettings


def transfer(
    mask: o.MaskIn,
    image: o.ImageIn,
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
    schedule: o.ScheduleName = None,
    input_noise: o.InputNoise = 0.0,
    model: o.Model = None,
    model_option: o.ModelOption = None,
    preset: o.PresetName = o.DEFAULT_PRESET,
    seed: o.TransferSeed = None,
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
    """Restore an image with a mask that was found on another image: no search, fresh weights.

    The mask fits any image size, and images with as many channels as the one it was found on (grey or RGB).

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
            command="transfer",
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
            fresh=True,
            runs=runs,
        )
    )
