"""What the tests of the command line share: arguments, and looking at what a run wrote."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oes_fast.cli import main
from oes_fast.cli.progress import ProgressReport
from oes_fast.pipelines.loop import StepInfo

SIDE = 24
# A mask of 5 % after two steps leaves nothing alive, and nothing to compare.
STEPS = [
    "--preset",
    "paper",
    "--density",
    "0.5",
    "--search-steps",
    "2",
    "--train-steps",
    "8",
    "--threads",
    "1",
]
SMALL = {"num_channels_down": (8, 8)}  # options of the network
NOISE = ["--sigma", "0.1", "--seed", "3"]
RESULTS = {".png", "_mask.safetensors", "_comparison.png", "_psnr.png", ".json"}


def run(*args: object) -> int:
    """Exit code of the command line with these arguments."""
    return main(quick(args))


def run_in(folder: Path, arguments: Sequence[str]) -> None:
    """Run the command line with these arguments, no others, in a folder; threads stay as they were."""
    threads, here = torch.get_num_threads(), Path.cwd()
    os.chdir(folder)
    try:
        assert main(list(arguments)) == 0
    finally:
        os.chdir(here)
        torch.set_num_threads(threads)


def quick(args: Sequence[object]) -> list[str]:
    """The arguments, with a small network where neither a network nor a mask is among them.

    And without the comparison with the dense network, which has tests of its own.
    """
    arguments = [str(a) for a in args]
    given = {argument.partition("=")[0] for argument in arguments}
    if given & {"--help", "-h"}:
        return arguments
    makes = arguments[:1] in (["denoise"], ["search"])
    if makes and not given & {"--model", "--model-option", "--mask"}:
        arguments.append(f"--model-option=num_channels_down={','.join(map(str, SMALL['num_channels_down']))}")
    runs = makes or arguments[:1] in (["train"], ["transfer"])
    return [*arguments, "--no-verify"] if runs and not given & {"--verify", "--no-verify"} else arguments


def files_of(out: Path) -> set[str]:
    """Endings of the files named after ``out``."""
    return {path.name.removeprefix(out.stem) for path in out.parent.glob(f"{out.stem}[._]*")}


def result_of(out: Path) -> dict:
    return json.loads(out.with_suffix(".json").read_text())


def assert_same_run(out: Path, wanted: Path) -> None:
    """Images, masks and histories are equal to the last bit."""
    assert out.read_bytes() == wanted.read_bytes()
    ours, theirs = (load_file(path.with_name(f"{path.stem}_mask.safetensors")) for path in (out, wanted))
    assert torch.equal(ours["bits"], theirs["bits"])
    for key in ("history", "psnr", "steps", "mask", "seeds"):
        assert result_of(out)[key] == result_of(wanted)[key], key
    settings = [result_of(path)["settings"] | {"verify": None} for path in (out, wanted)]
    assert settings[0] == settings[1]


def interrupt_at(phase: str, step: int, *numbers: int) -> Callable[[ProgressReport, StepInfo], None]:
    """A progress callback that presses Ctrl-C at a step, or sends other signals."""

    def call(self: ProgressReport, info: StepInfo) -> None:
        if (info.phase, info.step) == (phase, step):
            for number in numbers or (signal.SIGINT,):
                os.kill(os.getpid(), number)

    return call


def fails(capsys: pytest.CaptureFixture[str], *args: object, code: int = 2) -> str:
    """The one line on stderr of a command that must fail."""
    capsys.readouterr()
    assert run(*args) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("oes-fast: error: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err
