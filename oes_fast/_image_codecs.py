"""Image files to arrays and back, by Pillow and OpenCV, each for what it keeps whole."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError

from oes_fast.errors import InputError

FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
JPEG_QUALITY = 95

Array = npt.NDArray[np.generic]


def decode(path: Path) -> Array:
    """The image as [H, W, C] with C = 1 to 4, in the file's number type, turned upright."""
    data = path.read_bytes()
    try:
        with PillowImage.open(io.BytesIO(data)) as image:
            kind, mode = image.format, image.mode
            orientation = image.getexif().get(0x0112, 1)
            image.load()
            if kind in ("PNG", "TIFF") and mode in _DEEP_MODES:
                # Pillow cuts 16-bit colour to 8 bits without a word.
                deep = _decode_with_opencv(data)
                if deep is not None and deep.dtype != np.uint8:
                    if mode == "LA" and deep.shape[2] == 4:
                        deep = deep[..., [0, 3]]
                    # OpenCV turns TIFF and leaves PNG as it is.
                    return deep if kind == "TIFF" else _TURN.get(orientation, lambda x: x)(deep)
            return _from_pillow(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        array = _decode_with_opencv(data)
        if array is None:
            raise InputError(f"{path}: expected an image, got a file that is none, or is damaged") from error
        return array
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: expected a complete image, got a damaged one: {reason}") from error


_DEEP_MODES = ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L", "F")
# The orientations of EXIF, for arrays [H, W, C].
_TURN = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


def _from_pillow(image: PillowImage.Image) -> Array:
    if image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image)[..., None]
    bands = image.getbands()
    alpha = "A" if "A" in bands or "a" in bands or "transparency" in image.info else ""
    base = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    array = np.asarray(image.convert(base + alpha))
    return array[..., None] if array.ndim == 2 else array


def _decode_with_opencv(data: bytes) -> Array | None:
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if array is None:
        return None
    if array.ndim == 2:
        return array[..., None]
    return array[..., [2, 1, 0, 3][: array.shape[2]]] if array.shape[2] in (3, 4) else array


def encode(array: Array, suffix: str) -> bytes:
    """The file's bytes; Pillow writes 8 bits, OpenCV 16."""
    if array.dtype == np.uint8:
        buffer = io.BytesIO()
        options: dict[str, object] = {"quality": JPEG_QUALITY} if FORMATS[suffix] == "JPEG" else {}
        if FORMATS[suffix] == "TIFF":
            options["compression"] = "tiff_lzw"
        PillowImage.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(
            buffer, format=FORMATS[suffix], **options
        )
        return buffer.getvalue()
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    done, encoded = cv2.imencode(suffix, np.ascontiguousarray(array[..., order]))
    if not done:
        raise InputError(f"image: expected pixels that {suffix} can hold, got shape {array.shape}")
    return encoded.tobytes()
