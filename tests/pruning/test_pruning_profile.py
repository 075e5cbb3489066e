"""Masks of a layer profile: as dense in each layer as a found mask, and drawn at random there."""

from __future__ import annotations

import pytest
import torch

import oes_fast as oes
from oes_fast.flat import FlatLayout

SMALL = {"num_channels_down": (8,) * 6}


def kept(net: torch.nn.Module, mask: oes.Mask) -> dict[str, int]:
    return {name: int(view.sum()) for name, view in FlatLayout.of(net).views(mask.flat).items()}


@pytest.fixture(scope="module")
def published() -> torch.nn.Module:
    return oes.models.skip(seed=0)


def test_the_profile_is_of_the_published_network_at_5_per_cent(published):
    profile, layout = oes.pruning.layer_profile(), FlatLayout.of(published)
    assert list(profile) == list(layout.names)
    assert all(0 <= share <= 1 for share in profile.values())
    weights = sum(share * size for share, size in zip(profile.values(), layout.sizes, strict=True))
    assert weights / layout.numel == pytest.approx(0.05, abs=1e-6)
    with pytest.raises(TypeError):
        profile["3.1.weight"] = 1.0


@pytest.mark.parametrize("density", [None, 0.05])
def test_layers_are_as_dense_as_the_profile_says(published, density):
    mask = oes.pruning.profile(published, density=density, seed=7)
    assert mask.kept == 150_443
    mask.check(published)
    sizes = dict(zip(FlatLayout.of(published).names, FlatLayout.of(published).sizes, strict=True))
    for name, count in kept(published, mask).items():
        assert abs(count - oes.pruning.layer_profile()[name] * sizes[name]) < 1, name
    assert (mask.settings["method"], mask.settings["seed"]) == ("profile", 7)


def test_which_weights_are_kept_is_drawn_by_the_seed(published):
    first, again, other = (oes.pruning.profile(published, density=0.05, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.flat, again.flat)
    assert kept(published, first) == kept(published, other)
    shared = int((first.flat & other.flat).sum()) / first.kept
    expected = sum(
        n**2 / size
        for n, size in zip(kept(published, first).values(), FlatLayout.of(published).sizes, strict=True)
    )
    assert shared == pytest.approx(expected / first.kept, rel=0.05)  # what chance has two draws share
    # Halves of a large layer are alike: no place is preferred.
    places = FlatLayout.of(published).views(first.flat)["1.7.1.7.1.7.1.4.1.weight"].reshape(2, -1)
    assert abs(int(places[0].sum()) - int(places[1].sum())) < 5 * int(places.sum()) ** 0.5


def test_other_densities_are_in_proportion_and_no_layer_keeps_more_than_all():
    net = oes.models.skip(4, 1, **SMALL)
    masks = {density: oes.pruning.profile(net, density=density, seed=3) for density in (0.05, 0.2, 0.9, 1.0)}
    numel = FlatLayout.of(net).numel
    assert {density: mask.kept for density, mask in masks.items()} == {
        density: round(density * numel) for density in masks
    }
    assert not bool((masks[0.05].flat & ~masks[0.2].flat).any())
    convolution, scale = "1.7.1.4.1.weight", "1.7.1.7.1.7.1.7.1.7.1.2.weight"
    profile, found = oes.pruning.layer_profile(), kept(net, masks[0.2])
    assert found[scale] == 8
    assert found["1.1.1.weight"] / 800 == pytest.approx(
        found[convolution] / 1600 * profile["1.1.1.weight"] / profile[convolution], abs=2 / 800
    )


def test_a_network_that_the_profile_is_not_of_is_refused():
    with pytest.raises(
        oes.InputError, match=r"net: expected a network whose parameters .* got 2 of other nam"
    ):
        oes.pruning.profile(torch.nn.Conv2d(2, 3, 3))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"density": 0.0}, "density: expected a finite number > 0"),
        ({"density": 1.5}, "density: expected"),
        ({"density": 1e-6}, "density: expected to keep one weight of"),
        ({"seed": -1}, "seed: expected"),
    ],
)
def test_wrong_arguments_are_refused(wrong, said):
    with pytest.raises(oes.InputError, match=said):
        oes.pruning.profile(oes.models.skip(4, 1, **SMALL), **wrong)
