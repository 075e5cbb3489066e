"""Magnetic resonance imaging: an image of which part of the Fourier transform was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from oes_fast._checks import check_choice, check_integer, check_number, check_tensor
from oes_fast.errors import InputError
from oes_fast.models.base import center_crop
from oes_fast.noise import add_noise
from oes_fast.pipelines.clean import CleanView
from oes_fast.reference.philox import SAMPLING, seeded_generator
from oes_fast.tasks.packages import package
from oes_fast.tasks.task import Task, check_seed, check_sigma, simulated

PATTERNS = ("random", "equispaced")
DEFAULT_CENTER = 0.08  # share of the columns about the centre, as fastMRI has it for fourfold acceleration
_COMPLEX = (torch.complex64, torch.complex128)
_MIN_CALIBRATION = 2  # half the side of the square about the centre from which coil maps are estimated


def mri(
    measured: Tensor,
    mask: Tensor | None = None,
    *,
    acceleration: int | None = None,
    center_fraction: float | None = None,
    pattern: str = "random",
    coil_maps: Tensor | None = None,
    sigma: float | None = None,
    seed: int = 0,
    clean: Tensor | None = None,
) -> Task:
    """Part of k-space, of one coil or of several: deepinv.physics.MRI or MultiCoilMRI.

    The network gives the complex image as two channels, real and imaginary part, of any sign: it must not end
    in a sigmoid (``Task.model_options``). k-space is divided by the largest magnitude of the image that it
    gives where zeros stand for what was not measured; ``settings["scale"]`` multiplies the restored image by
    it again. :meth:`Task.shown` gives the magnitude, cropped to ``clean``, in units of the largest magnitude
    of ``clean`` where that is known, so that the PSNR is relative to it.

    Args:
        measured: k-space, complex64 or complex128, [H, W] of one coil or [coils, H, W], with its centre at
            [H // 2, W // 2]. Or, with ``sigma``, a clean image in 0..1, float32 or float64, [1, 1, H, W],
            whose Fourier transform is taken.
        mask: 1 where k-space was measured, 0 elsewhere: [W] for columns, or [H, W]. Without it and
            ``acceleration``, what is exactly 0 in all coils was not measured.
        acceleration: in the place of ``mask``: measure one column in so many, > 1.
        center_fraction: share of all columns that are measured about the centre, in [0, 1); None for 0.08,
            or 0.04 from an acceleration of 8 on, as fastMRI.
        pattern: of the other columns: "random" or "equispaced".
        coil_maps: sensitivities, complex, [coils, H, W]; divided by their root sum of squares. None: of
            several coils they are estimated from the middle of k-space, see :func:`estimate_coil_maps`. With
            a clean image: the coils to simulate, None for one that sees everything alike.
        sigma: ``measured`` is an image, or k-space of which all was measured: measure the part that ``mask``
            or ``acceleration`` says, with noise of this standard deviation (0 for none) in the real and in
            the imaginary part of each sample, in units of the clean image's largest magnitude, and compare
            with the magnitude of the clean image. None: ``measured`` is what was measured.
        seed: of noise and columns, in [0, 2^64).
        clean: magnitude [h, w], h <= H and w <= W, in the units of ``measured``, of the middle of the image,
            to measure against, where ``sigma`` is None.

    Returns:
        The :class:`Task`: ``noisy`` is real, [1, 2, H, W], or [1, 2, coils, H, W]; ``first`` is the magnitude
        with zeros for what was not measured.

    Raises:
        InputError: an argument does not fit, with its name.
        OESError: deepinv is not here.

    Example:
        >>> phantom = torch.rand(1, 1, 64, 64)
        >>> task = oes.tasks.mri(phantom, acceleration=4, sigma=0.01)  # doctest: +SKIP
        >>> task.shape, task.model_options  # doctest: +SKIP
        ((2, 64, 64), {'need_sigmoid': False})
    """
    check_choice("pattern", pattern, PATTERNS)
    check_sigma(sigma)
    check_seed(seed)
    image, samples = _told_apart(measured, sigma)
    height, width = measured.shape[-2:]
    if sigma is not None and clean is not None:
        raise InputError("clean: expected None with sigma, which compares with what it measures, got both")
    maps = None if coil_maps is None else _checked_maps(coil_maps, samples, measured)
    physics = package("deepinv.physics")
    real = measured.real if measured.is_complex() else measured
    like = torch.empty((), dtype=real.dtype, device=measured.device)
    if mask is not None and acceleration is not None:
        raise InputError("mask: expected it or acceleration, got both")
    if acceleration is not None:
        known = _columns(height, width, acceleration, center_fraction, pattern, seed).to(like)
    elif mask is not None:
        known = _checked_mask(mask, height, width).to(like)
    elif samples is not None:
        known = (samples.abs() > 0).reshape(-1, height, width).any(dim=0).to(like)
    else:
        raise InputError("mask: expected it or acceleration for an image, got neither")
    if not bool(known.any()):
        raise InputError("mask: expected one sample at least, got none")

    scale = top = 1.0
    reference: Tensor | None = None
    if samples is None:
        forward = _operator(physics, known, maps)
        cover = known[None, None] if maps is None else known[None, None, None]
        x = torch.cat([image, torch.zeros_like(image)], dim=1)
        noisy = simulated(forward, x, 0.0 if sigma is None else sigma, seed, cover)
        reference = image
    else:
        coils = maps is not None or (samples.ndim == 3 and samples.shape[0] > 1)
        samples = samples.reshape(-1, height, width) if coils else samples.reshape(height, width)
        cover = known[None, None, None] if coils else known[None, None]
        noisy = torch.view_as_real(samples).movedim(-1, 0)[None] * cover  # [1, 2, (coils,) H, W]
        if sigma is not None:
            reference = root_sum_of_squares(physics, samples)
            top = _positive(float(reference.max()))
            noisy = add_noise(noisy / top, sigma, seed, clip=False) * cover * top
        if coils and maps is None:
            maps = estimate_coil_maps(torch.view_as_complex(noisy[0].movedim(0, -1).contiguous()), known)
        forward = _operator(physics, known, maps)
        scale = _positive(float(magnitude(forward.A_adjoint(noisy)).max()))
        noisy = noisy / scale
        if clean is not None:
            reference = _checked_clean(clean, height, width).to(like)[None, None]
            top = _positive(float(reference.max()))
        elif sigma is None:
            top = scale
    view = _view(None if reference is None else reference.shape[-2:], scale / top)
    return Task(
        name="mri",
        noisy=noisy,
        forward=forward,
        shape=(2, height, width),
        first=view(forward.A_adjoint(noisy)),
        clean=None if reference is None else CleanView(reference / top, view),
        sigma=sigma,
        seed=None if sigma is None and acceleration is None else seed,
        settings={
            "acceleration": acceleration,
            "center_fraction": center_fraction,
            "pattern": pattern if acceleration is not None else None,
            "measured": float(known.mean()),
            "coils": 1 if maps is None else maps.shape[0],
            "coil_maps": None if maps is None else "given" if coil_maps is not None else "estimated",
            "scale": scale,
        },
        model_options={"need_sigmoid": False},
        view=view,
    )


def magnitude(image: Tensor) -> Tensor:
    """[1, 1, H, W] of real and imaginary part [1, 2, H, W]."""
    return image.square().sum(dim=1, keepdim=True).sqrt()


def root_sum_of_squares(physics: Any, samples: Tensor) -> Tensor:
    """Magnitude [1, 1, H, W] over all coils of k-space [H, W] or [coils, H, W] that was measured whole."""
    images = physics.MRI.ifft(samples.reshape(-1, *samples.shape[-2:]))
    return images.abs().square().sum(dim=0).sqrt()[None, None]


def estimate_coil_maps(samples: Tensor, known: Tensor) -> Tensor:
    """Sensitivities of coils from the low frequencies, which are those of smooth maps times the image.

    The largest square about the centre of k-space that was measured whole, under a Hann window, gives an
    image of each coil; they are divided by their root sum of squares. (deepinv.physics.MultiCoilMRI has
    ESPIRiT's, which need the package sigpy.)

    Args:
        samples: complex [coils, H, W].
        known: 1 where they were measured, [H, W].

    Returns:
        Complex [coils, H, W]; the sum of the squared magnitudes over the coils is 1.

    Raises:
        InputError: less than 4 x 4 samples about the centre were measured.
    """
    height, width = known.shape
    rows = (torch.arange(height, device=known.device) - height // 2)[:, None]
    columns = (torch.arange(width, device=known.device) - width // 2)[None, :]
    # A sample at -r and one at r - 1 lie on the border of a square of half the side r.
    ring = torch.maximum(torch.maximum(-rows, rows + 1), torch.maximum(-columns, columns + 1))
    holes = ring[known == 0]
    half = min(height // 2, width // 2, *([] if holes.numel() == 0 else [int(holes.min()) - 1]))
    if half < _MIN_CALIBRATION:
        side = 2 * _MIN_CALIBRATION
        raise InputError(
            f"coil_maps: expected them, or {side} x {side} samples about the centre of k-space to estimate "
            f"them from, got {2 * half} x {2 * half}"
        )
    low = torch.zeros_like(samples)
    window = torch.hann_window(2 * half + 1, periodic=False, dtype=known.dtype, device=known.device)[:-1]
    window = window.clamp(min=1e-3)
    top, left = height // 2 - half, width // 2 - half
    part = (slice(None), slice(top, top + 2 * half), slice(left, left + 2 * half))
    low[part] = samples[part] * window[:, None] * window[None, :]
    mixin = package("deepinv.physics").MRI
    return normalised(mixin.ifft(low))


def normalised(maps: Tensor) -> Tensor:
    """``maps`` [coils, H, W] divided by their root sum of squares; 0 where all of them are next to 0."""
    total = maps.abs().square().sum(dim=0, keepdim=True).sqrt()
    floor = 1e-6 * total.max().clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > floor, maps / total.clamp(min=floor), torch.zeros_like(maps))


def _told_apart(measured: object, sigma: float | None) -> tuple[Tensor, Tensor | None]:
    """(``measured``, k-space, or None where it is an image)."""
    found = check_tensor("measured", measured, dtypes=(torch.float32, torch.float64, *_COMPLEX), finite=True)
    if found.is_complex():
        if found.ndim not in (2, 3) or found.numel() == 0:
            raise InputError(
                f"measured: expected k-space of shape (H, W) or (coils, H, W), got {tuple(found.shape)}"
            )
        return found, found
    if sigma is None:
        raise InputError(f"measured: expected complex k-space, or an image with sigma, got {found.dtype}")
    return check_tensor("measured", found, shape=(1, 1, None, None)), None


def _checked_maps(maps: object, samples: Tensor | None, measured: Tensor) -> Tensor:
    found = check_tensor("coil_maps", maps, ndim=3, dtypes=_COMPLEX, finite=True)
    coils = found.shape[0] if samples is None else 1 if samples.ndim == 2 else samples.shape[0]
    wanted = (coils, *measured.shape[-2:])
    check_tensor("coil_maps", found, shape=wanted, dtypes=_COMPLEX)
    dtype = torch.complex128 if measured.dtype in (torch.float64, torch.complex128) else torch.complex64
    return normalised(found.to(measured.device, dtype))


def _checked_mask(mask: object, height: int, width: int) -> Tensor:
    """0 and 1, [H, W]."""
    if not isinstance(mask, Tensor):
        raise InputError(f"mask: expected a torch.Tensor, got {type(mask).__name__}")
    if tuple(mask.shape) not in ((width,), (height, width)):
        raise InputError(
            f"mask: expected shape ({width},) or ({height}, {width}) as k-space, got {tuple(mask.shape)}"
        )
    known = mask.to(torch.float32).expand(height, width)
    if not bool(((known == 0) | (known == 1)).all()):
        raise InputError("mask: expected 0 or 1 in every element, got other values")
    return known


def _checked_clean(clean: object, height: int, width: int) -> Tensor:
    found = check_tensor("clean", clean, ndim=2, finite=True)
    if found.numel() == 0 or found.shape[0] > height or found.shape[1] > width:
        raise InputError(
            f"clean: expected a magnitude of at most ({height}, {width}), got {tuple(found.shape)}"
        )
    if float(found.min()) < 0:
        raise InputError(f"clean: expected a magnitude >= 0, got {float(found.min()):g}")
    return found


def _columns(
    height: int, width: int, acceleration: int, center_fraction: float | None, pattern: str, seed: int
) -> Tensor:
    """A mask [H, W] of deepinv's generators, whose random numbers are ours."""
    check_integer("acceleration", acceleration, minimum=2)
    share = center_fraction
    if share is None:
        share = DEFAULT_CENTER if acceleration < 8 else DEFAULT_CENTER / 2
    check_number("center_fraction", share, minimum=0.0, below=1.0)
    if int(share * width) >= width // acceleration:
        raise InputError(
            f"center_fraction: expected fewer than the {width // acceleration} columns that an acceleration "
            f"of {acceleration} leaves of {width}, got {int(share * width)}"
        )
    generators = package("deepinv.physics.generator")
    make = generators.RandomMaskGenerator if pattern == "random" else generators.EquispacedMaskGenerator
    drawn = make(
        (height, width),
        acceleration=acceleration,
        center_fraction=share,
        rng=seeded_generator(seed, SAMPLING),
        device="cpu",
    ).step(batch_size=1)
    return drawn["mask"][0, 0]


def _operator(physics: Any, known: Tensor, maps: Tensor | None) -> Any:
    if maps is None:
        return physics.MRI(mask=known, device=known.device)
    return physics.MultiCoilMRI(mask=known, coil_maps=maps, device=known.device)


def _positive(value: float) -> float:
    if not math.isfinite(value):
        raise InputError("measured: expected numbers whose squares are finite, got larger ones")
    if value <= 0:
        raise InputError("measured: expected k-space of an image, got zeros alone")
    return value


def _view(crop: tuple[int, ...] | None, factor: float) -> Callable[[Tensor], Tensor]:
    def view(image: Tensor) -> Tensor:
        picture = magnitude(image) * factor
        return picture if crop is None else center_crop(picture, crop[0], crop[1])

    return view
