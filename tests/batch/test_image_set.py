"""Sets of images end to end on a small network: equal to single runs, nothing done twice, nothing mixed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from cli_runs import run
from image_sets import (
    SMALL,
    SMALL_OPTIONS,
    STEPS,
    Watching,
    files_in,
    go,
    results_in,
    settings,
    write_images,
    write_mask,
)

import oes_fast as oes
from oes_fast.batch import Batch, Outcome, Step, restoring
from oes_fast.batch import masks as set_masks
from oes_fast.io.locks import RunLocks

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.OESWarning")
PLAIN = ["--preset", "paper", "--no-verify", "--no-plots", "--quiet"]  # the library's defaults
TRAINING = ["--average", STEPS["average"], "--backend", "reference", *PLAIN]
TRANSFER = ["--steps", STEPS["train_steps"], *TRAINING]
DENOISE = ["--train-steps", STEPS["train_steps"], "--search-steps", STEPS["search_steps"]]
DENOISE += ["--density", STEPS["density"], *SMALL_OPTIONS, *TRAINING]
MASK = "batch_mask_rgb.safetensors"
WHOLE = {"batch.csv", "batch.json", "batch.sqlite", MASK}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several kinds, and what is none."""
    folder = write_images(
        tmp_path_factory.mktemp("images"),
        *("a.png", "b c.jpg", "sub ü/d.png", "sub ü/grey.png", "sub ü/grey2.png"),
    )
    levels = np.random.default_rng(9).integers(0, 2**16, (32, 20, 3), dtype=np.uint16)
    tifffile.imwrite(folder / "e.tif", levels, photometric="rgb")
    (folder / "corrupt.png").write_bytes((folder / "a.png").read_bytes()[:90])
    (folder / "notes.txt").write_text("not an image")
    write_images(folder, "tiny.png", side=8)
    return folder


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """The set restored into a folder within its own."""
    return go(images, images / "restored", settings=settings(sigma=0.1), recursive=True)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """A mask for RGB images, found with seed 5."""
    return write_mask(tmp_path / "mask.safetensors")


