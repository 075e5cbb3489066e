"""One cell of a comparison: mask, training, measures, files. What was done before it was stopped is kept."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.analysis import layer_densities
from oes_fast.baselines import SgldResult, dense_dip, fresh_deep_decoder, sgld
from oes_fast.comparison.cells import DONE, STARTED, Cell, CellFiles, digest
from oes_fast.comparison.classical import CLASSICAL
from oes_fast.comparison.measures import measures, ssim
from oes_fast.comparison.settings import Settings
from oes_fast.errors import InputError, OESWarning
from oes_fast.io.image import psnr, save_image
from oes_fast.mask import Mask
from oes_fast.noise import add_noise
from oes_fast.pipelines.checkpoint import digest as digest_of
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.masked_output import masked_output
from oes_fast.pipelines.train import TrainResult, train_sparse
from oes_fast.pipelines.transfer import fresh_generator
from oes_fast.pruning import METHODS, imp_rounds
from oes_fast.pruning.select import empty_layers
from oes_fast.weights_file import load_weights, save_weights

SHOWN_SECONDS = 0.5  # from one report of a cell's step to the next
MASK_ENDING = "_mask.safetensors"
WEIGHTS_ENDING = "_weights.safetensors"  # rewound ones of "imp"
_SECONDS = "seconds"  # setting of a mask: that it took
_CELL = "cell"  # setting of a mask: digest of those of its cell


@dataclass(frozen=True)
class Step:
    """How far a cell has come.

    Attributes:
        cell: which.
        phase: "search" or "train".
        step: updates made.
        steps: updates to make.
        loss: the objective.
        psnr: of the output in dB.
    """

    cell: Cell
    phase: str
    step: int
    steps: int
    loss: float
    psnr: float


@dataclass
class Options:
    """How the cells run, whatever they are.

    Attributes:
        folder: of the comparison.
        device: to compute on.
        verify: compare rewritten networks with the dense ones first.
        checkpoint_seconds: time between two checkpoints.
        stopping: whether the comparison is to stop.
        report: takes each :class:`Step`.
    """

    folder: Path
    device: str = "cpu"
    verify: bool = True
    checkpoint_seconds: float = 60.0
    stopping: Callable[[], bool] = field(default=lambda: False)
    report: Callable[[Step], None] = field(default=lambda step: None)


class Stopped(Exception):
    """The comparison was told to stop; the cell's checkpoints are written."""


def settings_of(settings: Settings, cell: Cell, clean: Tensor) -> dict[str, Any]:
    """All that the result of a cell depends on, as JSON values."""
    return {"image": digest_of(clean), **settings.of_cell(cell.method, cell.density, cell.seed)}


def run_cell(cell: Cell, group: list[Cell], clean: Tensor, settings: Settings, options: Options) -> None:
    """Run a cell to its end and write its result; nothing where that is there.

    Args:
        cell: which.
        group: the cells it shares its mask's rounds with, itself among them.
        clean: its image, float32 in 0..1, shape [1, C, H, W].
        settings: of the comparison.
        options: how to run.

    Raises:
        Stopped: before the end.
        OESError: the cell failed; the message says why.
    """
    files = CellFiles(options.folder, cell, settings_of(settings, cell, clean))
    before = files.read()
    if before is not None and before["state"] == DONE:
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = _Run(cell, group, clean.to(options.device), settings, options, files, before)
        result = run.classical() if cell.method in CLASSICAL else run.network()
    result["warnings"] = [str(w.message) for w in caught if issubclass(w.category, OESWarning)]
    files.write(DONE, result)
    for path in (run.checkpoint("search"), run.checkpoint("train")):
        path.unlink(missing_ok=True)


