"""What a page asks for, as arguments of the command line."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from oes_fast._checks import check_choice, check_integer, check_number
from oes_fast.errors import InputError
from oes_fast.io.image import SKIMAGE_PREFIX, Image, load_image, skimage_names

TASKS = ("denoise", "superres", "inpaint")  # commands
MASKS = ("search", "profile", "file")  # where a mask comes from
MAX_BYTES = 64 * 2**20  # of an upload
MAX_PIXELS = 4_000_000  # of an image: a step takes about a second on two cores, and 2 GiB
MASK_SUFFIXES = (".safetensors", ".npz", ".pkl")
_MAX_TEXT = 1000  # characters of what is typed
_MAX_NAME = 60  # characters of a file's name


@dataclass(frozen=True)
class Form:
    """What was filled in; what is None or empty is left to the command line.

    Attributes:
        task: one of :data:`TASKS`.
        factor: of rows and columns, of the task superres.
        painted: bool [H, W], which pixels of the image are missing, of the task inpaint.
        upload: file that was uploaded, None for a picture of scikit-image.
        picture: name of that.
        sigma: standard deviation of the noise to add, None where the image is noisy as it is.
        size: side to crop and resize to.
        preset: of the settings.
        density: share of the weights to keep.
        mask_from: where the mask comes from, one of :data:`MASKS`.
        mask: file of a mask that was uploaded, for "file".
        precision: of float32 products.
        seed: of network and search.
        runs: trainings to take the mean of.
        search_steps: of the search.
        train_steps: of the training.
        stop: rule that may end the training.
        model: name of a network.
        model_options: "KEY=VALUE KEY=VALUE".
        threads: of the CPU.
    """

    task: str = "denoise"
    factor: int = 2
    painted: npt.NDArray[np.bool_] | None = None
    upload: Path | None = None
    picture: str | None = None
    sigma: float | None = None
    size: int | None = None
    preset: str = "fast"
    density: float | None = None
    mask_from: str = "search"
    mask: Path | None = None
    precision: str = "float32"
    seed: int = 0
    runs: int = 1
    search_steps: int | None = None
    train_steps: int | None = None
    stop: str = "none"
    model: str | None = None
    model_options: str = ""
    threads: int | None = None

    def prepare(self, folder: Path) -> tuple[tuple[str, ...], str]:
        """Put the files into ``folder``, where the command is to run.

        Returns:
            Arguments of the command line, and the name of the image that they write.

        Raises:
            InputError: there is no image, it is none or too large, or a value cannot be.
        """
        check_choice("task", self.task, TASKS)
        image, stem = self._image(folder)
        output = f"{stem}_restored.png"
        arguments = [self.task, image]
        if self.task == "superres":
            arguments += ["--factor", str(self._factor(folder / image))]
        if self.task == "inpaint":
            arguments += ["--mask", self._known(folder, image)]
        check_choice("mask", self.mask_from, MASKS)
        if self.mask_from != "search":
            source = "profile" if self.mask_from == "profile" else self._mask(folder)
            arguments += ["--mask" if self.task == "denoise" else "--weights-mask", source]
        given = {
            "--sigma": self.sigma,
            "--size": self.size,
            "--preset": self.preset,
            "--density": None if self.mask_from == "file" else self.density,
            "--search-steps": self.search_steps if self.mask_from == "search" else None,
            "--train-steps": self.train_steps,
            "--precision": None if self.precision == "float32" else self.precision,
            "--seed": self.seed,
            "--runs": None if self.runs == 1 else self.runs,
            "--stop": None if self.stop == "none" else self.stop,
            "--model": self.model or None,
            "--threads": self.threads,
        }
        for name, value in given.items():
            if value is not None:
                arguments += [name, _text(name, value)]
        for option in _text("network options", self.model_options).split():
            arguments.append(f"--model-option={option}")
        return (*arguments, "--no-plots", "--quiet", "-o", output), output

    def _image(self, folder: Path) -> tuple[str, str]:
        """The argument IN, and what to name files after."""
        if self.upload is not None:
            check_image(self.upload)
            name = safe_name(self.upload.name)
            shutil.copyfile(self.upload, folder / name)
            return name, Path(name).stem
        if not self.picture:
            raise InputError("image: expected a file or a picture of scikit-image, got neither")
        check_choice("picture", self.picture, tuple(skimage_names()))
        if self.size is None:
            check_pixels(self.picture, *load_image(SKIMAGE_PREFIX + self.picture).pixels.shape[-2:])
        return SKIMAGE_PREFIX + self.picture, self.picture

    def _factor(self, image: Path) -> int:
        """The factor, if the image that it leads to is not too large."""
        factor = check_integer("factor", self.factor, minimum=2, below=17)
        if self.sigma is None:  # else the image is made smaller first
            source = str(image) if self.upload is not None else SKIMAGE_PREFIX + str(self.picture)
            height, width = load_image(source, size=self.size).pixels.shape[-2:]
            check_pixels(f"{factor} times {width} x {height}", factor * height, factor * width)
        return factor

    def _known(self, folder: Path, image: str) -> str:
        """Write which pixels of the image, cropped and resized as it is to be, are known; the file's name."""
        if self.painted is None or not self.painted.any():
            raise InputError("painting: expected what is missing to be painted over, got no such pixel")
        source = str(folder / image) if self.upload is not None else image
        height, width = load_image(source).pixels.shape[-2:]
        known = PillowImage.fromarray(np.where(self.painted, 0, 255).astype(np.uint8))
        path = folder / "known.png"
        known.resize((width, height), PillowImage.Resampling.NEAREST).save(path)
        if self.size is not None:
            whole = load_image(path, size=self.size).pixels[0, 0].numpy() > 0.99  # no pixel in part painted
            PillowImage.fromarray(np.where(whole, 255, 0).astype(np.uint8)).save(path)
        return path.name

    def _mask(self, folder: Path) -> str:
        if self.mask is None:
            raise InputError("mask: expected a mask file, got none")
        if self.mask.suffix.lower() not in MASK_SUFFIXES:
            raise InputError(
                f"{self.mask.name}: expected a mask file ({', '.join(MASK_SUFFIXES)}), "
                f"got {self.mask.suffix or 'no extension'}"
            )
        name = safe_name(f"mask-{self.mask.name}")
        shutil.copyfile(self.mask, folder / name)
        return name


