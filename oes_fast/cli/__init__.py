"""The command line ``oes-fast``; ``oes-fast --help`` describes it.

This module and the three it imports are light: they are there before torch is (:mod:`oes_fast._command`).
"""

from __future__ import annotations

from collections.abc import Sequence

from oes_fast.cli import display, garbage, signals

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Whatever becomes of stdout and stderr, the command goes on: see :mod:`oes_fast.cli.display`.

    Args:
        args: arguments, those of the process if None.

    Returns:
        Exit code: 0 done, 2 bad input or a result that cannot be written, 130 interrupted (143 by SIGTERM,
        129 by SIGHUP), 1 anything else.
    """
    with display.harmless(), signals.handled():
        try:
            from oes_fast.cli.app import main as run

            garbage.imported()
            code = run(args)
        except KeyboardInterrupt as error:  # while the commands were imported
            signals.say_stopped(error)
            code = signals.exit_code(error)
    signals.leave(code)
    return code
