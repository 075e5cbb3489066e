"""Where this process is the command line: its streams and signals, seen to before torch is imported.

The import of torch takes seconds, and nothing of ours is in the way of an interrupt while it lasts: neither
``python -m oes_fast`` nor the script ``oes-fast`` reaches a line of its own before the package is imported.
"""

from __future__ import annotations

import sys
from pathlib import PurePath

_SCRIPTS = ("oes-fast", "oes-fast-script")  # the second is what older installers write on Windows


def is_command() -> bool:
    """Whether this process was started as ``oes-fast`` or ``python -m oes_fast``."""
    arguments = sys.orig_argv
    if sys.argv[:1] == ["-m"]:  # what it is until the module is found
        for number, argument in enumerate(arguments):
            if argument == "-m":
                return arguments[number + 1 : number + 2] == ["oes_fast"]
            if argument.startswith("-m"):
                return argument == "-moes_fast"
        return False
    if not sys.argv or sys.argv[0] not in arguments:  # a worker process has the name of its parent there
        return False
    name = PurePath(sys.argv[0])
    return (name.stem if name.suffix.lower() in (".exe", ".py", ".pyw") else name.name) in _SCRIPTS


if is_command():
    from oes_fast.cli import display, garbage, signals

    garbage.own_process()
    display.own_process()
    signals.own_process()
