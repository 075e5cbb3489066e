"""Comparisons end to end on a small network: what is done is kept, what is missing is run, nothing mixed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_generator import small_generator

import oes_fast as oes
from oes_fast.comparison import NAMES, Cell, Comparison, Outcome, Settings, Step, Watcher, compare, run
from oes_fast.comparison.measures import ssim
from oes_fast.io.locks import RunLocks

STEPS = 12
QUICK = {
    "train_steps": STEPS,
    "search_steps": 5,
    "imp_steps": 4,
    "average": 0.5,
    "record_every": 2,
    "ssim_every": 4,
}
NETWORKS = [name for name in NAMES if name != "bm3d"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh generators are small."""
    monkeypatch.setattr(run, "fresh_generator", small_generator)


@pytest.fixture(scope="module")
def images() -> dict[str, torch.Tensor]:
    return {"astronaut": oes.load_image("skimage:astronaut", size=32).pixels}


def settings(methods: list[str], **more: Any) -> Settings:
    return Settings(**({"methods": methods, "densities": [0.5], **QUICK} | more))


def go(images: dict[str, torch.Tensor], folder: Path, wanted: Settings, **more: Any) -> Comparison:
    return compare(images, folder, wanted, **({"verify": False, "draw": False} | more))


class Watching(Watcher):
    """Notes what it is told, and says when to stop."""

    def __init__(self, stop: Callable[[Step], bool] | None = None) -> None:
        self.ran: list[Cell] = []
        self.failures: dict[str, str | None] = {}
        self.done: list[Cell] = []
        self.stop, self.stopped = stop, False

    def planned(self, cells: list[Cell], done: list[Cell]) -> None:
        self.done = done

    def step(self, step: Step) -> None:
        if step.cell not in self.ran:
            self.ran.append(step.cell)
        self.stopped = self.stopped or (self.stop is not None and self.stop(step))

    def ended(self, outcome: Outcome) -> None:
        self.failures[outcome.cell.name] = outcome.failure


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: dict[str, torch.Tensor]) -> Iterator[Comparison]:
    """Every method at two densities."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(run, "fresh_generator", small_generator)
        folder = tmp_path_factory.mktemp("whole")
        yield go(images, folder, settings(NETWORKS, densities=[0.5, 0.3]), draw=True)


class TestResults:
    def test_every_method_runs(self, whole: Comparison) -> None:
        assert whole.failed == {}
        assert whole.missing == []
        assert not whole.interrupted
        assert len(whole.cells) == 7 * 2 + 3 + 2
        assert {path.name for path in whole.files.values()} == {
            "compare.json", "compare.csv", "psnr.png", "ssim.png", "images.png", "densities.png", "masked.png"
        }  # fmt: skip
        assert whole.not_written == {}

    def test_a_seed_has_one_noise_and_every_mask_its_density(self, whole: Comparison) -> None:
        assert len({result["psnr"]["noisy"] for result in whole.cells.values()}) == 1
        for cell, result in whole.cells.items():
            if cell.density is not None:
                numel = sum(layer["count"] for layer in result["layers"])
                assert result["mask"]["kept"] == round(cell.density * numel), cell

    def test_figures_are_those_of_the_images(
        self, whole: Comparison, images: dict[str, torch.Tensor]
    ) -> None:
        cell, result = next(iter(whole.cells.items()))
        folder = whole.files["json"].parent / "cells"
        clean = images["astronaut"]
        for ending, name in (("", "end"), ("_average", "average"), ("_masked", "masked")):
            image = oes.load_image(folder / f"{cell.name}{ending}.png").pixels
            assert oes.psnr(image, clean) == pytest.approx(result["psnr"][name], abs=0.05), name
            assert ssim(image, clean) == pytest.approx(result["ssim"][name], abs=0.02), name
        assert result["curve"]["step"] == [0, 2, 4, 6, 8, 10, 12]
        assert [step for step, _ in result["ssim_curve"]] == [0, 4, 8, 12]
        assert result["psnr"]["end"] == pytest.approx(result["curve"]["psnr"][-1])
        assert result["psnr"]["peak"] == max(result["curve"]["psnr"])
        assert result["ssim"]["end"] == pytest.approx(result["ssim_curve"][-1][1])

    def test_a_cell_is_what_the_library_gives(
        self, whole: Comparison, images: dict[str, torch.Tensor]
    ) -> None:
        noisy = oes.add_noise(images["astronaut"], 0.1, 0)
        net, z = small_generator(noisy, seed=0)
        mask = oes.pruning.snip(net, z, noisy, density=0.3)
        fit = oes.train_sparse(
            net, mask, z, noisy, steps=STEPS, average=0.5, clean=images["astronaut"], record_every=2
        )
        result = whole.cells[Cell("astronaut", "snip", 0.3, 0)]
        assert result["curve"]["psnr"] == fit.history.psnr
        saved = oes.Mask.load(
            whole.files["json"].parent / "cells" / "astronaut_snip_0.3_seed0_mask.safetensors"
        )
        assert torch.equal(saved.flat, mask.flat)

    def test_the_posterior_mean_is_sgld_s_average(
        self, whole: Comparison, images: dict[str, torch.Tensor], tmp_path: Path
    ) -> None:
        result = whole.cells[Cell("astronaut", "sgld", None, 0)]
        assert result["average_of"] is None  # no sample of the posterior in so few steps
        assert result["settings"]["burn_in"] == STEPS // 2
        longer = settings(["sgld"], train_steps=60, burn_in=5)
        (result,) = go(images, tmp_path, longer).cells.values()
        assert result["average_of"] == "posterior"
        noisy = oes.add_noise(images["astronaut"], 0.1, 0)
        net, z = small_generator(noisy, seed=0)
        fit = oes.baselines.sgld(net, z, noisy, steps=60, burn_in=5)
        assert result["psnr"]["average"] == pytest.approx(oes.psnr(fit.posterior_mean, images["astronaut"]))

    def test_json_and_rows(self, whole: Comparison) -> None:
        found = json.loads(whole.files["json"].read_text())
        assert len(found["cells"]) == len(whole.cells)
        assert len(found["rows"]) == len(whole.rows) == len(whole.cells)
        assert found["failed"] == {}
        assert found["settings"]["train_steps"] == STEPS
        assert "curve" not in found["cells"][0]
        assert max(map(len, whole.table().splitlines())) <= 80

    def test_ssim_is_that_of_the_paper_s_formula_on_flat_windows(self) -> None:
        first, second = torch.full((1, 1, 8, 8), 0.4), torch.full((1, 1, 8, 8), 0.6)
        expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
        assert ssim(first, second) == pytest.approx(expected)


class TestGoingOn:
    def test_a_second_run_computes_nothing_and_says_the_same(
        self, whole: Comparison, images: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("oes_fast.comparison.workers.run_cell", lambda *_: pytest.fail("a cell was run"))
        watching = Watching()
        again = go(images, whole.files["json"].parent, whole.settings, watcher=watching)
        assert again.cells == whole.cells
        assert len(watching.done) == len(whole.cells)

    def test_more_methods_densities_and_seeds_are_added(
        self, images: dict[str, torch.Tensor], tmp_path: Path
    ) -> None:
        go(images, tmp_path, settings(["random"]))
        watching = Watching()
        more = go(
            images, tmp_path, settings(["tv", "random"], densities=[0.3, 0.5], seeds=[0, 1]), watcher=watching
        )
        assert len(more.cells) == 2 + 4
        assert [cell.name for cell in watching.done] == ["astronaut_random_0.5_seed0"]
        assert len(watching.failures) == 5

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train_steps": 20}, "--train-steps 12, this run has 20"),
            ({"average": None}, "--average 0.5, this run has off"),
            ({"sigma": 0.2}, "--sigma 0.1, this run has 0.2"),
            ({"small": "score"}, "--small keep, this run has score"),
        ],
    )
    def test_other_settings_are_refused_before_anything_is_run(
        self, change: dict[str, Any], message: str, whole: Comparison, images: dict[str, torch.Tensor]
    ) -> None:
        other = settings(["tv", "magnitude"], **change)
        with pytest.raises(oes.InputError, match=message) as caught:
            go(images, whole.files["json"].parent, other)
        assert "another folder" in str(caught.value)

    def test_another_image_of_that_name_is_refused(
        self, whole: Comparison, images: dict[str, torch.Tensor]
    ) -> None:
        other = {"astronaut": images["astronaut"].flip(-1)}
        with pytest.raises(oes.InputError, match="on another image of that name"):
            go(other, whole.files["json"].parent, settings(["magnitude"]))

    def test_a_file_that_is_none_is_refused(self, images: dict[str, torch.Tensor], tmp_path: Path) -> None:
        (tmp_path / "cells").mkdir()
        for content in ("{", "[]", '{"format": "x"}'):
            (tmp_path / "cells" / "astronaut_tv_seed0.json").write_text(content)
            with pytest.raises(oes.InputError, match="expected the result of a cell"):
                go(images, tmp_path, settings(["tv"]))

    @pytest.mark.parametrize(
        ("method", "phase", "step"),
        [("oes", "search", 2), ("oes", "train", 5), ("sgld", "train", 5), ("imp", "imp round 2 of 3", 1)],
    )
    def test_a_stopped_run_goes_on_and_ends_the_same(
        self,
        method: str,
        phase: str,
        step: int,
        images: dict[str, torch.Tensor],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(run, "SHOWN_SECONDS", 0.0)
        wanted = settings([method], imp_densities=[0.9, 0.7, 0.5], rewind_step=1)
        watching = Watching(lambda s: (s.phase, s.step) == (phase, step))
        stopped = go(images, tmp_path / "a", wanted, watcher=watching, stopping=lambda: watching.stopped)
        assert stopped.interrupted
        assert [cell.method for cell in stopped.missing] == [method]
        ended = go(images, tmp_path / "a", wanted)
        undisturbed = go(images, tmp_path / "b", wanted)
        (one,), (two,) = ended.cells.values(), undisturbed.cells.values()
        for name in ("psnr", "ssim", "curve", "ssim_curve"):
            assert one[name] == two[name], name
        assert not list((tmp_path / "a").glob("cells/*.ckpt"))
        assert not list((tmp_path / "a").glob("cells/*.rounds"))

    def test_a_mask_is_kept_when_the_training_is_killed(
        self, images: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(run, "train_sparse", killed)
            assert go(images, tmp_path, settings(["oes"])).interrupted
        monkeypatch.setitem(run.METHODS, "oes", lambda *_, **__: pytest.fail("searched again"))
        (result,) = go(images, tmp_path, settings(["oes"])).cells.values()
        assert result["seconds"]["mask"] > 0

    def test_rounds_of_imp_serve_all_densities(
        self, images: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def counted(*arguments: Any, **options: Any) -> Any:
            calls.append(options["densities"])
            return rounds(*arguments, **options)

        rounds = run.imp_rounds
        monkeypatch.setattr(run, "imp_rounds", counted)
        wanted = settings(["imp"], densities=[0.3, 0.5], imp_densities=[0.7, 0.5, 0.3], rewind_step=2)
        found = go(images, tmp_path, wanted)
        assert calls == [[0.7, 0.5, 0.3]]
        masks = [
            oes.Mask.load(tmp_path / "cells" / f"astronaut_imp_{density}_seed0_mask.safetensors").flat
            for density in (0.3, 0.5)
        ]
        assert bool((masks[0] <= masks[1]).all())
        seconds = {result["seconds"]["mask"] for result in found.cells.values()}
        assert len(seconds) == 1

    def test_a_ticket_starts_from_the_rewound_weights(
        self, images: dict[str, torch.Tensor], tmp_path: Path
    ) -> None:
        clean = images["astronaut"]
        found = go(images, tmp_path, settings(["imp"], imp_densities=[0.5], rewind_step=2))
        (result,) = found.cells.values()
        noisy = oes.add_noise(clean, 0.1, 0)
        net, z = small_generator(noisy, seed=0)
        rounds = oes.pruning.imp_rounds(
            net, z, noisy, densities=[0.5], steps=4, rewind_step=2, clean=clean, record_every=2
        )
        fit = oes.train_sparse(
            rounds.net, rounds.mask, z, noisy, steps=STEPS, average=0.5, clean=clean, record_every=2
        )
        assert result["curve"]["psnr"] == fit.history.psnr


class TestFailures:
    def test_a_cell_that_fails_is_reported_and_tried_again(
        self, images: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> torch.Tensor:
            raise RuntimeError("no\nmemory")

        watching = Watching()
        with monkeypatch.context() as patch:
            patch.setitem(run.CLASSICAL, "nlm", broken)
            found = go(images, tmp_path, settings(["nlm", "tv"]), watcher=watching)
        assert {cell.method: why for cell, why in found.failed.items()} == {"nlm": "RuntimeError: no memory"}
        assert [cell.method for cell in found.cells] == ["tv"]
        assert watching.failures["astronaut_nlm_seed0"] == "RuntimeError: no memory"
        assert json.loads(found.files["json"].read_text())["failed"] == {
            "astronaut_nlm_seed0": "RuntimeError: no memory"
        }
        again = go(images, tmp_path, settings(["nlm", "tv"]), draw=True)
        assert len(again.cells) == 2
        assert again.files.keys() == {"csv", "json", "psnr", "ssim", "images"}  # there are no masks to draw

    def test_a_density_below_what_small_parameters_take_fails_alone(
        self, images: dict[str, torch.Tensor], tmp_path: Path
    ) -> None:
        found = go(images, tmp_path, settings(["magnitude"], densities=[0.001, 0.5]))
        (why,) = found.failed.values()
        assert "density: expected" in why
        assert len(found.cells) == 1

    def test_two_runs_in_one_folder(self, images: dict[str, torch.Tensor], tmp_path: Path) -> None:
        locks = RunLocks([(tmp_path / "compare.json").resolve()])
        try:
            with pytest.raises(oes.InputError, match="is writing it; wait"):
                go(images, tmp_path, settings(["tv"]))
        finally:
            locks.release()

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"images": {}}, "images"),
            ({"images": {"a/b": torch.rand(1, 3, 32, 32)}}, "images"),
            ({"images": {"a": torch.rand(1, 2, 32, 32)}}, "a"),
            ({"images": {"a": torch.rand(1, 3, 32, 32) + 1}}, "a"),
            ({"images": {"a": torch.rand(1, 3, 32, 32).double()}}, "a"),
            ({"settings": None}, "settings"),
            ({"jobs": 0}, "jobs"),
            ({"threads": 0}, "threads"),
        ],
    )
    def test_refusals_name_the_argument(self, change: dict[str, Any], name: str, tmp_path: Path) -> None:
        arguments = {"images": {"a": torch.rand(1, 3, 32, 32)}, "settings": settings(["tv"])} | change
        with pytest.raises(oes.InputError, match=f"^{name}: expected"):
            compare(arguments.pop("images"), tmp_path, arguments.pop("settings"), **arguments)

    def test_the_folder_cannot_be_made(self, images: dict[str, torch.Tensor], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(oes.OutputError, match="cannot make the folder"):
            go(images, tmp_path / "file", settings(["tv"]))


def test_processes_give_what_one_gives(images: dict[str, torch.Tensor], tmp_path: Path) -> None:
    wanted = settings(["nlm", "tv"], seeds=[0, 1])
    watching = Watching()
    several = go(images, tmp_path / "several", wanted, jobs=2, watcher=watching)
    one = go(images, tmp_path / "one", wanted)
    assert len(watching.failures) == 4
    assert not any(watching.failures.values())
    for cell, result in one.cells.items():
        assert result["psnr"] == several.cells[cell]["psnr"]
    assert np.isfinite(one.rows[0].end.mean)
