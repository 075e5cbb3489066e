"""``oes-fast inspect``."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from oes_fast._checks import check_choice, check_integer, check_number
from oes_fast.analysis.weights import SECOND_ORDER
from oes_fast.cli import options as o
from oes_fast.cli.console import EXIT_OK, warn
from oes_fast.cli.figures import FigureSettings, compute_figures
from oes_fast.cli.inspected import Inspected, Pair, find_pairs, labels, print_figures, print_masks
from oes_fast.cli.masks import find_masks, mask_seed
from oes_fast.cli.outputs import Outputs
from oes_fast.cli.problem import ImageOptions, Problem, load_problem
from oes_fast.cli.report import describe_device, plain, print_table, versions
from oes_fast.cli.settings import find_device, find_seed
from oes_fast.errors import InputError
from oes_fast.io.figures import FORMATS
from oes_fast.io.files import write_json
from oes_fast.io.plots import layer_densities, spectra

FIGURES = "Figures of an image"

Masks = Annotated[
    list[Path],
    typer.Argument(
        metavar="MASK...",
        show_default=False,
        help="Mask files: .safetensors of `oes-fast search`, or published .npz or .pkl (read, never run).",
    ),
]
Image = Annotated[
    str | None,
    typer.Option(
        metavar="IN",
        rich_help_panel=o.IMAGE,
        help="Image (file, or skimage:NAME) to compute Jacobian, sharpness and Hessian for, at the initial "
        "weights that the mask keeps. This takes minutes.",
    ),
]
Sigma = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        rich_help_panel=o.IMAGE,
        help="IN is clean: add Gaussian noise of standard deviation S (pixel values in 0..1), clipped to "
        "0..1.  [default: no noise, IN is noisy]",
    ),
]
NoiseSeed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=o.IMAGE,
        help="Seed of the noise that --sigma adds.  [default: as --seed, of the first mask]",
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Channels of the images that the masks are for: 3 for RGB, 1 for grey.  "
        "[default: as the mask or --image tells]",
    ),
]
Dense = Annotated[bool, typer.Option("--dense", help="Show the network without a mask beside the masks.")]
Probes = Annotated[
    int,
    typer.Option(
        metavar="N", rich_help_panel=FIGURES, help="Random vectors for the Frobenius norm and mean sharpness."
    ),
]
Iterations = Annotated[
    int,
    typer.Option(
        metavar="N",
        rich_help_panel=FIGURES,
        help="Iterations at most for the spectral norm; 0 leaves it out.",
    ),
]
Rho = Annotated[
    float,
    typer.Option(metavar="R", rich_help_panel=FIGURES, help="Radius of the ball that sharpness looks at."),
]
Adaptive = Annotated[
    bool,
    typer.Option(
        "--adaptive", rich_help_panel=FIGURES, help="That ball is in units of the weights: |change / weight|."
    ),
]
Eigenvalues = Annotated[
    int,
    typer.Option(
        metavar="K", rich_help_panel=FIGURES, help="Largest eigenvalues of the Hessian; 0 leaves them out."
    ),
]
LanczosSteps = Annotated[
    int,
    typer.Option(
        metavar="N",
        rich_help_panel=FIGURES,
        help="Points of the Hessian's spectrum for each random vector, a Hessian-vector product each; 0 "
        "leaves it out.",
    ),
]
SpectrumProbes = Annotated[
    int, typer.Option(metavar="N", rich_help_panel=FIGURES, help="Random vectors for the spectrum.")
]
Backend = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=o.RUN,
        help=f"How to compute: {' or '.join(SECOND_ORDER)}; the others have no second derivative.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        show_default=False,
        rich_help_panel=o.OUTPUT,
        help="Picture of the layers' densities to write; the spectra go to OUT_spectrum beside it.",
    ),
]
JsonOut = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", rich_help_panel=o.OUTPUT, help="Write it all as JSON as well."),
]


def inspect(
    masks: Masks,
    image: Image = None,
    size: o.Size = None,
    sigma: Sigma = None,
    noise_seed: NoiseSeed = None,
    channels: Channels = None,
    dense: Dense = False,
    seed: o.Seed = None,
    probes: Probes = 20,
    iterations: Iterations = 100,
    rho: Rho = 0.05,
    adaptive: Adaptive = False,
    eigenvalues: Eigenvalues = 5,
    lanczos_steps: LanczosSteps = 30,
    spectrum_probes: SpectrumProbes = 4,
    device: o.Device = "auto",
    backend: Backend = "torch",
    verify: o.Verify = True,
    threads: o.Threads = None,
    output: Output = None,
    json: JsonOut = None,
    quiet: o.Quiet = False,
) -> int:
    """Show what masks keep: density and live channels of every layer, settings, and how far masks agree.

    With --image also how the image and the loss react to the weights kept, at their initial values: norms of
    the Jacobian, sharpness, the largest eigenvalues of the Hessian and its spectrum.

    The network of a mask is the one its file names, else the published one, for RGB or grey images or those
    of --channels; its fingerprint says whether it is that. Of masks of other networks, density, settings and
    overlap alone are shown.
    """
    if threads is not None:
        torch.set_num_threads(check_integer("--threads", threads, minimum=1, below=2**15))
    settings = FigureSettings(
        probes=check_integer("--probes", probes, minimum=1, below=2**31),
        iterations=check_integer("--iterations", iterations, minimum=0),
        rho=check_number("--rho", rho, above=0.0),
        adaptive=adaptive,
        eigenvalues=check_integer("--eigenvalues", eigenvalues, minimum=0),
        lanczos_steps=check_integer("--lanczos-steps", lanczos_steps, minimum=0),
        spectrum_probes=check_integer("--spectrum-probes", spectrum_probes, minimum=1, below=2**31),
        backend=check_choice("--backend", backend, SECOND_ORDER),
        verify=verify,
    )
    options = _image_options(image, size, sigma, noise_seed)
    if channels is not None:
        check_integer("--channels", channels, minimum=1)
    if seed is not None:
        find_seed("--seed", seed)
    chosen = find_device(device)
    outputs = _plan(output, json, masks, options, lanczos_steps)
    with nullcontext() if outputs is None else outputs.owned():
        problem = None
        if options is not None:
            noise = find_seed("--noise-seed", noise_seed, seed, mask_seed(masks[0]))
            problem = load_problem(options, noise_seed=noise, device=chosen)
            channels = _channels_of(problem, channels)
        found = find_masks(masks, channels)
        inspected = [Inspected.of(each, label) for each, label in zip(found, labels(masks), strict=True)]
        if dense:
            inspected.append(Inspected.dense(inspected))
        if output is not None and not any(each.layers for each in inspected):
            raise InputError("--output: expected a mask whose network is known, to draw its layers, got none")
        work = _Work(inspected, find_pairs(inspected), problem, settings, chosen)
        if not quiet:
            print_masks(work.masks, work.pairs)
        if problem is not None:
            for each in work.masks:
                if each.mask is not None and (step := each.mask.settings.get("rewind_step")):
                    warn(
                        f"{each.label}: the mask was found for the weights of step {step}, and these figures "
                        "are at those of step 0"
                    )
                each.figures = compute_figures(
                    each.label,
                    each.recipe,
                    each.mask,
                    problem,
                    find_seed("--seed", seed, each.seed),
                    settings,
                    quiet=quiet,
                )
            if not quiet:
                print_figures(work.masks)
        if outputs is not None:
            _write(outputs, work)
            if not quiet:
                print_table([], outputs.written.values())
            outputs.finish(complete=True)
    return EXIT_OK


@dataclass(frozen=True)
class _Work:
    """What was inspected, and how."""

    masks: list[Inspected]
    pairs: list[Pair]
    problem: Problem | None
    settings: FigureSettings
    device: torch.device


def _image_options(
    image: str | None, size: int | None, sigma: float | None, noise_seed: int | None
) -> ImageOptions | None:
    if image is None:
        for name, value in (("--size", size), ("--sigma", sigma), ("--noise-seed", noise_seed)):
            if value is not None:
                raise InputError(f"{name}: expected --image beside it, got none")
        return None
    options = ImageOptions(image, size, sigma, None)
    options.check()
    return options


def _channels_of(problem: Problem, channels: int | None) -> int:
    found = problem.noisy.shape[1]
    if channels not in (None, found):
        raise InputError(f"--channels: expected {found} as --image has, got {channels}")
    return found


def _plan(
    output: Path | None, json: Path | None, masks: list[Path], image: ImageOptions | None, lanczos_steps: int
) -> Outputs | None:
    """The files asked for, reserved; None where there are none."""
    main = output or json
    if main is None:
        return None
    outputs = Outputs(main, *masks, None if image is None else image.image)
    if output is not None:
        if output.suffix.lower() not in FORMATS:
            raise InputError(
                f"{output}: expected a name that ends in {', '.join(FORMATS)}, got "
                f"{output.suffix or 'no extension'}"
            )
        outputs.plan(layers=output)
        if image is not None and lanczos_steps:
            outputs.plan(spectrum=outputs.beside(f"_spectrum{output.suffix}"))
    if json is not None:
        outputs.plan(json=json)
    return outputs


def _write(outputs: Outputs, work: _Work) -> None:
    shown = {each.label: {layer.name: layer.density for layer in each.layers} for each in work.masks}
    names = list(dict.fromkeys(name for layers in shown.values() for name in layers))
    densities = {
        label: [layers.get(name, math.nan) for name in names] for label, layers in shown.items() if layers
    }
    outputs.write("layers", lambda path: layer_densities(path, names, densities))
    curves = {each.label: each.figures.curve() for each in work.masks if each.figures is not None}
    outputs.write("spectrum", lambda path: spectra(path, {k: v for k, v in curves.items() if v is not None}))
    outputs.write("json", lambda path: write_json(path, _describe(outputs, work)))


def _describe(outputs: Outputs, work: _Work) -> dict[str, Any]:
    """For programs."""
    problem = work.problem
    return {
        "command": "inspect",
        "versions": versions(),
        **describe_device(work.device),
        "masks": [each.describe() for each in work.masks],
        "overlaps": [pair.describe() for pair in work.pairs],
        "image": None if problem is None else problem.describe() | {"noise_seed": problem.noise_seed},
        "settings": None if problem is None else plain(work.settings),
        "files": {**outputs.written, "json": outputs.paths["json"]},
        "not_written": outputs.failed,
    }
