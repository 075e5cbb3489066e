"""``oes-fast prune``."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from oes_fast._checks import check_choice, check_integer, check_number, check_scale, check_steps
from oes_fast.analysis import Layer, layer_densities
from oes_fast.cli import options as o
from oes_fast.cli import signals
from oes_fast.cli.console import EXIT_OK
from oes_fast.cli.model import OURS, ModelChoice, check_fits, describe
from oes_fast.cli.outputs import Interrupted, Outputs
from oes_fast.cli.problem import ImageOptions, Problem, load_problem
from oes_fast.cli.progress import ProgressReport
from oes_fast.cli.report import decibels, describe_device, describe_mask, print_table, versions
from oes_fast.cli.settings import DTYPE, RunSettings, find_preset, find_seed, search_options
from oes_fast.errors import InputError
from oes_fast.io.files import write_json
from oes_fast.io.image import psnr
from oes_fast.io.plots import layer_density
from oes_fast.mask import Mask
from oes_fast.mask_notes import with_network
from oes_fast.pipelines.clean import compared
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.masked_output import masked_output
from oes_fast.pipelines.progress import duration
from oes_fast.pipelines.transfer import fresh_generator
from oes_fast.pruning import METHODS, imp_rounds
from oes_fast.pruning.select import SCOPES, SMALL
from oes_fast.recipe import Recipe
from oes_fast.weights_file import save_weights

_TRAINS = ("oes", "imp")  # methods that make steps
_BOUND = ("snip", "grasp", "synflow")  # those that run the network once or a few times
# What an option of a method is called on the command line, and which methods have it.
_OWN = {
    "steps": _TRAINS,
    "lr": _TRAINS,
    "kl": ("oes",),
    "temperature": ("oes",),
    "rounds": ("imp",),
    "share": ("imp",),
    "rewind_step": ("imp",),
}


def prune(
    image: o.ImageIn,
    output: o.MaskOut,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help=f"How to choose the weights to keep: {', '.join(METHODS)}.",
        ),
    ],
    size: o.Size = None,
    sigma: o.Sigma = None,
    noise_seed: o.NoiseSeed = None,
    clean: o.Clean = None,
    density: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            rich_help_panel=o.PRUNING,
            help=f"Share of all weights to keep, between 0 and 1.  [default: {o.by_preset('density')}]",
        ),
    ] = None,
    scope: o.Scope = "global",
    small: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=o.PRUNING,
            help="What becomes of biases and batch norms: keep keeps them all, within the density; score "
            "lets them compete.  [default: keep; with oes, score]",
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            rich_help_panel=o.PRUNING,
            help="Cut as the code published with OES does, faults included: docs/pruning.md.",
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.PRUNING,
            help=f"Steps of oes ({o.by_preset('search_steps')}), or of the first round of imp "
            f"({o.by_preset('train_steps')}).",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="LR",
            rich_help_panel=o.PRUNING,
            help=f"Adam's learning rate of oes ({o.by_preset('search_lr')}) or imp "
            f"({o.by_preset('train_lr')}).",
        ),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(
            "--kl",
            metavar="W",
            rich_help_panel=o.PRUNING,
            help=f"Weight of the KL divergence of oes ({o.by_preset('search_kl')}).",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            rich_help_panel=o.PRUNING,
            help=f"Temperature of the relaxed masks of oes ({o.by_preset('search_temperature')}).",
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.PRUNING,
            help="Rounds of imp, each of which prunes the same share, down to --density; with --published in "
            "the place of --density.  [default: as --share asks for]",
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            rich_help_panel=o.PRUNING,
            help="Share of the weights left that each round of imp prunes.  [default: 0.2]",
        ),
    ] = None,
    rewind_step: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.PRUNING,
            help="Step whose weights the rounds of imp go back to.  [default: 0, the initial ones]",
        ),
    ] = None,
    model: o.Model = None,
    model_option: o.ModelOption = None,
    preset: o.PresetName = "paper",
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
    """Find which weights to keep by any method: for `train`, as a mask of `search` is.

    Writes, for -o MASK.safetensors:

    * MASK.safetensors, the mask, with its settings and the network it belongs to;
    * MASK_weights.safetensors, the weights that a ticket of imp with --rewind-step starts from, for
      `train --weights`;
    * MASK_layers.png, the density of every layer;
    * MASK.json, everything about the run, for programs.

    While they run, oes keeps MASK.search.ckpt and imp the folder MASK.imp.ckpt: a run that was stopped or
    killed goes on with --resume.
    """
    given = {"steps": steps, "lr": lr, "kl": kl, "temperature": temperature}
    given |= {"rounds": rounds, "share": share, "rewind_step": rewind_step}
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
    settings = _settings(method, preset, density, scope, small, published, given)
    options = ImageOptions(image, size, sigma, clean)
    options.check()
    recipe = ModelChoice(model, tuple(model_option or ())).resolve()
    seed = find_seed("--seed", seed)
    noise_seed = find_seed("--noise-seed", noise_seed, seed)
    outputs = _plan(output, options, run, method, settings)
    with outputs.owned(*([settings["steps"]] if method in _TRAINS else [])):
        return _prune(outputs, _Request(options, run, method, settings, recipe, seed, noise_seed))


@dataclass(frozen=True)
class _Request:
    """What is asked for; ``settings`` are arguments of the method."""

    image: ImageOptions
    run: RunSettings
    method: str
    settings: dict[str, Any]
    recipe: Recipe
    seed: int
    noise_seed: int


@dataclass(frozen=True)
class _Found:
    """What came of it."""

    mask: Mask
    output: Tensor
    layers: list[Layer]
    seconds: float
    rewound: nn.Module | None


def _settings(
    method: str,
    preset: str,
    density: float | None,
    scope: str,
    small: str | None,
    published: bool,
    given: dict[str, Any],
) -> dict[str, Any]:
    """The arguments of the method, checked; options of other methods are refused."""
    base = find_preset(preset)
    check_choice("--method", method, tuple(METHODS))
    for name, methods in _OWN.items():
        if given[name] is not None and method not in methods:
            raise InputError(
                f"--{name.replace('_', '-')}: expected it with --method {' or '.join(methods)} alone, got it "
                f"with {method}"
            )
    if published and method == "oes":
        raise InputError("--published: expected another --method than oes, which is as published")
    found: dict[str, Any] = {
        "density": check_number(
            "--density", base.density if density is None else density, above=0.0, below=1.0
        ),
        "scope": check_choice("--scope", scope, SCOPES),
    }
    if small is not None:
        found["small"] = check_choice("--small", small, SMALL)
    if published:
        found["published"] = True
    if method in _TRAINS:
        kind = "search" if method == "oes" else "train"
        found["steps"] = check_steps(
            "--steps", _or(given["steps"], getattr(base, f"{kind}_steps")), minimum=1
        )
        found["lr"] = check_scale("--lr", _or(given["lr"], getattr(base, f"{kind}_lr")), DTYPE, above=0.0)
    if method == "oes":
        found["kl"] = check_scale("--kl", _or(given["kl"], base.search_kl), DTYPE, minimum=0.0)
        found["temperature"] = check_scale(
            "--temperature",
            _or(given["temperature"], base.search_temperature),
            DTYPE,
            minimum=torch.finfo(DTYPE).tiny,
        )
        if base.search_schedule is not None:
            found["schedule"] = base.search_schedule
    if method == "imp":
        if given["rounds"] is not None:
            found["rounds"] = check_integer("--rounds", given["rounds"], minimum=1, below=2**16)
        if given["share"] is not None:
            found["share"] = check_number("--share", given["share"], above=0.0, below=1.0)
        _check_rounds(found, published, density is not None)
        found["rewind_step"] = check_integer(
            "--rewind-step", _or(given["rewind_step"], 0), minimum=0, below=found["steps"]
        )
    return found


def _check_rounds(found: dict[str, Any], published: bool, density: bool) -> None:
    """Refuse what says twice how far imp prunes; published rounds take no density."""
    if "rounds" not in found:
        return
    if not published:
        if "share" in found:
            raise InputError("--share: expected it without --rounds, each of which prunes the same, got both")
        return
    if density:
        raise InputError(
            "--rounds: expected it without --density with --published, whose rounds prune --share, got both"
        )
    del found["density"]


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _plan(
    output: Path, image: ImageOptions, run: RunSettings, method: str, settings: dict[str, Any]
) -> Outputs:
    if output.suffix != OURS:
        raise InputError(
            f"{output}: expected a name that ends in {OURS}, got {output.suffix or 'no extension'}"
        )
    outputs = Outputs(output, image.image, image.clean)
    outputs.plan(mask=output)
    if settings.get("rewind_step"):
        outputs.plan(weights=outputs.beside(f"_weights{OURS}"))
    if run.plots:
        outputs.plan(layers=outputs.beside("_layers.png"))
    outputs.plan(json=run.json or outputs.beside(".json"))
    if method == "oes":
        outputs.plan_checkpoints(run.resume, search=search_options("--"))
    elif method == "imp":
        own = {name: f"--{name.replace('_', '-')}" for name in ("steps", "lr", "scope", "small", "seed")}
        own |= {"densities": "--density, --rounds or --share", "rewind_step": "--rewind-step"}
        outputs.plan_checkpoints(run.resume, imp=own | {"weights": "--seed", "network": "--model"})
    return outputs


def _prune(outputs: Outputs, asked: _Request) -> int:
    run = asked.run
    problem = load_problem(asked.image, noise_seed=asked.noise_seed, device=run.device)
    with outputs.computing(*asked.settings):
        with ProgressReport(quiet=run.quiet) as progress:
            found = _find(outputs, asked, problem, progress)
        _write(outputs, asked, problem, found)
    if not run.quiet:
        print_table(_rows(problem, found), outputs.written.values())
    outputs.finish(complete=True)
    return EXIT_OK


def _find(outputs: Outputs, asked: _Request, problem: Problem, progress: ProgressReport) -> _Found:
    net: nn.Module
    made = asked.recipe
    check_fits(made, problem.shape, asked.run.device)
    net, z = fresh_generator(problem.noisy, model=made.name, options=made.options, seed=asked.seed)
    run, kept = asked.run, outputs.checkpoints
    arguments: dict[str, Any] = {**asked.settings, "seed": asked.seed}
    if asked.method in (*_TRAINS, *_BOUND):
        arguments |= {"backend": run.backend, "precision": run.precision, "verify": run.verify}
    last: list[StepInfo] = []

    def watch(info: StepInfo) -> bool:
        last[:] = [info]
        return progress.watch(info)

    if asked.method in _TRAINS:
        phase = next(iter(kept.paths))
        arguments |= {
            "clean": problem.clean,
            "callback": watch,
            "checkpoint": kept.paths[phase],
            "checkpoint_seconds": run.checkpoint_seconds,
        }
    began = time.monotonic()
    start: nn.Module = net
    rewound: nn.Module | None = None
    if asked.method == "imp":
        result = kept.run("imp", lambda resume: imp_rounds(net, z, problem.noisy, resume=resume, **arguments))
        mask, stopped = result.mask, result.interrupted
        if asked.settings["rewind_step"]:
            start = rewound = result.net
    elif asked.method == "oes":
        mask = kept.run(
            "search", lambda resume: METHODS["oes"](net, z, problem.noisy, resume=resume, **arguments)
        )
        stopped = bool(last) and last[0].step < last[0].steps
    else:
        mask, stopped = METHODS[asked.method](net, z, problem.noisy, **arguments), False
    if stopped:
        raise Interrupted(f"{signals.stop.words}{kept.kept()}", signals.stop.exit_code - 128)
    seconds = time.monotonic() - began
    mask = with_network(mask, asked.recipe, asked.seed)
    return _Found(mask, masked_output(start, mask, z), layer_densities(net, mask), seconds, rewound)


def _write(outputs: Outputs, asked: _Request, problem: Problem, found: _Found) -> None:
    outputs.write("mask", found.mask.save)
    if found.rewound is not None:
        rewound = found.rewound
        outputs.write("weights", lambda path: save_weights(path, rewound))
    names, densities = [layer.name for layer in found.layers], [layer.density for layer in found.layers]
    outputs.write("layers", lambda path: layer_density(path, names, densities, found.mask.density))
    run = asked.run
    result = {
        "command": "prune",
        "versions": versions(),
        **describe_device(run.device),
        "method": asked.method,
        "image": problem.describe(),
        "seeds": {"seed": asked.seed, "noise": problem.noise_seed},
        "settings": {
            **describe(asked.recipe),
            "prune": asked.settings,
            "backend": run.backend,
            "precision": run.precision,
            "verify": run.verify,
            "checkpoint_seconds": run.checkpoint_seconds,
        },
        "resumed": run.resume is True,
        "seconds": {"total": found.seconds},  # of this call, where it was resumed
        "mask": describe_mask(found.mask),
        "layers": [asdict(layer) for layer in found.layers],
        "psnr": _figures(problem, found),
        "files": {**outputs.written, "json": outputs.paths["json"]},
        "not_written": outputs.failed,
    }
    outputs.write("json", lambda path: write_json(path, result))


def _figures(problem: Problem, found: _Found) -> dict[str, float] | None:
    if problem.clean is None:
        return None
    images = {"noisy": problem.measured, "masked": found.output}
    return {name: psnr(*compared(image, problem.clean)) for name, image in images.items()}


def _rows(problem: Problem, found: _Found) -> list[tuple[str, str]]:
    rows = [
        (layer.name, f"{100 * layer.density:5.1f} %  {layer.kept} of {layer.count}") for layer in found.layers
    ]
    mask = found.mask
    rows += [("all", f"{100 * mask.density:5.1f} %  {mask.kept} of {mask.flat.numel()}")]
    figures = _figures(problem, found)
    if figures is not None:
        rows += [("Noisy", decibels(figures["noisy"])), ("Mask alone", decibels(figures["masked"]))]
    return [*rows, ("Time", duration(found.seconds))]
