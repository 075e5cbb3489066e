"""Plain arrays: NumPy files, and image files taken as numbers."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oes_fast.errors import InputError
from oes_fast.io._image_codecs import decode
from oes_fast.io.files import atomic_write, check_readable


def load_numbers(path: str | os.PathLike[str]) -> npt.NDArray[np.generic]:
    """The array in a NumPy file (.npy); pickled objects are refused.

    Raises:
        InputError: no such file, or no array of numbers or booleans.
    """
    check_readable(path)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: expected a complete NumPy array, got one that fails: {reason}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
        raise InputError(
            f"{path}: expected a NumPy array of numbers, got {getattr(array, 'dtype', 'several')}"
        )
    return array


def load_plane(path: str | os.PathLike[str]) -> Tensor:
    """Real numbers in rows and columns: a NumPy array [H, W], or an image of any size.

    Args:
        path: .npy, whose numbers are kept as they are; or an image file, whose pixels are 0 to 1, colours
            averaged, alpha left out.

    Returns:
        float64 [H, W].

    Raises:
        InputError: no such file, neither of the two, another shape, or a number that is not finite.
    """
    file = check_readable(path)
    if file.suffix.lower() == ".npy":
        array = load_numbers(path)
        if array.ndim != 2 or array.dtype.kind == "c":
            raise InputError(
                f"{path}: expected real numbers of shape (H, W), got {array.dtype} {array.shape}"
            )
        plane = array.astype(np.float64)
    else:
        decoded = decode(file)
        channels = decoded.array.shape[2]
        colours = decoded.array[..., : channels - (channels % 2 == 0)]
        plane = colours.astype(np.float64).mean(axis=2) / decoded.top
    if plane.size == 0:
        raise InputError(f"{path}: expected numbers, got shape {plane.shape}")
    bad = plane.size - int(np.isfinite(plane).sum())
    if bad:
        raise InputError(f"{path}: expected finite values, got {bad} NaN or infinite of {plane.size}")
    return torch.from_numpy(plane)


def save_numbers(path: str | os.PathLike[str], array: npt.NDArray[np.generic]) -> None:
    """Write a NumPy file (.npy), atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    atomic_write(path, lambda temporary: np.save(temporary, array, allow_pickle=False))
