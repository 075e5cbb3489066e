"""What a comparison is asked for: refusals by name, and what the result of each cell depends on."""

from __future__ import annotations

import pytest

import oes_fast as oes
from oes_fast.comparison import NAMES, Settings
from oes_fast.comparison.cells import grid, groups
from oes_fast.pipelines.presets import PRESETS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("methods", ["oes", "lasso"]),
        ("methods", []),
        ("methods", ["oes", "oes"]),
        ("densities", [0.05, 1.0]),
        ("seeds", [-1]),
        ("seeds", [1, 1]),
        ("sigma", 0.0),
        ("train_steps", 0),
        ("train_lr", float("nan")),
        ("average", 1.0),
        ("ssim_every", 15),
        ("scope", "layer"),
        ("small", "drop"),
        ("precision", "half"),
        ("imp_densities", [0.5, 0.6, 0.05]),
        ("imp_densities", [0.5, 0.2]),
        ("rewind_step", 40_000),
        ("burn_in", -1),
    ],
)
def test_refusals_name_the_setting(name, value):
    with pytest.raises(oes.InputError, match=f"^{name}: expected"):
        Settings(**({"methods": ["imp"]} | {name: value}))


def test_a_result_depends_on_what_its_method_uses_alone():
    one = Settings(methods=NAMES, densities=[0.1])
    two = Settings(
        methods=NAMES, densities=[0.1, 0.05], imp_densities=(*one.imp_schedule, 0.05), seeds=[0, 1],
        search_steps=7, scope="tensor", dense_lr=0.5, decoder_lr=0.5, sgld_lr=0.5,
    )  # fmt: skip
    same = {m for m in NAMES if one.of_cell(m, 0.1, 0) == two.of_cell(m, 0.1, 0)}
    assert same == {"nlm", "tv", "bm3d"}
    three = Settings(methods=NAMES, densities=[0.1], search_steps=7)
    assert {m for m in NAMES if one.of_cell(m, 0.1, 0) != three.of_cell(m, 0.1, 0)} == {"oes"}
    four = Settings(methods=NAMES, densities=[0.1], train_steps=7)
    assert {m for m in NAMES if one.of_cell(m, 0.1, 0) == four.of_cell(m, 0.1, 0)} == {"nlm", "tv", "bm3d"}


def test_noise_is_that_of_the_cell_or_of_all():
    assert Settings(methods=["tv"]).of_cell("tv", None, 3)["noise_seed"] == 3
    assert Settings(methods=["tv"], noise_seed=0).of_cell("tv", None, 3)["noise_seed"] == 0


def test_rounds_of_imp_pass_every_density():
    schedule = Settings(methods=["imp"], densities=[0.05, 0.2, 0.02]).imp_schedule
    assert {0.05, 0.2, 0.02} <= set(schedule)
    assert schedule[-1] == 0.02
    shares = [after / before for before, after in zip((1.0, *schedule), schedule, strict=False)]
    assert all(0.6 < share < 0.95 for share in shares), shares


def test_about_fifty_ssims():
    assert Settings(methods=["oes"], train_steps=20_000).ssim_interval == 400
    assert Settings(methods=["oes"], train_steps=20, record_every=10).ssim_interval == 10
    assert Settings(methods=["oes"], ssim_every=70).ssim_interval == 70


def test_a_preset_is_overridden_by_what_is_given():
    quick = Settings.of_preset(PRESETS["quick"], methods=["oes"], train_steps=5, average=None, kl=None)
    assert (quick.train_steps, quick.search_steps, quick.densities) == (5, 300, (0.2,))
    assert (quick.kl, quick.average) == (PRESETS["quick"].search_kl, None)


def test_cells_say_what_differs_from_the_published_search_alone():
    fast = Settings.of_preset(PRESETS["fast"], methods=["oes", "random"], average=None)
    assert (fast.temperature, fast.search_schedule) == (0.5, "cosine")
    cell = fast.of_cell("oes", 0.05, 0)
    assert (cell["temperature"], cell["search_schedule"]) == (0.5, "cosine")
    assert not {"temperature", "search_schedule"} & fast.of_cell("random", 0.05, 0).keys()
    paper = Settings.of_preset(PRESETS["paper"], methods=["oes"], average=None)
    assert not {"temperature", "search_schedule"} & paper.of_cell("oes", 0.05, 0).keys()


def test_the_first_seed_comes_first_and_imp_is_one_piece():
    settings = Settings(methods=["oes", "imp", "sgld", "tv"], densities=[0.1, 0.05], seeds=[4, 1])
    cells = grid(["a", "b"], settings)
    assert [cell.seed for cell in cells] == [4] * 12 + [1] * 12
    assert len({cell.name for cell in cells}) == 24
    assert cells[0].name == "a_oes_0.1_seed4"
    assert [len(group) for group in groups(cells)] == [1, 1, 2, 1, 1] * 4
