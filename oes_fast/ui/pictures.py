"""Pictures as pages show them: PNG in memory, and no larger than a page."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from torch import Tensor

from oes_fast.ui.worker import Picture, picture

SHOWN_SIDE = 768  # pixels, of a picture that changes while it is looked at


def png(pixels: Picture, *, largest: int | None = None) -> bytes:
    """PNG of a picture.

    Args:
        pixels: uint8, [H, W] or [H, W, 3].
        largest: side that a larger picture is made smaller to.
    """
    image = PillowImage.fromarray(np.ascontiguousarray(pixels))
    if largest is not None and max(image.size) > largest:
        image.thumbnail((largest, largest), PillowImage.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def figure(pixels: Picture, caption: str) -> str:
    """HTML of a picture with what it shows, which a screen reader says as well."""
    data = base64.b64encode(png(pixels, largest=SHOWN_SIDE)).decode()
    said = html.escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{said}"/>'
        f"<figcaption>{said}</figcaption></figure>"
    )


def tensor_figure(image: Tensor, caption: str) -> str:
    """The same of an image [1, 1 or 3, H, W]."""
    return figure(picture(image), caption)


def write(path: Path, pixels: Picture) -> Path:
    """Write a PNG; its path."""
    path.write_bytes(png(pixels))
    return path
