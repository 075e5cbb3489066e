"""Presets: what commands take from them, and that results of before keep the names of their settings."""

from __future__ import annotations

import pytest
from conftest import build_problem
from short_runs import start

from oes_fast.batch import Settings
from oes_fast.cli.settings import SearchSettings
from oes_fast.pipelines.presets import PRESETS

GIVEN = ("density", "steps", "lr", "kl", "temperature")  # options that a preset decides


def search(preset, **given):
    """Settings of a search on the command line."""
    options = dict.fromkeys(GIVEN) | {"mask_option": "topk"}
    return SearchSettings.of(preset, **(options | given))


@pytest.mark.parametrize("name", PRESETS)
def test_search_and_sets_take_all_of_a_preset(name):
    preset = PRESETS[name]
    expected = {
        "density": preset.density,
        "steps": preset.search_steps,
        "lr": preset.search_lr,
        "kl": preset.search_kl,
        "temperature": preset.search_temperature,
        "schedule": preset.search_schedule,
    }
    found = search(name)
    assert {option: getattr(found, option) for option in expected} == expected
    of_set = Settings.of_preset(preset, average=0.99)
    assert {option: of_set.of_search()[option] for option in expected} == expected
    assert of_set.of_training(seed=0)["schedule"] is None  # that of the search is not one of the training


def test_options_override_a_preset():
    found = search("fast", temperature=0.3, schedule="linear")
    assert (found.temperature, found.schedule, found.kl) == (0.3, "linear", PRESETS["fast"].search_kl)
    of_set = Settings.of_preset(PRESETS["fast"], average=None, temperature=0.3, schedule="linear")
    assert (of_set.of_search()["schedule"], of_set.of_training(seed=0)["schedule"]) == ("linear", "linear")
    assert of_set.of_search()["temperature"] == 0.3


def test_a_set_of_before_is_the_same():
    assert Settings().search_digest == "df4ce6dda664d557"
    assert "search_schedule" not in Settings().plain(searched=True)
    fast = Settings.of_preset(PRESETS["fast"], average=None)
    assert fast.plain(searched=True)["search_schedule"] == "cosine"
    assert "search_schedule" not in fast.plain(searched=False)


def test_the_paper_is_the_default():
    problem = build_problem(size=(16, 20))
    preset = PRESETS["paper"]
    found = start("search", problem, steps=3).logits
    published = {
        "lr": preset.search_lr,
        "kl": preset.search_kl,
        "temperature": preset.search_temperature,
        "schedule": preset.search_schedule,
    }
    assert (start("search", problem, steps=3, **published).logits == found).all()
