"""Sets of images that change from call to call: nothing is lost or written over, errors are in words."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_sets import Watching, files_in, go, results_in, settings, write_images, write_mask

import oes_fast as oes
from oes_fast.batch import Entry, Job, Manifest, Options, Outcome, local, restoring
from oes_fast.batch import run as batch_run
from oes_fast.io import locks

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.OESWarning")


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """A mask for RGB images."""
    return write_mask(tmp_path / "mask.safetensors")


class TestNames:
    def test_a_spread_never_takes_the_name_of_another_image(self, mask: Path, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "x.png", "x_spread.png")
        with pytest.raises(
            oes.InputError, match=r"x_spread\.png: expected images .* but .*x\.png has a result"
        ):
            go(source, tmp_path / "set", masks=[mask], settings=settings(runs=2))
        several = settings(runs=2, format="tif")
        assert go(source, tmp_path / "tif", masks=[mask], settings=several).counts["done"] == 2
        assert go(source, tmp_path / "one", masks=[mask]).counts["done"] == 2

    def test_nor_that_of_an_image_of_an_earlier_call(self, mask: Path, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "x.png", "x_spread.png")
        more = {"masks": [mask], "settings": settings(runs=2)}
        done = go(source / "x_spread.png", tmp_path / "set", **more)
        before = (done.folder / "x_spread.png").read_bytes()
        with pytest.raises(oes.InputError, match="has a result of that name"):
            go(source / "x.png", tmp_path / "set", **more)
        assert (done.folder / "x_spread.png").read_bytes() == before

    @pytest.mark.parametrize("name", ["a_spread.png", "a_spread.npy", "a_mask.safetensors"])
    def test_further_results_write_over_nothing(self, name: str, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "a.png")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / name).write_text("mine")
        done = go(source, tmp_path / "set", settings=settings(search="each", runs=2))
        assert f"{name}: a file of that name is there already" in done.failures[0][1]
        assert (tmp_path / "set" / name).read_text() == "mine"

    def test_what_is_to_be_removed_is_named_whole(self, mask: Path, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "a.png")
        done = go(source, tmp_path / "set", masks=[mask])
        (done.folder / "batch.sqlite").unlink()
        wanted = settings(train_steps=3)
        failed = go(source, tmp_path / "set", masks=[mask], settings=wanted)
        assert "a.json: the image was restored" in failed.failures[0][1]
        assert failed.failures[0][1].endswith("remove it and a.png to restore it anew")
        (done.folder / "a.json").unlink()
        (done.folder / "a.png").unlink()
        again = go(source, tmp_path / "set", masks=[mask], settings=wanted, retry_failed=True)
        assert again.counts["done"] == 1

    def test_a_spread_that_there_is_none_of_any_more_goes(
        self, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = write_images(tmp_path / "in", "a.png")
        more = {"masks": [mask], "settings": settings(runs=2)}
        done = go(source, tmp_path / "set", **more)
        assert {"a_spread.png", "a_spread.npy"} <= files_in(done.folder)
        write_images(source, "a.png", seed=3)
        mean = restoring.mean_of_runs
        monkeypatch.setattr(
            restoring, "mean_of_runs", lambda fits: replace(mean(fits), spread=None, used=(0,))
        )
        go(source, tmp_path / "set", **more)
        assert not {"a_spread.png", "a_spread.npy"} & files_in(done.folder)
        assert json.loads((done.folder / "a.json").read_text())["figures"]["spread"] is None


class TestCleanImages:
    def test_those_that_come_later_or_change_are_measured_against(self, mask: Path, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "a.png", "b.png")
        first = go(source, tmp_path / "set", masks=[mask])
        assert first.means["psnr"] is None
        restored = results_in(first.folder)
        clean = write_images(tmp_path / "clean", "a.png", "b.png", seed=5)
        measured = go(source, tmp_path / "set", masks=[mask], clean=clean)
        wanted = [
            oes.psnr(oes.load_image(first.folder / name).pixels, oes.load_image(clean / name).pixels)
            for name in ("a.png", "b.png")
        ]
        assert measured.means["psnr"] == pytest.approx(sum(wanted) / 2, abs=0.1)  # of images of 8 bits
        write_images(clean, "a.png", seed=9)
        watching = Watching()
        again = go(source, tmp_path / "set", masks=[mask], clean=clean, watcher=watching)
        assert (watching.count, watching.before) == (2, 1)
        assert again.means["psnr"] != measured.means["psnr"]
        assert results_in(first.folder) == restored

    def test_without_them_nothing_is_computed_again(
        self, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = write_images(tmp_path / "in", "a.png")
        clean = write_images(tmp_path / "clean", "a.png", seed=5)
        measured = go(source, tmp_path / "set", masks=[mask], clean=clean)
        monkeypatch.setattr(restoring, "train_sparse", lambda *_, **__: pytest.fail("trained again"))
        for clean_again in (None, clean):
            again = go(source, tmp_path / "set", masks=[mask], clean=clean_again)
            assert (again.counts["done"], again.means) == (1, measured.means)


class TestKept:
    def test_results_of_an_image_that_is_gone_stay(self, mask: Path, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "a.png", "b.png")
        (tmp_path / "list.txt").write_text(f"{source}/a.png\n{source}/b.png\n")
        done = go(tmp_path / "list.txt", tmp_path / "set", masks=[mask])
        (source / "a.png").unlink()
        watching = Watching()
        again = go(tmp_path / "list.txt", tmp_path / "set", masks=[mask], watcher=watching)
        assert (again.counts, watching.states) == (done.counts, {})
        assert again.means["seconds"] == done.means["seconds"]

    def test_checkpoints_of_other_images_stay(self, mask: Path, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "a.png", "b.png")
        half = Watching(lambda s: getattr(s, "step", 0) == 0)
        assert go(source / "a.png", tmp_path / "set", masks=[mask], watcher=half).interrupted
        assert go(source / "b.png", tmp_path / "set", masks=[mask]).counts["waiting"] == 0
        assert list((tmp_path / "set" / ".oes-unfinished").rglob("train.ckpt"))
        assert go(source, tmp_path / "set", masks=[mask]).counts["done"] == 2
        assert not (tmp_path / "set" / ".oes-unfinished").exists()

    @pytest.mark.parametrize(
        ("error", "kept"),
        [
            (oes.InputError("mask: cannot be read"), True),
            (oes.BackendError("cuda: none"), True),
            (oes.OESError("the loss is no longer finite"), False),
        ],
    )
    def test_checkpoints_stay_unless_the_training_itself_fails(
        self, error: oes.OESError, kept: bool, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any, checkpoint: Path, **__: Any) -> None:
            checkpoint.write_text("hours")
            raise error

        monkeypatch.setattr(restoring, "train_sparse", broken)
        source = write_images(tmp_path / "in", "a.png")
        assert go(source, tmp_path / "set", masks=[mask]).counts["failed"] == 1
        assert bool(list((tmp_path / "set").rglob("train.ckpt"))) == kept

    def test_a_file_server_that_lost_a_file_fails_no_image(
        self, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lost(*_: Any) -> None:
            raise OSError(errno.ESTALE, "Stale file handle")

        source = write_images(tmp_path / "in", "a.png")
        with monkeypatch.context() as patch:
            patch.setattr(batch_run, "open", lost, raising=False)
            with pytest.raises(oes.OutputError, match="Stale file handle; 0 of 1"):
                go(source, tmp_path / "set", masks=[mask])
        assert go(source, tmp_path / "set", masks=[mask]).counts["done"] == 1


class TestEngines:
    def test_an_error_ends_what_runs(
        self, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended = []

        def engine(jobs: Iterator[Job], *_: Any, **__: Any) -> Iterator[Outcome]:
            try:
                for job in jobs:
                    yield Outcome(job.name, "done")
            finally:
                ended.append(True)

        def full(*_: Any) -> None:
            raise oes.OutputError("batch.sqlite: cannot write: database or disk is full")

        monkeypatch.setattr(Manifest, "end", full)
        source = write_images(tmp_path / "in", "a.png", "b.png")
        with pytest.raises(oes.OutputError) as caught:  # kept, with its frames
            go(source, tmp_path / "set", masks=[mask], engine=engine)
        assert ended == [True]
        assert caught.value.__traceback__ is not None

    def test_images_whose_channels_change_while_they_wait_end_in_words(self, tmp_path: Path) -> None:
        source = write_images(tmp_path / "in", "a.png", "grey.png")

        def engine(jobs: Iterator[Job], options: Options, **_: Any) -> Iterator[Outcome]:
            for job in jobs:
                outcome = batch_run.run_job(job, options)
                if outcome.state == "unmasked":
                    (source / "grey.png").write_bytes(b"nothing any more")
                yield outcome

        done = go(source, tmp_path / "set", engine=engine)
        assert done.counts == {"done": 1, "failed": 1, "waiting": 0}
        assert done.failures[0][0] == "grey"


def test_a_folder_without_locks_is_told_of(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(path: Path) -> None:
        raise locks.NoLocks("No locks available")

    monkeypatch.setattr(locks, "FileLock", none)
    source = write_images(tmp_path / "in", "a.png")
    with pytest.warns(oes.OESWarning, match=r"set: files cannot be locked here \(No locks available\)"):
        assert go(source, tmp_path / "set", masks=[mask]).counts["done"] == 1


class TestMachines:
    FAULT = "CUDA error: an illegal memory access was encountered"

    def test_a_gpu_that_is_lost_fails_no_image(
        self, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lost(*_: Any, **__: Any) -> None:
            raise RuntimeError(self.FAULT)

        source = write_images(tmp_path / "in", "a.png", "b.png")
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(restoring, "train_sparse", lost)
            with pytest.raises(oes.OESError, match=f"^[ab]: RuntimeError: {self.FAULT}; 0 of 2 images"):
                go(source, tmp_path / "set", masks=[mask])
        again = Watching()
        go(source, tmp_path / "set", masks=[mask], watcher=again)
        assert (again.before, again.states) == (0, {"a": "done", "b": "done"})

    @pytest.mark.parametrize(
        ("on_gpu", "text", "broken"),
        [(True, FAULT, True), (True, "CUDA error: out of memory", False), (False, FAULT, False)],
    )
    def test_which_errors_are_those_of_a_lost_gpu(
        self, on_gpu: bool, text: str, broken: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_gpu)
        assert batch_run._breaks(RuntimeError(text)) is broken

    def test_a_worker_whose_gpu_is_lost_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        codes: list[int] = []
        broken = Outcome("a", "failed", failure=self.FAULT, broken=True)
        monkeypatch.setattr(batch_run.os, "_exit", codes.append)
        for outcome in (broken, replace(broken, broken=False)):
            monkeypatch.setattr(local, "run_job", lambda *_, outcome=outcome: outcome)
            run = local._prepare(Options(), lambda _: None, lambda: False)
            assert run(Job(tmp_path, Entry("a.png", "a"), settings())) is outcome
        assert codes == [1]
        assert capfd.readouterr().err == f"a: {self.FAULT}; another process goes on\n"

    @pytest.mark.parametrize(
        ("workers", "free", "memory"),
        [(1, 1000.0, None), (4, 1000.0, 125.0), (4, -10.0, 1.0), (4, float("inf"), None)],
    )
    def test_workers_share_the_memory_for_runs(
        self,
        workers: int,
        free: float,
        memory: float | None,
        mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        asked: list[float | None] = []
        train = restoring.train_many

        def trained(*arguments: Any, memory: float | None, **options: Any) -> Any:
            asked.append(memory)
            return train(*arguments, memory=memory, **options)

        def engine(jobs: Iterator[Job], options: Options, **_: Any) -> Iterator[Outcome]:
            return (batch_run.run_job(job, replace(options, workers=workers)) for job in jobs)

        monkeypatch.setattr(restoring, "train_many", trained)
        monkeypatch.setattr(restoring, "available_memory", lambda _: free)
        source = write_images(tmp_path / "in", "a.png")
        done = go(source, tmp_path / "set", masks=[mask], settings=settings(runs=2), engine=engine)
        assert (done.counts["done"], asked) == (1, [memory])
