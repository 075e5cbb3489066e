"""Arguments and options that the commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oes_fast.backends import AUTO
from oes_fast.backends import NAMES as BACKENDS
from oes_fast.cli.model import DEFAULT, NAMES
from oes_fast.pipelines.presets import PRESETS
from oes_fast.pipelines.schedule import SCHEDULES

IMAGE, SEARCH, TRAIN, RUN, OUTPUT = "Image", "Mask search", "Training", "How to run", "Results"
NETWORK = "Network"
PRUNING = "Ways to a mask other than the search"

DEFAULT_AVERAGE = "0.99"
DEFAULT_PRESET = "fast"  # why: docs/fast-search.md, quality by the clock
PROFILE = "profile"  # in the place of a mask file: see oes_fast.pruning.profile


def by_preset(setting: str) -> str:
    """Text for the default of an option that the preset decides: "paper: 40000, quick: 1000"."""
    return ", ".join(f"{name}: {getattr(preset, setting)}" for name, preset in PRESETS.items())


_SCHEDULED = "".join(
    f"; {name}: {preset.search_schedule} in the search"
    for name, preset in PRESETS.items()
    if preset.search_schedule is not None
)

ImageIn = Annotated[
    str,
    typer.Argument(
        metavar="IN",
        show_default=False,
        help="Image to restore: a file (grey, RGB or RGBA, 8 or 16 bits, float TIFF in 0..1), or "
        "skimage:NAME for a picture of scikit-image such as skimage:astronaut.",
    ),
]
MaskIn = Annotated[
    Path,
    typer.Argument(
        metavar="MASK",
        show_default=False,
        help="Mask file: .safetensors of `oes-fast search`, or a published .npz or .pkl (read, never run).",
    ),
]
ImageOut = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="OUT", show_default=False, help="Image file to write."),
]
MaskOut = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="MASK", show_default=False, help="Mask file to write (.safetensors)."
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=IMAGE,
        help="Crop the largest square about the centre and resize it to N x N pixels.  [default: as it is]",
    ),
]
Sigma = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        rich_help_panel=IMAGE,
        help="IN is clean: add Gaussian noise of standard deviation S (pixel values in 0..1; 0.1 is 25.5 of "
        "255), clipped to 0..1, and measure the PSNR against IN.  [default: no noise, IN is noisy]",
    ),
]
TaskSigma = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        rich_help_panel=IMAGE,
        help="IN is clean: measure it, with Gaussian noise of standard deviation S (0 for none; pixel values "
        "in 0..1), not clipped, and report the PSNR against IN.  [default: IN is what was measured]",
    ),
]
Clean = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=IMAGE,
        help="Clean image of the size of IN, to measure the PSNR against; it does not enter the result.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=RUN,
        help="Seed of the network's weights and input, and of the mask search.  "
        "[default: 0; with a mask from `oes-fast search`, the seed it was found with]",
    ),
]
SearchSeed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=RUN,
        help="Seed of the network's weights and input, and of the search.  [default: 0]",
    ),
]
TransferSeed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=RUN,
        help="Seed of the fresh weights and the network's input.  "
        "[default: one more than the seed the mask was found with, 0 if that is unknown]",
    ),
]
NoiseSeed = Annotated[
    int | None,
    typer.Option(
        metavar="N", rich_help_panel=IMAGE, help="Seed of the noise that --sigma adds.  [default: as --seed]"
    ),
]
PresetName = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="NAME",
        rich_help_panel=RUN,
        help="Steps, learning rates and density: fast, minutes on a CPU; quick, half of its time, and some "
        "detail less; paper, as published, hours on a CPU. Options given explicitly override it.",
    ),
]
Density = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        rich_help_panel=SEARCH,
        help="Share of the weights to keep, between 0 and 1. Below 0.04 a run on one image may collapse.  "
        f"[default: {by_preset('density')}]",
    ),
]
WeightsMask = Annotated[
    Path | None,
    typer.Option(
        metavar=f"FILE|{PROFILE}",
        rich_help_panel=SEARCH,
        help="Skip the search and keep these weights of the network: .safetensors, or a published .npz or "
        f".pkl (never run); or {PROFILE}: a random mask of --density with the layer profile of a found one.",
    ),
]
SearchedMask = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        metavar=f"FILE|{PROFILE}",
        rich_help_panel=SEARCH,
        help="Skip the search and use this mask: .safetensors, or a published .npz or .pkl (never run); or "
        f"{PROFILE}: a random one of --density with the layer profile of a found one.",
    ),
]
SearchSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=SEARCH,
        help=f"Steps of the mask search.  [default: {by_preset('search_steps')}]",
    ),
]
SearchRate = Annotated[
    float | None,
    typer.Option(
        metavar="LR",
        rich_help_panel=SEARCH,
        help=f"Adam's learning rate of the search.  [default: {by_preset('search_lr')}]",
    ),
]
KL = Annotated[
    float | None,
    typer.Option(
        "--kl",
        metavar="W",
        rich_help_panel=SEARCH,
        help="Weight of the KL divergence between the mask's probabilities and --density.  "
        f"[default: {by_preset('search_kl')}]",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        rich_help_panel=SEARCH,
        help="Temperature of the relaxed Bernoulli masks, above 0.  "
        f"[default: {by_preset('search_temperature')}]",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="P|FILE",
        rich_help_panel=SEARCH,
        help="Where the search starts: the probability of every weight to be kept, between 0 and 1; or a "
        "mask of this network, as of another image, whose weights start at 0.5 and all others at --density.  "
        "[default: 0.5]",
    ),
]
SearchSize = Annotated[
    int | None,
    typer.Option(
        "--search-size",
        metavar="N",
        rich_help_panel=SEARCH,
        help="Search on the noisy image shrunk to a shorter side of N pixels, which takes less time and "
        "lowers the noise; the mask holds for every size. Denoising alone.  [default: the image's own size]",
    ),
]
MaskOption = Annotated[
    str,
    typer.Option(
        "--mask-option",
        metavar="NAME",
        rich_help_panel=SEARCH,
        help="How the mask is cut from the probabilities: topk keeps the share --density of most likely "
        "weights; drawn draws one mask, whatever density that comes to; mean keeps the share --density that "
        "ten drawn masks keep most often. Published as det, single and multiple.",
    ),
]
Scope = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=PRUNING,
        help="Where weights compete: global, over all layers; tensor, the same share of every layer; "
        "erdos_renyi_kernel, more of small layers than of large ones.",
    ),
]
Small = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=PRUNING,
        help="What becomes of biases and batch norms: keep keeps them all, within the density; score "
        "lets them compete.",
    ),
]
TrainSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=TRAIN,
        help=f"Steps of the training.  [default: {by_preset('train_steps')}]",
    ),
]
TrainRate = Annotated[
    float | None,
    typer.Option(
        metavar="LR",
        rich_help_panel=TRAIN,
        help=f"Adam's learning rate of the training.  [default: {by_preset('train_lr')}]",
    ),
]
Runs = Annotated[
    int,
    typer.Option(
        "--runs",
        metavar="K",
        rich_help_panel=TRAIN,
        help="Train so many times, each from other weights and another input: those of the seed and of the "
        "K - 1 numbers after it. OUT is the mean of the images, which is better than each, and "
        "OUT_spread.png and OUT_spread.npy say how far they lie apart. A search is made once.",
    ),
]
ScheduleName = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="NAME",
        rich_help_panel=RUN,
        help=f"Let the learning rates fall to 0 over the steps: {', '.join(SCHEDULES)}.  "
        f"[default: they stay{_SCHEDULED}]",
    ),
]
InputNoise = Annotated[
    float,
    typer.Option(
        "--input-noise",
        metavar="S",
        rich_help_panel=RUN,
        help="Standard deviation of noise on the network's input, drawn anew in each step (0.03 in the "
        "deep-image-prior code).",
    ),
]
WeightDecay = Annotated[
    float,
    typer.Option(
        "--weight-decay",
        metavar="W",
        rich_help_panel=TRAIN,
        help="Times the weights is added to the gradient, as in torch.optim.Adam.",
    ),
]
TotalVariation = Annotated[
    float,
    typer.Option(
        "--tv",
        metavar="W",
        rich_help_panel=TRAIN,
        help="Weight of the image's total variation (mean absolute difference of neighbouring pixels), which "
        "is added to the squared error of search and training.",
    ),
]
Average = Annotated[
    str,
    typer.Option(
        metavar="DECAY",
        rich_help_panel=TRAIN,
        help="Write the running average of the outputs with this decay; off (or 0) writes the last output, "
        "as published.",
    ),
]
Stop = Annotated[
    str,
    typer.Option(
        "--stop",
        metavar="NAME",
        rich_help_panel=TRAIN,
        help="End the training where the image is best, as far as that is seen without the clean one, and "
        "write the image of that step: variance, where the outputs change least; holdout, where the error on "
        "5 % of the pixels, left out of the training, is least; discrepancy, where the output is as far from "
        "IN as the noise, whose level is estimated; none, after --train-steps or --steps.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        rich_help_panel=NETWORK,
        help=f"Untrained network: {', '.join(NAMES)}.  [default: {DEFAULT}; with a mask, the one it is for]",
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model-option",
        metavar="KEY=VALUE",
        rich_help_panel=NETWORK,
        help="Option of the network, such as num_channels_skip=4 or num_channels_down=16,32,64; may be given "
        "several times. `oes-fast info` lists them.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=RUN,
        help="Where to compute: cpu, cuda, cuda:N, or auto for the first GPU if there is one.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=RUN,
        help=f"How to compute: {', '.join((AUTO, *BACKENDS))}; `oes-fast info` says which are here.",
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        rich_help_panel=RUN,
        help="Compare the rewritten network with the dense one before the first step, which costs seconds; "
        "where they differ, warn and run the dense one.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=RUN,
        help="Of float32 products: float32; tf32, which newer NVIDIA GPUs compute faster from operands of "
        "11 bits; or tf32x3, three of those for one, on backend cuda. Elsewhere it changes nothing.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N", rich_help_panel=RUN, help="CPU threads to compute with.  [default: PyTorch's choice]"
    ),
]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--restart",
        rich_help_panel=RUN,
        show_default=False,
        help="Go on from the checkpoints of an unfinished run, if there are any / start its unfinished phase "
        "afresh: that checkpoint is set aside as *.old.ckpt, a finished search is kept. Without either, a "
        "run that finds checkpoints refuses to start.",
    ),
]
CheckpointSeconds = Annotated[
    float, typer.Option(metavar="S", rich_help_panel=RUN, help="Seconds from one checkpoint to the next.")
]
Bits = Annotated[
    int | None,
    typer.Option(
        metavar="N", rich_help_panel=OUTPUT, help="Bits per channel of OUT, 8 or 16.  [default: as IN]"
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        rich_help_panel=OUTPUT,
        help="Where to write the JSON result.  [default: OUT.json]",
    ),
]
Plots = Annotated[
    bool, typer.Option("--plots/--no-plots", rich_help_panel=OUTPUT, help="Write the plots, or do not.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Print nothing but warnings and errors.")
]