def check_image(path: Path) -> Image:
    """The image in a file, if it is one that may be restored here.

    Raises:
        InputError: it is none, or larger than allowed; the message has the name alone, not the folder.
    """
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path.name}: expected {MAX_BYTES >> 20} MiB at most")
    try:
        with PillowImage.open(path) as opened:  # the header alone, before anything is decoded
            width, height = opened.size
    except PillowImage.DecompressionBombError:
        raise InputError(f"{path.name}: expected {MAX_PIXELS:,} pixels at most, got far more") from None
    except Exception:  # what Pillow does not read may be read all the same
        pass
    else:
        check_pixels(path.name, height, width)
    try:
        image = load_image(path)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    check_pixels(path.name, *image.pixels.shape[-2:])
    return image


def check_pixels(name: str, height: int, width: int) -> None:
    """Refuse an image of too many pixels.

    Raises:
        InputError: it is one.
    """
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{name}: expected {MAX_PIXELS:,} pixels at most, got {width} x {height} = {height * width:,}; "
            "make it smaller first, or use `oes-fast denoise`, which has no such limit"
        )


def safe_name(name: str) -> str:
    """A file's name with letters, digits, "." and "_" alone, which is no option and no path."""
    path = Path(name)
    stem = re.sub(r"[^\w.]+", "_", path.stem).strip("._")[:_MAX_NAME] or "image"
    return stem + re.sub(r"[^\w.]", "", path.suffix)[:_MAX_NAME]


def whole(name: str, value: float | None) -> int | None:
    """What a number field holds, as an integer; None where it is empty.

    Raises:
        InputError: it is none.
    """
    if value is None:
        return None
    number = check_number(name, value)
    if number != int(number):
        raise InputError(f"{name}: expected an integer, got {value}")
    return int(number)


def _text(name: str, value: object) -> str:
    text = str(value)
    if len(text) > _MAX_TEXT or "\0" in text:
        raise InputError(f"{name}: expected {_MAX_TEXT} characters at most, got {len(text)}")
    return text
