"""Two runs with one output: the second is refused; what a killed one leaves is in nobody's way."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import filelock
import pytest
from cli_runs import fails, files_of, run

from oes_fast.io import files, locks
from oes_fast.io.files import atomic_write, sweep
from oes_fast.io.locks import Busy, FileLock, NoLocks, RunLocks, label

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def killed(action) -> None:
    """Do something in a process that then ends as if it had been killed."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(9)
    os.waitpid(child, 0)


class TestFileLock:
    def test_one_holder_and_nothing_left(self, tmp_path: Path) -> None:
        lock = FileLock(tmp_path / "lock")
        with pytest.raises(Busy):
            FileLock(tmp_path / "lock")
        lock.release()
        FileLock(tmp_path / "lock").release()
        assert list(tmp_path.iterdir()) == []

    @FORK
    def test_death_releases_it(self, tmp_path: Path) -> None:
        killed(lambda: FileLock(tmp_path / "lock"))
        assert (tmp_path / "lock").exists()
        FileLock(tmp_path / "lock").release()

    def test_a_file_removed_while_it_was_locked_is_no_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run before removes its file between our opening and our locking it."""
        acquire, paths = filelock.FileLock.acquire, []

        def removed_at_first(self: filelock.BaseFileLock, **options: object) -> object:
            result = acquire(self, **options)
            if not paths:
                Path(self.lock_file).unlink()
                (tmp_path / "lock").touch()  # and the next one makes another
            paths.append(self.lock_file)
            return result

        monkeypatch.setattr(filelock.BaseFileLock, "acquire", removed_at_first)
        lock = FileLock(tmp_path / "lock")
        assert len(paths) == 2
        monkeypatch.undo()
        with pytest.raises(Busy):
            FileLock(tmp_path / "lock")
        lock.release()

    @pytest.mark.skipif(os.name == "nt", reason="an open file stays there")
    def test_the_lock_of_the_next_holder_is_left_alone(self, tmp_path: Path) -> None:
        """The next process locks the name as soon as it is free."""
        first, following = FileLock(tmp_path / "lock"), []
        held = first._lock

        class Followed:
            def release(self, *, force: bool) -> None:
                held.release(force=force)
                following.append(FileLock(tmp_path / "lock"))

        first._lock = Followed()
        first.release()
        with pytest.raises(Busy):
            FileLock(tmp_path / "lock")
        following[0].release()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")]
    )
    def test_file_systems_without(
        self, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(filelock.BaseFileLock, "acquire", fail)
        with pytest.raises(NoLocks):
            FileLock(tmp_path / "lock")
        held = RunLocks([tmp_path / "a", tmp_path / "b"])
        assert list(held.missing) == [tmp_path]
        held.release()

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(NoLocks):
            FileLock(tmp_path / "none" / "lock")


class TestRunLocks:
    def test_all_or_none(self, tmp_path: Path) -> None:
        first = RunLocks([tmp_path / "b", tmp_path / "c"])
        with pytest.raises(Busy, match="is writing it"):
            RunLocks([tmp_path / "a", tmp_path / "b"])
        RunLocks([tmp_path / "a"]).release()
        first.release()
        assert list(tmp_path.iterdir()) == []

    def test_the_holder_is_named_as_often_as_asked(self, tmp_path: Path) -> None:
        held = RunLocks([tmp_path / "a"])
        for _ in range(2):
            with pytest.raises(Busy, match=rf"process {os.getpid()}, since \d{{4}}-.*: oes-fast"):
                RunLocks([tmp_path / "a"])
        (tmp_path / f".oes-{label(tmp_path / 'a')}.lock").write_text("{}")
        with pytest.raises(Busy, match="another run is writing it"):
            RunLocks([tmp_path / "a"])
        held.release()

    def test_another_host_is_named(self, tmp_path: Path) -> None:
        held = RunLocks([tmp_path / "a"])
        path = tmp_path / f".oes-{label(tmp_path / 'a')}.lock"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
        with pytest.raises(Busy, match=rf"process {os.getpid()} on elsewhere"):
            RunLocks([tmp_path / "a"])
        held.release()


class TestCommand:
    @pytest.mark.parametrize(
        "other", ["out.png", "out.json", "out.train.ckpt", "out_comparison.png"], ids=str
    )
    def test_any_file_of_another_run_is_refused(
        self,
        other: str,
        cli_images: Path,
        cli_mask: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        held = RunLocks([tmp_path / other])
        args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", tmp_path / "out.png", "--steps", "1"]
        error = fails(capsys, *args, "--restart")
        assert f"{other}: another run (process {os.getpid()}" in error
        assert "-o" in error
        held.release()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("link", [False, True])
    def test_a_shared_json(
        self,
        link: bool,
        cli_images: Path,
        cli_mask: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        json_file = tmp_path / "shared.json"
        if link:
            json_file.symlink_to(tmp_path / "real.json")
        held = RunLocks([json_file.resolve()])
        args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", tmp_path / "out.png", "--steps", "1"]
        assert "another run" in fails(capsys, *args, "--json", json_file)
        held.release()

    @FORK
    def test_what_a_killed_run_left_is_removed(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"

        def die() -> None:
            RunLocks([out])
            atomic_write(tmp_path / "out.train.ckpt", lambda path: (path.write_bytes(b"half"), os._exit(9)))

        killed(die)
        left = {path.name for path in tmp_path.iterdir()}
        assert len(left) == 3  # the lock of the run, the half file and the lock beside it
        args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", out, "--steps", "1", "--no-plots"]
        assert run(*args) == 0
        assert {path.name for path in tmp_path.iterdir()} == {"out.png", "out.json"}

    def test_without_locks_it_goes_on_and_says_so(
        self,
        cli_images: Path,
        cli_mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def fail(*args: object) -> None:
            raise NoLocks("No locks available")

        monkeypatch.setattr(locks, "FileLock", fail)
        monkeypatch.setattr(files, "FileLock", fail)
        args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", tmp_path / "out.png", "--steps", "1"]
        assert run(*args, "--no-plots") == 0
        assert capsys.readouterr().err.count("cannot be locked here (No locks available)") == 1
        assert files_of(tmp_path / "out.png") == {".png", ".json"}


class TestTemporaryFiles:
    @FORK
    def test_those_of_a_killed_process_go_and_those_of_a_live_one_stay(self, tmp_path: Path) -> None:
        target, other = tmp_path / "result.txt", tmp_path / "other.txt"
        for path in (target, other):
            killed(lambda path=path: atomic_write(path, lambda t: (t.write_bytes(b"half"), os._exit(9))))
        assert len(list(tmp_path.iterdir())) == 4  # each with its lock

        def write(temporary: Path) -> None:
            temporary.write_text("at work")
            sweep(target)
            assert temporary.read_text() == "at work"
            assert len(list(tmp_path.glob(f".oes-{label(target)}*"))) == 2

        files._swept.discard(target)
        atomic_write(target, write)
        assert target.read_text() == "at work"
        assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["result.txt"]
        assert len(list(tmp_path.glob(f".oes-{label(other)}*"))) == 2

    def test_names_of_any_length(self, tmp_path: Path) -> None:
        for name in ("x" * 250, "é" * 120, "a.b" + "c" * 200):
            atomic_write(tmp_path / name, lambda path: path.write_text("new"))
        assert len(list(tmp_path.iterdir())) == 3

    @pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="one file there")
    def test_case_matters(self) -> None:
        assert label(Path("a.png")) != label(Path("A.png"))
