"""Total variation against sums over pairs of neighbours, and its derivative."""

from __future__ import annotations

import itertools

import pytest
import torch

import oes_fast as oes
from oes_fast.functional import total_variation


def pair_by_pair(image):
    """The definition, one pair after the other."""
    total = 0.0
    for dim in range(2, image.ndim):
        differences = []
        for index in itertools.product(*(range(size) for size in image.shape)):
            if index[dim] + 1 < image.shape[dim]:
                behind = (*index[:dim], index[dim] + 1, *index[dim + 1 :])
                differences.append(abs(float(image[behind] - image[index])))
        total += sum(differences) / len(differences) if differences else 0.0
    return total


@pytest.mark.parametrize(
    "shape", [(1, 2, 7), (2, 3, 4, 5), (1, 1, 3, 2, 4), (1, 1, 1, 6), (1, 2, 1, 1)], ids=str
)
def test_the_definition(shape):
    image = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(total_variation(image)) == pytest.approx(pair_by_pair(image), rel=1e-12)
    assert total_variation(image.float()).dtype == torch.float32


def test_images_that_are_known():
    assert total_variation(torch.full((1, 3, 8, 8), 0.7)) == 0
    step = torch.tensor([0.0, 1.0]).repeat(1, 1, 4, 3)
    assert total_variation(step) == pytest.approx(1.0)
    assert total_variation(step.transpose(2, 3)) == pytest.approx(1.0)


def test_the_derivative():
    image = torch.rand(1, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(total_variation, image.requires_grad_())
    (grad,) = torch.autograd.grad(total_variation(flat := torch.ones(1, 1, 3, 3, requires_grad=True)), flat)
    assert torch.equal(grad, torch.zeros(1, 1, 3, 3))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([1.0], r"^image: expected a torch.Tensor, got list$"),
        (
            torch.zeros(1, 1, 2, 2, dtype=torch.complex64),
            r"^image: expected dtype float32 or float64, got complex64$",
        ),
        (torch.zeros(2, 2), r"^image: expected shape \(N, C, H, W\), .*got \(2, 2\)$"),
        (torch.zeros(1, 0, 2, 2), r"^image: expected shape .*got \(1, 0, 2, 2\)$"),
    ],
    ids=["list", "complex", "dimensions", "empty"],
)
def test_what_is_no_image(image, message):
    with pytest.raises(oes.InputError, match=message):
        total_variation(image)
