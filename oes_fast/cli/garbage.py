"""The garbage collection of Python while a command's modules are imported.

It would look through everything several times while 1,500 modules come, and once more at the end of the
process, to find next to nothing: half a second in all.
"""

from __future__ import annotations

import gc

_own = False


def own_process() -> None:
    """Wait with it until :func:`imported`: this process is the command line."""
    global _own
    _own = True
    gc.disable()


def imported() -> None:
    """Collect from here on, except for what is there and stays to the end. Nothing in another program."""
    if _own:
        gc.freeze()
        gc.enable()
