"""A display that is closed, full, gone or ASCII costs nothing of a run but what it would have shown."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_processes import start, wait_for
from cli_runs import SIDE, files_of, result_of, run
from rich.console import Console

from oes_fast.cli import display
from oes_fast.cli.progress import ProgressReport
from oes_fast.io.display import Display

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX descriptors and signals")
NO_CHECKPOINT = {".png", ".json"}


class Failing(io.StringIO):
    """A stream that fails on every write and flush."""

    encoding = "utf-8"

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


GONE = OSError(errno.EIO, os.strerror(errno.EIO))
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
CLOSED = ValueError("I/O operation on closed file")


class TestStream:
    @pytest.mark.parametrize("error", [GONE, FULL, BROKEN, CLOSED, BlockingIOError(errno.EAGAIN, "later")])
    def test_raises_nothing(self, error: Exception) -> None:
        stream = Display(Failing(error))
        assert stream.write("a line\n") == 7
        stream.writelines(["a", "b"])
        stream.flush()
        print("a line", file=stream, flush=True)
        Console(file=stream, force_terminal=True).print("[bold]bold[/bold]")

    def test_knows_what_someone_misses(self) -> None:
        for error, failure in ((FULL, "No space left on device"), (BROKEN, None), (GONE, None)):
            stream = Display(Failing(error))
            stream.write("a line\n")
            assert stream.failure == failure

    def test_nowhere(self) -> None:
        stream = Display(None)
        print("a line", file=stream, flush=True)
        assert not stream.isatty()
        assert stream.encoding

    def test_characters_that_the_encoding_lacks(self) -> None:
        raw = io.BytesIO()
        stream = Display(io.TextIOWrapper(raw, "ascii"))
        print("é 像 \udcff", file=stream)
        assert raw.getvalue() == rb"\xe9 \u50cf \udcff" + os.linesep.encode()

    def test_lines_appear_at_once(self) -> None:
        raw = io.BytesIO()
        stream = Display(io.TextIOWrapper(io.BufferedWriter(raw), "utf-8"))
        stream.write("a line\n")
        assert raw.getvalue() == b"a line\n"

    def test_bytes_have_no_way_round_it(self) -> None:
        assert getattr(Display(sys.__stdout__), "buffer", None) is None


@pytest.mark.parametrize("error", [FULL, BROKEN, CLOSED])
def test_every_command_prints_through_it(
    error: Exception, cli_images: Path, cli_mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Failing(error))
    monkeypatch.setattr(sys, "stderr", Failing(error))
    out = tmp_path / "out.png"
    assert run("transfer", cli_mask, cli_images / "rgb.png", "-o", out, "--steps", "1", "--no-plots") == 0
    assert files_of(out) == NO_CHECKPOINT
    assert run("transfer", "--help") == 0
    assert run("--version") == 0
    assert run("transfer", cli_mask, "missing.png", "-o", out) == 2
    assert run("info", "--json", tmp_path / "info.json") == (2 if error is FULL else 0)
    assert (tmp_path / "info.json").exists()
    assert isinstance(sys.stdout, Failing), "the host's streams were not given back"


def test_a_summary_that_is_lost_is_said(
    cli_images: Path,
    cli_mask: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", Failing(FULL))
    args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", tmp_path / "o.png", "--steps", "1"]
    assert run(*args, "--no-plots") == 0
    assert "warning: standard output: cannot write: No space left" in capsys.readouterr().err


def test_a_bar_on_a_terminal_that_is_gone() -> None:
    class Terminal(Failing):
        def isatty(self) -> bool:
            return True

    stream = Display(Terminal(GONE))
    report = ProgressReport(console=Console(file=stream, force_terminal=True))
    with report:
        print("something", file=stream)


def test_a_result_for_a_pipe_without_a_reader_is_an_error(
    cli_images: Path, cli_mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", tmp_path / "o.png", "--steps", "1"]
    assert run(*args, "--no-plots", "--json", f"/dev/fd/{writer}") == 2
    os.close(writer)
    assert "Broken pipe" in capsys.readouterr().err
    assert files_of(tmp_path / "o.png") == {".png", ".train.ckpt"}


@POSIX
class TestProcesses:
    def test_closed_and_broken(self, cli_images: Path, cli_mask: Path, tmp_path: Path) -> None:
        """Standard input and output closed, and nobody reads stderr."""
        out = tmp_path / "out.png"
        args = ["transfer", cli_mask, cli_images / "rgb.png", "--steps", "1", "--no-plots", "-o", out]
        reader, writer = os.pipe()
        os.close(reader)
        closed = start(*args, before=("sh", "-c", 'exec "$@" <&- >&-', "sh"), stderr=writer)
        os.close(writer)
        assert closed.wait(timeout=300) == 0
        assert files_of(out) == NO_CHECKPOINT

    def test_ctrl_c_for_a_pipeline(self, cli_images: Path, cli_mask: Path, tmp_path: Path) -> None:
        """`2>&1 | tee log`: tee dies of the same Ctrl-C, and what is then printed has no reader."""
        out = tmp_path / "out.png"
        args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", out, "--steps", "1000000", "--no-plots"]
        process = start(*args, "--checkpoint-seconds", "0", stderr=subprocess.STDOUT)
        wait_for(tmp_path / "out.train.ckpt", process)
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
        assert result_of(out)["interrupted"]
        assert files_of(out) == {".png", ".json", ".train.ckpt"}

    def test_a_terminal_that_goes_away(self, cli_images: Path, cli_mask: Path, tmp_path: Path) -> None:
        """With nohup's SIGHUP, in ASCII, for a name that is not; and nothing of it is left unread."""
        out = tmp_path / "öut.png"
        args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", out, "--steps", "6", "--no-plots"]
        master, slave = os.openpty()
        process = start(
            *args,
            "--checkpoint-seconds",
            "0",
            stdout=slave,
            stderr=slave,
            env={"PYTHONIOENCODING": "ascii", "TERM": "xterm"},
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )
        os.close(slave)
        wait_for(tmp_path / "öut.train.ckpt", process)
        os.close(master)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=300) == 0
        assert files_of(out) == NO_CHECKPOINT
        assert result_of(out)["image"]["height"] == SIDE

    def test_the_interpreter_has_nothing_to_say_at_its_end(self) -> None:
        """What is left in a buffer is not flushed into an error and exit code 120."""
        code = "import sys; from oes_fast.cli import display; display.own_process(); print('x' * 9, end='')"
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-c", LIGHT + code], stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert (done.returncode, done.stderr) == (0, b"")

    def test_garbage_is_left_alone_until_the_commands_are_there(self) -> None:
        code = (
            "import gc; from oes_fast.cli import garbage; garbage.own_process(); off = not gc.isenabled()\n"
        )
        code += "garbage.imported(); print(off, gc.isenabled(), gc.get_freeze_count() > 1000)"
        done = subprocess.run(
            [sys.executable, "-c", LIGHT + code], stdout=subprocess.PIPE, check=True, text=True
        )
        assert done.stdout.split() == ["True"] * 3

    def test_a_closed_descriptor_is_occupied(self) -> None:
        """A file opened later must not become stderr."""
        code = "import os; from oes_fast.cli import display; display.own_process()\n"
        code += "os.write(1, b'%d' % os.open('/dev/null', os.O_RDONLY))"
        script = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", LIGHT + code]
        done = subprocess.run(script, stdout=subprocess.PIPE, check=True)
        assert int(done.stdout) > 2


# The package without what its __init__ imports: torch takes seconds.
LIGHT = f"""
import sys, types
package = types.ModuleType("oes_fast")
package.__path__ = [{str(Path(display.__file__).parents[1])!r}]
sys.modules["oes_fast"] = package
"""
