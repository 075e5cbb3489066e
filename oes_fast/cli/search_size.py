"""``--search-size``: search on a smaller image than is restored; a mask is independent of the size."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import interpolate

from oes_fast.cli.problem import Problem
from oes_fast.errors import InputError
from oes_fast.io.image import MIN_SIDE
from oes_fast.pipelines.transfer import fresh_generator
from oes_fast.recipe import Recipe


class Seen(NamedTuple):
    """What a search looks at.

    Attributes:
        problem: with its noisy image and, where there is one, the clean one.
        z: input of that size, drawn from the seed.
    """

    problem: Problem
    z: Tensor


def searched_on(problem: Problem, z: Tensor, size: int | None, recipe: Recipe, seed: int) -> Seen:
    """The problem itself, or with ``size`` one of images shrunk to that shorter side.

    Args:
        problem: to restore.
        z: input of that size.
        size: pixels, None for those of the image.
        recipe: of the network.
        seed: of the input.

    Raises:
        InputError: the image is not larger, or there is an operator between it and what was measured.
    """
    if size is None:
        return Seen(problem, z)
    if problem.task is not None:
        raise InputError(
            f"--search-size: expected it for denoising alone, where a smaller image can be made, got it with "
            f"{problem.task.name}"
        )
    shorter = min(problem.noisy.shape[-2:])
    if not MIN_SIDE <= size < shorter:
        raise InputError(
            f"--search-size: expected at least {MIN_SIDE} pixels and fewer than the {shorter} of the image's "
            f"shorter side, got {size}"
        )
    clean = problem.clean
    assert clean is None or isinstance(clean, Tensor)  # a view of it is a task's
    small = shrunk(problem.noisy, size)
    seen = replace(problem, noisy=small, clean=None if clean is None else shrunk(clean, size))
    return Seen(seen, fresh_generator(small, model=recipe.name, options=recipe.options, seed=seed)[1])


def shrunk(image: Tensor, side: int) -> Tensor:
    """[1, C, H, W] with a shorter side of ``side`` pixels, antialiased, which lowers its noise."""
    height, width = image.shape[-2:]
    shape = [round(length * side / min(height, width)) for length in (height, width)]
    return interpolate(image, shape, mode="bicubic", antialias=True, align_corners=False)
