"""The commands put together, and what errors look like."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import typer

from oes_fast.cli import signals
from oes_fast.cli.batch import batch
from oes_fast.cli.bench import bench
from oes_fast.cli.compare import compare
from oes_fast.cli.console import (
    EXIT_BAD_INPUT,
    EXIT_OK,
    EXIT_UNEXPECTED,
    PROGRAM,
    plain_warnings,
    say,
)
from oes_fast.cli.deblur import deblur
from oes_fast.cli.denoise import denoise
from oes_fast.cli.info import info
from oes_fast.cli.inpaint import inpaint
from oes_fast.cli.inspect import inspect
from oes_fast.cli.mri import mri
from oes_fast.cli.outputs import Interrupted
from oes_fast.cli.prune import prune
from oes_fast.cli.search import search
from oes_fast.cli.settings import debug
from oes_fast.cli.superres import superres
from oes_fast.cli.train import train
from oes_fast.cli.transfer import transfer
from oes_fast.cli.ui import ui
from oes_fast.errors import InputError, OESError
from oes_fast.version import __version__

# Click's class of wrong usage; newer versions of Typer carry Click inside, older ones import it.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name=PROGRAM,
    no_args_is_help=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 bad input or a result that cannot be written, 130 stopped by Ctrl-C "
    "(143 by SIGTERM, 129 by SIGHUP), 1 anything else. OES_FAST_DEBUG=1 shows where an error came from.",
)

EXAMPLES: dict[Callable[..., Any], str] = {
    denoise: "oes-fast denoise skimage:camera --sigma 0.1 -o out.png",
    inpaint: "oes-fast inpaint skimage:camera --missing 0.5 -o out.png",
    superres: "oes-fast superres small.png --factor 4 -o large.png",
    deblur: "oes-fast deblur blurred.png --gaussian 2 -o sharp.png",
    mri: "oes-fast mri scan.h5 --mask mask.npy -o slice.png",
    search: "oes-fast search noisy.png -o mask.safetensors",
    train: "oes-fast train noisy.png mask.safetensors -o restored.png",
    transfer: "oes-fast transfer mask.safetensors another.png -o restored.png",
    prune: "oes-fast prune noisy.png --method snip -o mask.safetensors",
    batch: "oes-fast batch photos --workers 4 --threads 1 -o restored",
    compare: "oes-fast compare skimage:camera --size 128 --methods oes,random,nlm --preset quick -o compared",
    inspect: "oes-fast inspect mask.safetensors another.safetensors -o masks.png",
    ui: "oes-fast ui --port 7860",
    bench: "oes-fast bench --size 256 --json bench.json",
    info: "oes-fast info --json info.json",
}


class _Carried(Exception):
    """Carries an error past Typer, which has its own ideas of Ctrl-C and of a pipe without a reader."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def _carrying(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except (KeyboardInterrupt, OSError) as error:
            raise _Carried(error) from None

    return call


for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: `{example}`")(_carrying(command))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Optimal Eye Surgeon: restore an image with a sparse untrained network, from that image alone.

    `denoise` does it all; `inpaint`, `superres`, `deblur` and `mri` do the same for missing pixels, small
    images, blurred ones and k-space. `search` finds the mask, `train` restores with it, `transfer` restores
    another image with it, `batch` whole sets of images. `prune` finds a mask by another method, `inspect`
    shows what masks keep, `compare` holds OES against other ways to prune, other networks and classical
    denoisers. `ui` opens a page to watch a restoration on. `bench` measures speed on this machine, `info`
    says what it has.
    """


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise :class:`InputError` for an option without a value: Click takes an empty name for this folder."""
    for argument, after in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("-") and (value if equals else after) == "":
            raise InputError(f"{name}: expected a value, got an empty one")


def _wrong_usage(error: Exception, arguments: Sequence[str]) -> str:
    """What Click says of the arguments; of a number that is none, in our words and with what came."""
    message: str = getattr(error, "format_message", error.__str__)().rstrip(".")
    kind = re.search(r"\bvalid (integer|number|float)\b", message)
    names = getattr(getattr(error, "param", None), "opts", ())
    came = [
        after if argument in names else argument.partition("=")[2]
        for argument, after in zip(arguments, [*arguments[1:], ""], strict=True)
        if argument.partition("=")[0] in names
    ]
    if kind is None or not came:
        return message
    expected = "an integer" if kind[1] == "integer" else "a number"
    return f"{max(names, key=len)}: expected {expected}, got {came[-1]!r}"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; see :func:`oes_fast.cli.main`."""
    arguments = sys.argv[1:] if args is None else list(args)
    failed: BaseException | None = None
    try:
        try:
            _refuse_empty(arguments)
            with plain_warnings():
                code = typer.main.get_command(app).main(
                    args=arguments or ["--help"], prog_name=PROGRAM, standalone_mode=False
                )
        except _Carried as carried:
            failed = carried.error
        if failed is not None:
            raise failed
        return code if isinstance(code, int) else EXIT_OK
    except Interrupted as error:
        say("error", error)
        return signals.exit_code(error)
    except (KeyboardInterrupt, typer.Abort) as error:
        signals.say_stopped(error)
        return signals.exit_code(error)
    except UsageError as error:
        place = getattr(getattr(error, "ctx", None), "command_path", PROGRAM)
        say("error", f"{_wrong_usage(error, arguments)}; see {place} --help")
        return EXIT_BAD_INPUT
    except (OESError, OSError) as error:
        if debug():
            raise
        say("error", error)
        return EXIT_BAD_INPUT
    except Exception as error:  # a fault of ours, or of a library: no user can read a traceback
        if debug():
            raise
        kind = type(error).__name__
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            kind = "out of memory (--size makes the image smaller)"
        say("error", f"{kind}: {error} (OES_FAST_DEBUG=1 shows where it came from)")
        return EXIT_UNEXPECTED
    finally:
        failed = None  # its traceback has this frame, and all that the command had would stay with it
