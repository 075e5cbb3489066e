"""Search and training as a model of deepinv: ``oes.SparseDIP``. Importing this module imports deepinv."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import (
    FLOAT_DTYPES,
    check_flag,
    check_integer,
    check_number,
    check_steps,
    described,
)
from oes_fast.entry import Entry, check_entry
from oes_fast.errors import InputError
from oes_fast.mask import Mask
from oes_fast.models.registry import find_model
from oes_fast.noise import draw_input
from oes_fast.pipelines.checkpoint import keep_unfinished
from oes_fast.pipelines.clean import CleanView, clean_pixels
from oes_fast.pipelines.functions import run_network
from oes_fast.pipelines.search import SearchResult, search_mask
from oes_fast.pipelines.train import TrainResult, train_sparse
from oes_fast.pipelines.transfer import fresh_generator
from oes_fast.tasks.packages import package

Reconstructor: Any = package("deepinv.models").Reconstructor


@dataclass(frozen=True)
class Reconstruction:
    """How one image of a batch came about.

    Attributes:
        mask: that was trained.
        search: that found it, None where it was given or is that of the first image.
        train: the training.
    """

    mask: Mask
    search: SearchResult | None
    train: TrainResult


class SparseDIP(Reconstructor):
    """Optimal Eye Surgeon as a deepinv Reconstructor: ``x_hat = model(y, physics)``.

    Each image of a batch is restored by a network of its own: a mask is searched by
    :func:`oes_fast.search_mask` and trained by :func:`oes_fast.train_sparse` with the forward operator
    ``physics``. It takes the place of deepinv.models.DeepImagePrior: by itself, in deepinv.test or in a
    Trainer's evaluation. Every call starts from the same weights, drawn from ``seed``.

    Args:
        generator: network from z to the image; left alone. None for a fresh one of ``model`` for each image.
        z: input of ``generator``: a tensor [1, C, ...], or its shape (C, ...), to be drawn from U(0, 0.1).
        entry: which of several results of ``generator`` is the image.
        density: share of the weights to keep.
        search_steps: updates of the mask search.
        train_steps: updates of the training.
        search_lr: learning rate of the search.
        search_kl: weight of its KL term.
        lr: learning rate of the training.
        model: name of the fresh generator, one of :data:`oes_fast.models.MODELS`.
        options: of ``model``, by name.
        img_size: shape (C, H, W) of the image that ``model`` is to give; None for that of
            ``physics.A_adjoint(y)``.
        mask: to train, in the place of a search; of ``generator`` or of ``model``.
        share_mask: search on the first image alone, and train its mask for the others.
        average: decay of the running average of the images, which is the result; None for the last image.
        loss: of (measured, noisy); None for the mean squared error.
        tv: weight of the image's total variation.
        seed: of weights, z and search; image i of a batch has seed + i.
        backend: "auto", "reference", "torch", "cpu", "triton" or "cuda", see :func:`oes_fast.backends`.
        verify: compare each rewritten network with the one that it is of.
        verbose: show progress.
        search: further arguments of :func:`oes_fast.search_mask`, by name. Of a batch of N images, image i
            has the i-th of N ``clean`` images and of N ``weight``s, and a ``checkpoint`` of its own:
            "stem-0.ckpt", "stem-1.ckpt" and so on for "stem.ckpt". Unless they are resumed, those of an
            unfinished call are set aside together.
        train: further arguments of :func:`oes_fast.train_sparse`, by name, alike.

    Attributes:
        trained: a :class:`Reconstruction` for each image of the last call.

    Raises:
        InputError: an argument does not fit, with its name.

    Example:
        >>> import deepinv  # doctest: +SKIP
        >>> physics = deepinv.physics.Inpainting(img_size=(3, 64, 64), mask=0.5)  # doctest: +SKIP
        >>> model = oes.SparseDIP(  # doctest: +SKIP
        ...     density=0.2, search_steps=300, search_lr=0.3, search_kl=3e-7, train_steps=1200
        ... )
        >>> x_hat = model(physics(x), physics)  # doctest: +SKIP
    """

    trained: tuple[Reconstruction, ...]

    def __init__(
        self,
        generator: nn.Module | None = None,
        z: Tensor | Sequence[int] | None = None,
        *,
        entry: Entry | None = None,
        density: float = 0.05,
        search_steps: int = 60_000,
        train_steps: int = 40_000,
        search_lr: float = 1e-2,
        search_kl: float = 1e-9,
        lr: float = 1e-2,
        model: str = "skip",
        options: Mapping[str, Any] | None = None,
        img_size: Sequence[int] | None = None,
        mask: Mask | None = None,
        share_mask: bool = False,
        average: float | None = 0.99,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        tv: float = 0.0,
        seed: int = 0,
        backend: str = "auto",
        verify: bool = True,
        verbose: bool = False,
        search: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if generator is not None and not isinstance(generator, nn.Module):
            raise InputError(f"generator: expected a torch.nn.Module, got {type(generator).__name__}")
        if (generator is None) != (z is None):
            raise InputError("z: expected it together with generator, got one without the other")
        if check_entry(entry) is not None and generator is None:
            raise InputError(f"entry: expected it together with generator, got {entry!r} without")
        if mask is not None and not isinstance(mask, Mask):
            raise InputError(f"mask: expected an oes_fast.Mask, got {type(mask).__name__}")
        find_model(model).check(options or {})
        if img_size is not None:
            img_size = tuple(check_integer("img_size", side, minimum=1) for side in img_size)
        self.generator = generator
        self.register_buffer("_z", z if isinstance(z, Tensor) else None, persistent=False)
        self._z_size = None if z is None or isinstance(z, Tensor) else tuple(z)
        self.img_size, self.mask = img_size, mask
        self._model, self._options = model, options
        self._share_mask = check_flag("share_mask", share_mask)
        self._seed = check_integer("seed", seed, minimum=0, below=2**63)
        self._entry = entry
        common = {
            "entry": entry,
            "loss": loss,
            "tv": check_number("tv", tv, minimum=0.0),
            "backend": backend,
            "verify": verify,
            "progress": check_flag("verbose", verbose),
        }
        self._search = {
            "density": check_number("density", density, above=0.0, below=1.0),
            "steps": check_steps("search_steps", search_steps),
            "lr": check_number("search_lr", search_lr, above=0.0),
            "kl": check_number("search_kl", search_kl, minimum=0.0),
            **common,
            **_further("search", search, search_mask),
        }
        self._train = {
            "steps": check_steps("train_steps", train_steps),
            "lr": check_number("lr", lr, above=0.0),
            "average": average,
            **common,
            **_further("train", train, train_sparse),
        }
        files = [each.get("checkpoint") for each in (self._search, self._train)]
        paths = [Path(file) for file in files if isinstance(file, str | os.PathLike)]
        if len(paths) == 2 and paths[0] == paths[1]:
            raise InputError(f"train: expected another checkpoint than search's, got {paths[0]} in both")
        self.trained = ()

    def forward(self, y: Any, physics: Any, **kwargs: Any) -> Tensor:
        """Restore the images of a batch of measurements, one after the other.

        Args:
            y: measurements [N, ...], float32, float64 or complex; or a list of them, as stacked physics give.
            physics: their forward operator, with a method ``A`` that autograd differentiates.
            **kwargs: taken, as by every Reconstructor, and not used.

        Returns:
            Images [N, C, H, W], without gradient.

        Raises:
            InputError: the measurements do not fit, or the image's shape is not known.
            OESError: as :func:`oes_fast.search_mask` and :func:`oes_fast.train_sparse`.
        """
        if not callable(getattr(physics, "A", None)):
            raise InputError(f"physics: expected an operator with a method A, got {type(physics).__name__}")
        with torch.inference_mode(False), torch.enable_grad():
            problem = _Batch(y, physics)
            self._keep_unfinished(problem)
            mask, trained, images = self.mask, [], []
            for number in range(problem.count):
                noisy = problem.noisy(number)
                net, z = self._network(problem, number)
                forward = problem.forward(number, self._image_shape(net, z))
                search, found = None, mask
                if found is None:
                    options = {"seed": self._seed + number, **problem.options(number, self._search)}
                    search = search_mask(net, z, noisy, forward=forward, **options)
                    found = search.mask
                options = problem.options(number, self._train)
                fit = train_sparse(net, found, z, noisy, forward=forward, **options)
                if self._share_mask:
                    mask = found
                trained.append(Reconstruction(found, search, fit))
                images.append(fit.output if fit.average is None else fit.average)
            self.trained = tuple(trained)
            return torch.cat(images)

    def _keep_unfinished(self, problem: _Batch) -> None:
        """Set aside the checkpoints of a call that was broken off: those of its finished runs as well."""
        searched = 0 if self.mask is not None else 1 if self._share_mask else problem.count
        files = [
            file
            for options, count in ((self._search, searched), (self._train, problem.count))
            for file in (problem.checkpoint(number, options) for number in range(count))
            if file is not None and not options.get("resume")
        ]
        keep_unfinished(files)

    def _network(self, problem: _Batch, number: int) -> tuple[nn.Module, Tensor]:
        seed = self._seed + number
        if self.generator is None:
            shape = problem.image_shape() if self.img_size is None else self.img_size
            return fresh_generator(
                problem.like, shape=shape, model=self._model, options=self._options, seed=seed
            )
        if self._z is not None:
            return self.generator, self._z
        weights = next(self.generator.parameters(), problem.like)
        assert self._z_size is not None
        channels, *size = self._z_size
        z = draw_input(channels, size, seed=seed, dtype=weights.dtype, device=weights.device)
        return self.generator, z

    def _image_shape(self, net: nn.Module, z: Tensor) -> Callable[[], torch.Size]:
        def shape() -> torch.Size:
            with torch.no_grad(), torch.random.fork_rng([z.device] if z.device.type == "cuda" else []):
                image = run_network(net, z, self._entry)
            if not isinstance(image, Tensor):
                raise InputError(f"generator: expected an image as output, got {described(image)}")
            return image.shape

        return shape


def _further(name: str, given: object, function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of ``function`` by name, as they were given.

    Raises:
        InputError: it has no such argument, or the model sets it for each image.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(
            f"{name}: expected arguments of oes_fast.{function.__name__} by name, got {type(given).__name__}"
        )
    own = ("net", "mask", "z", "noisy", "forward")
    possible = [each for each in inspect.signature(function).parameters if each not in own]
    unknown = [each for each in given if each not in possible]
    if unknown:
        raise InputError(
            f"{name}: expected arguments of oes_fast.{function.__name__} ({', '.join(possible)}), got "
            f"{', '.join(map(repr, unknown))}"
        )
    return dict(given)


class _Batch:
    """Measurements of a batch, and the operator of each image.

    Args:
        y: tensor [N, ...], or a list of them.
        physics: operator of all.
    """

    def __init__(self, y: Any, physics: Any) -> None:
        self._stacked = not isinstance(y, Tensor)
        parts = list(y) if self._stacked and hasattr(y, "__len__") else [y]
        for part in parts:
            if not isinstance(part, Tensor) or part.ndim < 1:
                raise InputError(f"y: expected measurements [N, ...], got {type(part).__name__}")
        kinds = {(part.dtype, part.device, part.shape[0]) for part in parts}
        if len(kinds) != 1:
            raise InputError("y: expected measurements of one dtype, device and batch, got several")
        self._parts = [part.detach().clone() if part.is_inference() else part.detach() for part in parts]
        first = self._parts[0]
        if first.real.dtype not in FLOAT_DTYPES:
            raise InputError(f"y: expected float32, float64 or their complex kinds, got {first.dtype}")
        self.count = first.shape[0]
        if self.count == 0:
            raise InputError(f"y: expected a measurement at least, got shape {tuple(first.shape)}")
        self.like = first.new_empty(0, dtype=first.real.dtype)
        self._y, self._physics = y, physics

    def noisy(self, number: int) -> Tensor:
        """What was measured of an image; of a list all of it in a row."""
        parts = [part[number : number + 1] for part in self._parts]
        return torch.cat([part.flatten(1) for part in parts], 1) if self._stacked else parts[0]

    def options(self, number: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Of the arguments for all images those of one: its clean image, its weights and its checkpoint.

        Raises:
            InputError: neither one clean image nor one for each.
        """
        found = dict(options)
        if self.count == 1:
            return found
        one = slice(number, number + 1)
        clean, weight = (found.get(name) for name in ("clean", "weight"))
        pixels = clean_pixels(clean) if isinstance(clean, Tensor | CleanView) else None
        if pixels is not None and pixels.ndim > 0:
            if pixels.shape[0] not in (1, self.count):
                raise InputError(f"clean: expected {self.count} images as y has, got {pixels.shape[0]}")
            if pixels.shape[0] == self.count:
                part = pixels[one]
                found["clean"] = replace(clean, image=part) if isinstance(clean, CleanView) else part
        dims = 2 if self._stacked else self._parts[0].ndim
        if isinstance(weight, Tensor) and weight.ndim == dims and weight.shape[0] == self.count:
            found["weight"] = weight[one]
        if (path := self.checkpoint(number, options)) is not None:
            found["checkpoint"] = path
        return found

    def checkpoint(self, number: int, options: Mapping[str, Any]) -> Path | None:
        """The file that keeps an image's run, None for none."""
        file = options.get("checkpoint")
        if not isinstance(file, str | os.PathLike):
            return None
        path = Path(file)
        return path if self.count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")

    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) as ``A_adjoint`` gives it.

        Raises:
            InputError: it gives no image.
        """
        try:
            with torch.no_grad():
                shape = tuple(self._physics.A_adjoint(self._y).shape[1:])
        except Exception as error:
            raise InputError(
                "img_size: expected the image's shape (C, H, W), since physics.A_adjoint(y) fails: "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        return shape

    def forward(self, number: int, image_shape: Callable[[], torch.Size]) -> Any:
        """The operator of one image: the physics, if it measures one by itself.

        Args:
            number: of the image.
            image_shape: gives the shape [1, C, H, W] of the network's image.
        """
        if not self._stacked and (self.count == 1 or self._measures_one(image_shape())):
            return self._physics
        return _OfOne(self._physics, number, self.count, stacked=self._stacked)

    def _measures_one(self, shape: torch.Size) -> bool:
        """Whether the operator is the same for all images: those with parameters for each give as many."""
        try:
            with torch.no_grad():
                measured = self._physics.A(torch.zeros(shape, dtype=self.like.dtype, device=self.like.device))
            return bool(measured.shape[0] == 1)
        except Exception:
            return False


class _OfOne:
    """The operator of one image of a batch, whose parameters are of the whole batch."""

    def __init__(self, physics: Any, number: int, count: int, *, stacked: bool) -> None:
        self._physics, self._number, self._count, self._stacked = physics, number, count, stacked

    def A(self, x: Tensor) -> Tensor:
        """What is measured of an image [1, C, H, W]."""
        one = slice(self._number, self._number + 1)
        measured = self._physics.A(x.expand(self._count, *x.shape[1:]))
        if not self._stacked:
            return measured[one]
        return torch.cat([part[one].flatten(1) for part in measured], 1)
