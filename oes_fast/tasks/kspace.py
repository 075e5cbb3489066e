"""Files of raw data from a magnetic resonance scanner: fastMRI's HDF5 layout, and NumPy arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oes_fast._checks import check_integer
from oes_fast.errors import InputError
from oes_fast.io.arrays import load_numbers
from oes_fast.io.files import check_readable
from oes_fast.tasks.packages import package

HDF5_SUFFIXES = (".h5", ".hdf5")
KSPACE_SUFFIXES = (*HDF5_SUFFIXES, ".npy")
TARGETS = ("reconstruction_rss", "reconstruction_esc")
_KEPT = ("acquisition",)  # attributes that say something of the picture, and nothing of the patient


@dataclass(frozen=True, eq=False)
class KSpace:
    """One slice of raw data.

    Attributes:
        samples: complex64, shape [H, W] of a single coil or [coils, H, W]; the centre of k-space is at
            [H // 2, W // 2].
        mask: float32 of 0 and 1, shape [W] (columns) or [H, W]: where it was measured; None where the file
            does not say.
        target: magnitude [h, w], float32, that the file gives for this slice (root sum of squares of all of
            k-space), h <= H and w <= W; None where there is none.
        slice: number of the slice in the file, 0 for an array of one.
        slices: in the file.
        attributes: of the file that say how the slice was measured.
    """

    samples: Tensor
    mask: Tensor | None = None
    target: Tensor | None = None
    slice: int = 0
    slices: int = 1
    attributes: dict[str, str] = field(default_factory=dict)


def load_kspace(path: str | os.PathLike[str], *, slice: int | None = None) -> KSpace:
    """Read one slice of k-space.

    HDF5 (.h5, .hdf5) as fastMRI publishes it: "kspace", complex, [slices, H, W] or [slices, coils, H, W];
    where they are there, "reconstruction_rss" or "reconstruction_esc", [slices, h, w], and "mask", [W] or
    [H, W]. It needs h5py (``pip install "oes_fast[physics]"``). NumPy (.npy): complex, one slice [H, W] or
    [coils, H, W].

    Args:
        path: file to read.
        slice: which, from 0; None for the one in the middle.

    Returns:
        The :class:`KSpace`.

    Raises:
        InputError: no such file or slice, a key is missing, or something else than what is described above.
        OESError: h5py is not here.

    Example:
        >>> found = oes.tasks.load_kspace("scan.h5", slice=12)  # doctest: +SKIP
        >>> task = oes.tasks.mri(found.samples, found.mask, clean=found.target)  # doctest: +SKIP
    """
    file = check_readable(path)
    suffix = file.suffix.lower()
    if suffix in HDF5_SUFFIXES:
        return _from_hdf5(path, slice)
    if suffix != ".npy":
        raise InputError(
            f"{path}: expected k-space in a file that ends in {', '.join(KSPACE_SUFFIXES)}, got "
            f"{suffix or 'no extension'}"
        )
    array = load_numbers(path)
    if array.ndim not in (2, 3) or not np.iscomplexobj(array):
        raise InputError(
            f"{path}: expected complex k-space of shape (H, W) or (coils, H, W), got {array.dtype} "
            f"{array.shape}"
        )
    if slice is not None:
        raise InputError(f"{path}: expected no slice beside an array, which is one, got slice {slice}")
    return KSpace(_samples(path, array))


def _from_hdf5(path: str | os.PathLike[str], slice: int | None) -> KSpace:
    h5py = package("h5py")
    try:
        with h5py.File(path, "r") as file:
            return _from_open(path, file, slice)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: expected a complete HDF5 file, got one that fails: {reason}") from error


def _from_open(path: str | os.PathLike[str], file: Any, slice: int | None) -> KSpace:
    if "kspace" not in file:
        raise InputError(f"{path}: expected 'kspace', got {', '.join(map(repr, file)) or 'nothing'}")
    kspace = _dataset(path, file, "kspace")
    if len(kspace.shape) not in (3, 4) or kspace.dtype.kind != "c" or 0 in kspace.shape:
        raise InputError(
            f"{path}: expected complex 'kspace' of shape (slices, H, W) or (slices, coils, H, W), got "
            f"{kspace.dtype} {kspace.shape}"
        )
    slices, (height, width) = kspace.shape[0], kspace.shape[-2:]
    number = slices // 2 if slice is None else check_integer("slice", slice, minimum=0, below=slices)
    mask = target = None
    if "mask" in file:
        mask = torch.from_numpy(np.asarray(_dataset(path, file, "mask")[()]).astype(np.float32))
        if tuple(mask.shape) not in ((width,), (height, width)):
            raise InputError(
                f"{path}: expected 'mask' of shape ({width},) or ({height}, {width}), got {tuple(mask.shape)}"
            )
    name = next((name for name in TARGETS if name in file), None)
    if name is not None:
        found = _dataset(path, file, name)
        if len(found.shape) != 3 or found.shape[0] != slices or found.dtype.kind not in "fiu":
            raise InputError(
                f"{path}: expected real {name!r} of shape ({slices}, h, w), got {found.dtype} {found.shape}"
            )
        if found.shape[1] > height or found.shape[2] > width:
            raise InputError(
                f"{path}: expected {name!r} no larger than k-space ({height}, {width}), got {found.shape}"
            )
        target = torch.from_numpy(np.asarray(found[number]).astype(np.float32))
        _check_finite(path, name, target)
    attributes = {key: str(file.attrs[key]) for key in _KEPT if key in file.attrs}
    return KSpace(_samples(path, np.asarray(kspace[number])), mask, target, number, slices, attributes)


def _dataset(path: str | os.PathLike[str], file: Any, name: str) -> Any:
    found = file[name]
    if not hasattr(found, "shape"):  # a group
        raise InputError(f"{path}: expected an array under {name!r}, got a group")
    return found


def _samples(path: str | os.PathLike[str], array: np.ndarray) -> Tensor:
    samples = torch.from_numpy(np.ascontiguousarray(array.astype(np.complex64)))
    if 0 in samples.shape:
        raise InputError(f"{path}: expected samples, got shape {tuple(samples.shape)}")
    _check_finite(path, "kspace", samples)
    return samples


def _check_finite(path: str | os.PathLike[str], name: str, values: Tensor) -> None:
    bad = values.numel() - int(torch.isfinite(values).sum())
    if bad:
        raise InputError(
            f"{path}: expected finite values in {name!r}, got {bad} NaN or infinite of {values.numel()}"
        )