class TestResults:
    def test_good_images_are_restored_and_bad_ones_told_of(self, whole: Batch) -> None:
        assert whole.counts == {"done": 6, "failed": 2, "waiting": 0}
        assert whole.left_out == 1
        assert [name for name, _ in whole.failures] == ["corrupt", "tiny"]
        assert "expected at least 16 x 16 pixels, got 12 x 8" in whole.failures[1][1]
        names = ("a", "b c", "e", "sub ü/d", "sub ü/grey", "sub ü/grey2")
        restored = [f"{name}.{suffix}" for name in names for suffix in ("png", "json")]
        assert files_in(whole.folder) == {*restored, *WHOLE, "batch_mask_grey.safetensors"}
        assert oes.load_image(whole.folder / "e.png").bits == 16
        assert oes.load_image(whole.folder / "sub ü" / "grey.png").pixels.shape == (1, 1, 24, 28)

    @pytest.mark.parametrize(
        ("name", "colour"), [("a.png", "rgb"), ("e.tif", "rgb"), ("sub ü/grey2.png", "grey")]
    )
    def test_an_image_is_that_of_transfer(
        self, name: str, colour: str, whole: Batch, images: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        mask = whole.folder / f"batch_mask_{colour}.safetensors"
        assert run("transfer", mask, images / name, "-o", out, "--sigma", 0.1, *TRANSFER) == 0
        assert out.read_bytes() == (whole.folder / name).with_suffix(".png").read_bytes()
        record = json.loads((whole.folder / name).with_suffix(".json").read_text())
        single = json.loads(out.with_suffix(".json").read_text())
        assert record["figures"]["psnr"] == single["psnr"]["restored"]
        assert record["figures"]["psnr_noisy"] == single["psnr"]["noisy"]
        assert record["seeds"] == single["seeds"] == {"seed": 1, "noise": 1}

    def test_the_mask_is_that_of_a_search_on_the_first(
        self, whole: Batch, images: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "mask.safetensors"
        args = ["--steps", STEPS["search_steps"], "--density", STEPS["density"], "--backend", "reference"]
        assert run("search", images / "a.png", "-o", out, "--sigma", 0.1, *args, *SMALL_OPTIONS, *PLAIN) == 0
        found = oes.Mask.load(whole.folder / "batch_mask_rgb.safetensors")
        assert torch.equal(found.flat, oes.Mask.load(out).flat)
        assert found.settings["searched_on"] == ["a"]
        grey = oes.Mask.load(whole.folder / "batch_mask_grey.safetensors")
        assert grey.settings["searched_on"] == ["sub ü/grey"]

    def test_with_each_an_image_is_that_of_denoise(self, images: Path, tmp_path: Path) -> None:
        done = go(images / "a.png", tmp_path / "each", settings=settings(search="each", seed=3))
        out = tmp_path / "out.png"
        assert run("denoise", images / "a.png", "-o", out, "--seed", 3, *DENOISE) == 0
        assert files_in(done.folder) == {"a.png", "a.json", "a_mask.safetensors", *WHOLE} - {MASK}
        assert out.read_bytes() == (done.folder / "a.png").read_bytes()
        masks = [
            oes.Mask.load(path)
            for path in (tmp_path / "out_mask.safetensors", done.folder / "a_mask.safetensors")
        ]
        assert torch.equal(masks[0].flat, masks[1].flat)
        assert masks[0].settings == masks[1].settings

    @pytest.mark.parametrize(("seed", "used"), [(None, 6), (2, 2)])
    def test_with_a_mask_an_image_is_that_of_transfer(
        self, seed: int | None, used: int, mask: Path, images: Path, tmp_path: Path
    ) -> None:
        done = go([images / "b c.jpg"], tmp_path / "set", settings=settings(seed=seed), masks=[mask])
        out = tmp_path / "out.png"
        options = [] if seed is None else ["--seed", seed]
        assert run("transfer", mask, images / "b c.jpg", "-o", out, *options, *TRANSFER) == 0
        assert out.read_bytes() == (done.folder / "b c.png").read_bytes()
        assert json.loads((done.folder / "b c.json").read_text())["seeds"] == {"seed": used, "noise": None}

    def test_a_mask_of_several_images_is_one_search_on_their_middles(
        self, images: Path, tmp_path: Path
    ) -> None:
        done = go(images, tmp_path / "set", settings=settings(search=3))
        pixels = [oes.load_image(images / name).pixels for name in ("a.png", "b c.jpg", "e.tif")]
        noisy = torch.cat([pixels[0][..., 4:24], pixels[1][..., 4:24], pixels[2][:, :, 4:28]])
        net, _ = oes.fresh_generator(noisy[:1], options=SMALL, seed=0)
        z = torch.cat([oes.fresh_generator(noisy[:1], options=SMALL, seed=k)[1] for k in range(3)])
        found = oes.search_mask(net, z, noisy, density=0.5, steps=2, backend="reference", seed=0)
        kept = oes.Mask.load(done.folder / MASK)
        assert torch.equal(kept.flat, found.mask.flat)
        assert kept.settings["searched_on"] == ["a", "b c", "e"]

    @pytest.mark.parametrize("search", ["first", "each"])
    def test_several_runs_are_those_of_one_image(self, search: str, images: Path, tmp_path: Path) -> None:
        wanted = settings(search=search, runs=3, sigma=0.1)
        done = go(images / "a.png", tmp_path / "set", settings=wanted)
        out, options = tmp_path / "out.png", ["--runs", 3, "--sigma", 0.1]
        if search == "each":
            assert run("denoise", images / "a.png", "-o", out, *options, *DENOISE) == 0
        else:
            assert run("transfer", done.folder / MASK, images / "a.png", "-o", out, *options, *TRANSFER) == 0
        for ending in (".png", "_spread.npy"):
            single, ours = (
                folder / f"{name}{ending}" for folder, name in ((tmp_path, "out"), (done.folder, "a"))
            )
            assert single.read_bytes() == ours.read_bytes()
        record, single = (
            json.loads(path.read_text()) for path in (done.folder / "a.json", out.with_suffix(".json"))
        )
        assert record["figures"]["psnr"] == single["psnr"]["restored"]
        assert record["figures"]["spread"] == pytest.approx(single["spread"]["mean"])
        assert [each["seed"] for each in record["runs"]] == [each["seed"] for each in single["runs"]]
        assert {path.suffix for path in done.folder.glob("a_spread.*")} == {".png", ".npy"}

    def test_clean_images_are_measured_against(self, mask: Path, images: Path, tmp_path: Path) -> None:
        write_images(tmp_path / "clean", "a.png", seed=4)
        done = go(images, tmp_path / "set", masks=[mask], clean=tmp_path / "clean")
        assert done.counts["done"] == 1
        assert any("b c.jpg: cannot read the image" in why for _, why in done.failures)
        clean, noisy = (oes.load_image(f / "a.png").pixels for f in (tmp_path / "clean", images))
        assert done.means["psnr_noisy"] == oes.psnr(noisy, clean)

    def test_summary(self, whole: Batch) -> None:
        lines = list(whole.lines())
        assert [line["state"] for line in lines] == ["done"] * 2 + ["failed"] + ["done"] * 4 + ["failed"]
        assert {line["width"] for line in lines if line["name"] in ("a", "e")} == {"28", "20"}
        found = json.loads(whole.files["json"].read_text())
        assert found["counts"] == whole.counts
        assert found["settings"]["train_steps"] == STEPS["train_steps"]
        assert found["means"]["psnr"] == pytest.approx(
            np.mean([float(line["psnr"]) for line in lines if line["psnr"]])
        )

    @pytest.mark.parametrize(("name", "bits", "suffix"), [("tif", 16, ".tif"), ("jpg", None, ".jpg")])
    def test_other_formats(
        self, name: str, bits: int | None, suffix: str, mask: Path, images: Path, tmp_path: Path
    ) -> None:
        done = go(images / "a.png", tmp_path / "set", settings=settings(format=name, bits=bits), masks=[mask])
        assert oes.load_image(done.folder / f"a{suffix}").bits == (bits or 8)


class TestMasks:
    def test_images_that_a_given_mask_is_not_for(self, mask: Path, images: Path, tmp_path: Path) -> None:
        done = go(images / "sub ü", tmp_path / "set", masks=[mask])
        assert done.counts == {"done": 1, "failed": 2, "waiting": 0}
        assert "expected RGB images, which the masks are for, got a grey one" in done.failures[0][1]

    def test_one_for_each_number_of_channels(self, whole: Batch, images: Path, tmp_path: Path) -> None:
        both = [whole.folder / f"batch_mask_{colour}.safetensors" for colour in ("rgb", "grey")]
        done = go(images / "sub ü", tmp_path / "set", settings=settings(sigma=0.1), masks=both)
        assert done.counts["done"] == 3
        for name in ("d", "grey", "grey2"):
            assert (done.folder / f"{name}.png").read_bytes() == (
                whole.folder / "sub ü" / f"{name}.png"
            ).read_bytes()
        with pytest.raises(oes.InputError, match="expected one mask for grey images, got two"):
            go(images, tmp_path / "set", masks=[*both, both[1]])

    def test_published_ones(self, mask: Path, images: Path, tmp_path: Path) -> None:
        flat = oes.Mask.load(mask).flat.numpy()
        np.savez(tmp_path / "mask.npz", bits=np.packbits(flat), count=flat.size)
        done = go(
            images / "a.png", tmp_path / "set", settings=settings(seed=6), masks=[tmp_path / "mask.npz"]
        )
        ours = go(images / "a.png", tmp_path / "ours", masks=[mask])
        assert (done.folder / "a.png").read_bytes() == (ours.folder / "a.png").read_bytes()

    def test_of_other_networks(self, images: Path, tmp_path: Path) -> None:
        oes.Mask.from_flat(torch.nn.Conv2d(2, 3, 3), [True] * 57).save(tmp_path / "m.safetensors")
        with pytest.raises(oes.MaskMismatchError, match="expected a mask of skip"):
            go(images, tmp_path / "set", masks=[tmp_path / "m.safetensors"])

    def test_a_search_that_fails_ends_the_set(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise oes.OESError("search: the loss is no longer finite")

        monkeypatch.setattr(set_masks, "search_mask", broken)
        with pytest.raises(oes.OESError, match="mask for RGB images: search: the loss is no longer finite"):
            go(images, tmp_path / "set")

    def test_one_that_was_put_there_is_refused(self, mask: Path, images: Path, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        shutil.copy(mask, tmp_path / "set" / MASK)
        with pytest.raises(oes.InputError, match="expected the mask of this set, got another"):
            go(images, tmp_path / "set")


class TestGoingOn:
    def test_a_second_call_computes_nothing(
        self, whole: Batch, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("oes_fast.batch.local.run_job", lambda *_: pytest.fail("a job was run"))
        watching = Watching()
        again = go(images, whole.folder, settings=settings(sigma=0.1), recursive=True, watcher=watching)
        assert (again.counts, again.means) == (whole.counts, whole.means)
        assert (watching.count, watching.before) == (8, 8)

    def test_a_lost_manifest_is_made_again(
        self, whole: Batch, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(whole.folder, tmp_path / "set")
        (tmp_path / "set" / "batch.sqlite").unlink()
        monkeypatch.setattr(restoring, "train_sparse", lambda *_, **__: pytest.fail("trained again"))
        again = go(images, tmp_path / "set", settings=settings(sigma=0.1), recursive=True)
        assert (again.counts, again.means) == (whole.counts, whole.means)

    def test_what_was_added_changed_or_removed_is_restored(self, mask: Path, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
        go(source, tmp_path / "set", masks=[mask])
        before = results_in(tmp_path / "set")
        write_images(source, "b.png", "e.png", seed=7)
        (source / "a.png").touch()  # the same image: its record says so
        (tmp_path / "set" / "c.png").unlink()
        (tmp_path / "set" / "d.json").unlink()
        (tmp_path / "set" / "d.png").unlink()
        watching = Watching()
        done = go(source, tmp_path / "set", masks=[mask], watcher=watching)
        assert watching.states == dict.fromkeys("abcde", "done")
        after = results_in(tmp_path / "set")
        assert {name for name in before if before[name] != after[name]} == {"b.png"}
        assert done.counts["done"] == 5

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train_steps": 9}, "--train-steps 4, this run has 9"),
            ({"average": None}, "--average 0.5, this run has off"),
            ({"sigma": None}, "--sigma 0.1, this run has off"),
            ({"search": 2}, "--search first, this run has 2"),
            ({"model_options": {}}, "--model-option "),
        ],
    )
    def test_other_settings_are_refused_by_name(
        self, change: dict[str, Any], message: str, whole: Batch, images: Path
    ) -> None:
        with pytest.raises(oes.InputError, match=message) as caught:
            go(images, whole.folder, settings=settings(**({"sigma": 0.1} | change)), recursive=True)
        assert "give this one another folder (-o)" in str(caught.value)

    def test_another_mask_is_refused(self, mask: Path, whole: Batch, images: Path) -> None:
        with pytest.raises(oes.InputError, match="the set was restored without a mask"):
            go(images, whole.folder, settings=settings(sigma=0.1), masks=[mask])

    def test_settings_may_change_while_there_is_nothing(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        with pytest.raises(oes.InputError, match="sources: expected one image at least, got none"):
            go(tmp_path / "none", tmp_path / "set")
        done = go(images / "corrupt.png", tmp_path / "set", settings=settings(train_steps=2))
        assert done.counts["failed"] == 1
        assert go(images / "a.png", tmp_path / "set", settings=settings()).counts["done"] == 1

    def test_two_processes_in_one_folder(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        locks = RunLocks([(tmp_path / "set" / "batch.sqlite").resolve()])
        try:
            with pytest.raises(oes.InputError, match="is writing it; wait"):
                go(images, tmp_path / "set")
        finally:
            locks.release()

    @pytest.mark.parametrize("name", ["a.png", "a.json"])
    def test_a_file_of_somebody_s_is_never_written_over(
        self, name: str, mask: Path, images: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / name).write_text("mine")
        done = go(images / "a.png", tmp_path / "set", masks=[mask])
        assert "a file of that name is there already" in done.failures[0][1]
        assert (tmp_path / "set" / name).read_text() == "mine"


class Killed(BaseException):
    """In the place of a kill: nothing catches it."""


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise before the file of that number takes its name, whatever file."""
    replace = os.replace
    left = [number]

    def counted(*names: Any, **more: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        replace(*names, **more)

    monkeypatch.setattr(os, "replace", counted)


class TestInterrupted:
    @pytest.mark.parametrize(("search", "first"), [("first", 1), ("each", 3)])
    def test_killed_again_and_again_it_ends_the_same(
        self, first: int, search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = write_images(tmp_path / "in", "a.png", "b.png", "grey.png")
        wanted = settings(search=search)
        undisturbed = go(source, tmp_path / "whole", settings=wanted)
        kills = 0
        while True:
            with monkeypatch.context() as patch:
                # More files are written in each call than in the one before, so that all come to their names.
                killed_at(first + kills, patch)
                try:
                    done = go(source, tmp_path / "set", settings=wanted, checkpoint_seconds=0.0)
                    break
                except Killed:
                    kills += 1
        assert kills > 3
        assert done.counts == undisturbed.counts == {"done": 3, "failed": 0, "waiting": 0}
        assert _images(tmp_path / "set") == _images(tmp_path / "whole")
        assert files_in(tmp_path / "set") == files_in(tmp_path / "whole")

    @pytest.mark.parametrize(("phase", "step"), [("search", 0), ("train", 2)])
    def test_stopped_it_goes_on_from_its_checkpoint(
        self, phase: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(restoring, "_SHOWN_SECONDS", 0.0)
        source = write_images(tmp_path / "in", "a.png", "b.png")
        go(source, tmp_path / "whole")
        watching = Watching(lambda s: isinstance(s, Step) and (s.phase, s.step) == (phase, step))
        stopped = go(source, tmp_path / "set", watcher=watching)
        assert stopped.interrupted
        assert stopped.counts == {"done": 0, "failed": 0, "waiting": 2}
        watching = Watching()
        ended = go(source, tmp_path / "set", watcher=watching)
        assert watching.steps[0].step == step + 1
        assert not ended.interrupted
        assert _images(tmp_path / "set") == _images(tmp_path / "whole")
        assert files_in(tmp_path / "set") == files_in(tmp_path / "whole")

    def test_several_runs_go_on_from_their_checkpoints(
        self, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(restoring, "_SHOWN_SECONDS", 0.0)
        source = write_images(tmp_path / "in", "a.png")
        more = {"settings": settings(runs=2), "masks": [mask]}
        go(source, tmp_path / "whole", **more)
        stopped = Watching(lambda s: getattr(s, "step", 0) == 2)
        assert go(source, tmp_path / "set", watcher=stopped, **more).interrupted
        watching = Watching()
        go(source, tmp_path / "set", watcher=watching, **more)
        assert watching.steps[0].step > 0
        assert watching.steps[-1].steps == 2 * STEPS["train_steps"]
        assert results_in(tmp_path / "set") == results_in(tmp_path / "whole")
        assert files_in(tmp_path / "set") == files_in(tmp_path / "whole")

    def test_stopped_between_images(self, mask: Path, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "a.png", "b.png", "c.png")
        stopped = go(
            source, tmp_path / "set", masks=[mask], watcher=Watching(lambda m: isinstance(m, Outcome))
        )
        assert stopped.interrupted
        assert stopped.counts == {"done": 1, "failed": 0, "waiting": 2}

    def test_a_checkpoint_of_another_image_is_begun_again(
        self, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(restoring, "_SHOWN_SECONDS", 0.0)
        source = write_images(tmp_path / "in", "a.png")
        go(source, tmp_path / "set", masks=[mask], watcher=Watching(lambda s: getattr(s, "step", 0) == 2))
        write_images(source, "a.png", seed=3)
        go(source, tmp_path / "set", masks=[mask])
        go(source, tmp_path / "whole", masks=[mask])
        assert results_in(tmp_path / "set") == results_in(tmp_path / "whole")
        record = json.loads((tmp_path / "set" / "a.json").read_text())
        assert "another noisy image" in record["warnings"][0]


class TestFailures:
    def test_are_tried_again_when_asked_or_when_the_file_changes(self, mask: Path, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "a.png", "b.png")
        good = (source / "a.png").read_bytes()
        (source / "a.png").write_bytes(good[:80])
        assert go(source, tmp_path / "set", masks=[mask]).counts["failed"] == 1
        for more, ran in (({}, {}), ({"retry_failed": True}, {"a": "failed"})):
            watching = Watching()
            go(source, tmp_path / "set", masks=[mask], watcher=watching, **more)
            assert watching.states == ran
        (source / "a.png").write_bytes(good)
        assert go(source, tmp_path / "set", masks=[mask]).counts == {"done": 2, "failed": 0, "waiting": 0}

    def test_a_fault_of_ours_is_the_image_s_alone(
        self, mask: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*arguments: Any, **options: Any) -> Any:
            if not calls:
                calls.append(1)
                raise RuntimeError("no\nmemory")
            return train(*arguments, **options)

        calls: list[int] = []
        train = restoring.train_sparse
        monkeypatch.setattr(restoring, "train_sparse", broken)
        done = go(images, tmp_path / "set", masks=[mask])
        assert ("a", "RuntimeError: no memory") in done.failures
        assert done.counts["done"] == 2

    def test_a_full_disk_ends_the_set_and_no_image_has_failed(
        self, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = write_images(tmp_path / "in", "a.png", "b.png", "c.png")

        def full(path: Path, *_: Any, **__: Any) -> None:
            raise oes.OutputError(errno.ENOSPC, "No space left on device")

        class Filling(Watching):
            def ended(self, outcome: Outcome) -> None:
                patch.setattr(restoring, "save_image", full)

        told = "No space left on device; 1 of 3"
        with monkeypatch.context() as patch, pytest.raises(oes.OutputError, match=told):
            go(source, tmp_path / "set", masks=[mask], watcher=Filling())
        done = go(source, tmp_path / "set", masks=[mask])
        assert done.counts == {"done": 3, "failed": 0, "waiting": 0}
        assert not (tmp_path / "set" / ".oes-unfinished").exists()

    def test_a_folder_that_cannot_be_made(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(oes.OutputError, match="cannot make the folder"):
            go(images, tmp_path / "file")

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root"
    )
    def test_a_folder_that_cannot_be_written(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir(mode=0o555)
        with pytest.raises(oes.OutputError, match="no permission"):
            go(images, tmp_path / "set")

    def test_two_images_of_one_name(self, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "x.png", "x.jpg")
        with pytest.raises(oes.InputError, match=r"x\.(png|jpg): .* but x is also that of .*x\.(png|jpg)"):
            go(source, tmp_path / "set")

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"workers": 0}, "workers"),
            ({"threads": 0}, "threads"),
            ({"masks": "mask.safetensors"}, "masks"),
            ({"verify": 1}, "verify"),
            ({"checkpoint_seconds": -1}, "checkpoint_seconds"),
            ({"settings": "quick"}, "settings"),
        ],
    )
    def test_refusals_name_the_argument(self, change: dict[str, Any], name: str, tmp_path: Path) -> None:
        with pytest.raises(oes.InputError, match=f"^{name}: expected"):
            go(tmp_path, tmp_path / "set", **change)

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"search": "all"}, "search"),
            ({"search": 0}, "search"),
            ({"density": 1.0}, "density"),
            ({"train_steps": 0}, "train_steps"),
            ({"runs": 0}, "runs"),
            ({"kl": -1.0}, "kl"),
            ({"seed": -1}, "seed"),
            ({"size": 8}, "size"),
            ({"format": "gif"}, "format"),
            ({"bits": 12}, "bits"),
            ({"format": "jpg", "bits": 16}, "bits"),
            ({"schedule": "step"}, "schedule"),
            ({"model": "skip_1d"}, "model"),
            ({"model_options": {"none": 1}}, "model_options"),
            ({"precision": "half"}, "precision"),
        ],
    )
    def test_refusals_name_the_setting(self, change: dict[str, Any], name: str) -> None:
        with pytest.raises(oes.InputError, match=f"^{name}: "):
            settings(**change)


def _images(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in results_in(folder).items() if name.endswith(".png")}