class _Run:
    """A cell that runs."""

    def __init__(
        self,
        cell: Cell,
        group: list[Cell],
        clean: Tensor,
        settings: Settings,
        options: Options,
        files: CellFiles,
        before: dict[str, Any] | None,
    ) -> None:
        self.cell, self.group, self.clean = cell, group, clean
        self.settings, self.options, self.files = settings, options, files
        self.noisy = add_noise(clean, settings.sigma, files.settings["noise_seed"])
        known = before or {}
        self.ssim = [(int(s), float(v)) for s, v in known.get("ssim_curve", [])]
        self.seconds: dict[str, float] = dict(known.get("seconds", {}))  # of the calls before this one
        self.interval = files.settings.get("ssim_every", 1)
        self._aside = 0.0  # seconds of this call that were spent on measures
        self._shown = 0.0
        self._noted = 0.0
        self._elapsed: Callable[[], None] = lambda: None  # brings the seconds of what runs up to date
        self._last: StepInfo | None = None
        self._note()

    def checkpoint(self, phase: str) -> Path:
        """The checkpoint of a phase."""
        return self.files.path(f".{phase}.ckpt")

    def classical(self) -> dict[str, Any]:
        """Denoise without a network."""
        began = time.monotonic()
        found = CLASSICAL[self.cell.method](self.noisy, self.settings.sigma)
        seconds = time.monotonic() - began
        self._save("", found)
        figures = {"noisy": psnr(self.noisy, self.clean), "end": psnr(found, self.clean)}
        similar = {"noisy": ssim(self.noisy, self.clean), "end": ssim(found, self.clean)}
        return {"psnr": figures, "ssim": similar, "seconds": {"total": seconds}, **self._where("none")}

    def network(self) -> dict[str, Any]:
        """Find the mask, if there is one to find, and train."""
        net: nn.Module
        own = self.settings
        net, z = fresh_generator(self.noisy, model=own.model, options=own.model_options, seed=self.cell.seed)
        masked = mask = None
        if self.cell.method in METHODS:
            mask, net = self._mask(net, z)
            masked = masked_output(net, mask, z)
            self._save("_masked", masked)
            fit = self._train(
                lambda **common: train_sparse(net, mask, z, self.noisy, lr=self.settings.train_lr, **common)
            )
        else:
            fit = self._baseline(net, z)
        return self._result(fit, net, mask, masked)

    def _baseline(self, net: nn.Module, z: Tensor) -> TrainResult:
        own, seed = self.settings, self.cell.seed
        if self.cell.method == "dense_dip":
            return self._train(
                lambda **common: dense_dip(
                    net,
                    z,
                    self.noisy,
                    lr=own.dense_lr,
                    weight_decay=own.weight_decay,
                    input_noise=own.input_noise,
                    seed=seed,
                    **common,
                )
            )
        if self.cell.method == "sgld":
            return self._train(
                lambda **common: sgld(
                    net,
                    z,
                    self.noisy,
                    lr=own.sgld_lr,
                    param_noise=own.param_noise,
                    burn_in=self.files.settings["burn_in"],
                    seed=seed,
                    **common,
                )
            )
        decoder, small = fresh_deep_decoder(self.noisy, seed=seed)
        return self._train(
            lambda **common: dense_dip(decoder, small, self.noisy, lr=own.decoder_lr, seed=seed, **common)
        )

    def _mask(self, net: nn.Module, z: Tensor) -> tuple[Mask, nn.Module]:
        """The mask, found now or before, and the network with the weights that it is trained from."""
        path = self.files.path(MASK_ENDING)
        if not path.exists():
            self._find_mask(net, z)
        try:
            mask = Mask.load(path, net)
        except InputError as error:
            raise InputError(f"{error}; without that file, the mask is found again") from error
        if mask.settings.get(_CELL) != digest(self.files.settings):
            raise InputError(
                f"{path}: expected the mask of this cell, got one of other settings; without that file, the "
                "mask is found again"
            )
        self.seconds["mask"] = float(mask.settings.get(_SECONDS, 0.0))
        self._note()
        if self.cell.method == "imp" and self.settings.rewind_step > 0:
            net = deepcopy(net)
            load_weights(self.files.path(WEIGHTS_ENDING), net)
        return mask, net

    def _find_mask(self, net: nn.Module, z: Tensor) -> None:
        own, cell = self.settings, self.cell
        if cell.method == "imp":
            self._find_rounds(net, z)
            return
        arguments: dict[str, Any] = {"density": cell.density, "seed": cell.seed}
        if cell.method == "oes":
            arguments |= {
                "steps": own.search_steps,
                "lr": own.search_lr,
                "kl": own.kl,
                "temperature": own.temperature,
                "schedule": own.search_schedule,
                **self._loop("search"),
            }
        else:
            arguments |= {"scope": own.scope, "small": own.small}
        if cell.method in ("snip", "grasp", "synflow"):
            arguments |= self._binding()
        with self._timed("mask"):
            mask = METHODS[cell.method](net, z, self.noisy, **arguments)
        self._check_whole()
        self._keep_mask(self.files, mask, self.seconds["mask"])

    def _find_rounds(self, net: nn.Module, z: Tensor) -> None:
        """The masks of all densities of the group, from one schedule of rounds."""
        own = self.settings
        rounds = self.files.rounds
        with self._timed("mask"):
            found = imp_rounds(
                net,
                z,
                self.noisy,
                densities=self.files.settings["imp_densities"],
                steps=self.files.settings["imp_steps"],
                lr=own.train_lr,
                rewind_step=own.rewind_step,
                scope=own.scope,
                small=own.small,
                seed=self.cell.seed,
                **self._loop("search") | {"checkpoint": rounds},
            )
        if found.interrupted:
            raise Stopped
        for cell in self.group:
            files = CellFiles(self.options.folder, cell, settings_of(own, cell, self.clean.cpu()))
            if cell.density is not None and not files.path(MASK_ENDING).exists():
                if own.rewind_step > 0:
                    save_weights(files.path(WEIGHTS_ENDING), found.net)
                self._keep_mask(files, found.at(cell.density), self.seconds["mask"])
        shutil.rmtree(rounds, ignore_errors=True)

    def _keep_mask(self, files: CellFiles, mask: Mask, seconds: float) -> None:
        if files.read() is None:  # a mask without a note of its settings could be taken for one of others
            files.write(STARTED, {})
        noted = {**mask.settings, "network_seed": self.cell.seed}
        noted |= {_SECONDS: seconds, _CELL: digest(files.settings)}
        Mask(mask.flat, mask.fingerprint, noted).save(files.path(MASK_ENDING))

    def _train(self, call: Callable[..., TrainResult]) -> TrainResult:
        common = self._loop("train") | {"steps": self.settings.train_steps}
        with self._timed("train"):
            fit = call(average=self.settings.average, **common)
        if fit.steps < self.settings.train_steps:
            raise Stopped
        return fit

    def _binding(self) -> dict[str, Any]:
        return {
            "backend": self.settings.backend,
            "precision": self.settings.precision,
            "verify": self.options.verify,
        }

    def _loop(self, phase: str) -> dict[str, Any]:
        """The arguments that all loops share."""
        return {
            **self._binding(),
            "clean": self.clean,
            "record_every": self.settings.record_every,
            "callback": self._watch if phase == "train" else self._watch_search,
            "checkpoint": self.checkpoint(phase),
            "checkpoint_seconds": self.options.checkpoint_seconds,
            "resume": True,
        }

    def _watch_search(self, info: StepInfo) -> bool:
        self._last = info
        return self._show(info)

    def _watch(self, info: StepInfo) -> bool:
        if info.step % self.interval == 0 or info.step == info.steps:
            began = time.monotonic()
            self.ssim = [pair for pair in self.ssim if pair[0] < info.step]  # those after the checkpoint
            self.ssim.append((info.step, ssim(info.output, self.clean)))
            self._note()
            self._aside += time.monotonic() - began
        return self._show(info)

    def _show(self, info: StepInfo) -> bool:
        now = time.monotonic()
        if now - self._noted >= self.options.checkpoint_seconds:  # a kill may be next
            self._note()
        if now - self._shown >= SHOWN_SECONDS:
            self._shown = now
            decibels = info.psnr
            self.options.report(
                Step(self.cell, info.phase, info.step, info.steps, info.loss, decibels or float("nan"))
            )
        return self.options.stopping()

    def _check_whole(self) -> None:
        """Raise :class:`Stopped` if a search was stopped before its end, by whatever."""
        last, self._last = self._last, None
        if last is not None and last.step < last.steps:
            raise Stopped

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Count the seconds inside as those of a phase, but for what measures take."""
        before, began = self.seconds.get(phase, 0.0), time.monotonic()
        self._aside = 0.0

        def elapsed() -> None:
            self.seconds[phase] = before + time.monotonic() - began - self._aside

        self._elapsed = elapsed
        try:
            yield
        finally:
            self._note()
            self._elapsed = lambda: None

    def _note(self) -> None:
        """Keep what checkpoints do not hold."""
        self._elapsed()
        self._noted = time.monotonic()
        self.files.write(STARTED, {"ssim_curve": self.ssim, "seconds": self.seconds})

    def _save(self, ending: str, image: Tensor) -> None:
        save_image(self.files.path(f"{ending}.png"), image)

    def _where(self, backend: str) -> dict[str, Any]:
        return {"backend": backend, "device": str(self.noisy.device), "threads": torch.get_num_threads()}

    def _result(
        self, fit: TrainResult, net: nn.Module, mask: Mask | None, masked: Tensor | None
    ) -> dict[str, Any]:
        of_posterior = isinstance(fit, SgldResult)
        average = fit.posterior_mean if isinstance(fit, SgldResult) else fit.average
        self._save("", fit.output)
        if average is not None:
            self._save("_average", average)
        total = sum(self.seconds.get(phase, 0.0) for phase in ("mask", "train"))
        found: dict[str, Any] = {
            **measures(self.noisy, self.clean, masked, fit, average, self.ssim),
            "average_of": None if average is None else "posterior" if of_posterior else "outputs",
            "seconds": {**self.seconds, "total": total},
            **self._where(fit.backend),
            "ssim_curve": self.ssim,
        }
        if mask is not None:
            found["mask"] = {"kept": mask.kept, "density": mask.density, "settings": dict(mask.settings)}
            found["empty_layers"] = empty_layers(net, mask.flat)
            found["layers"] = [asdict(layer) for layer in layer_densities(net, mask)]
        return found
