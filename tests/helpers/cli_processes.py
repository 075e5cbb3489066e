"""Processes of the command line for its tests, and waiting for what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cli_runs import quick

_started: list[subprocess.Popen[str]] = []
COMMAND = [sys.executable, "-m", "oes_fast"]


def start(*args: object, before: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
    """Start the command line, in a process group of its own, with its output in pipes.

    Args:
        args: its arguments.
        before: what to put before the command.
        options: of Popen; ``env`` adds to the environment.
    """
    env = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([*before, *COMMAND, *quick(args)], env=env, **(pipes | options))
    _started.append(process)
    return process


def end_all() -> None:
    """Kill what a test that failed has left, whose steps would never end, and its own processes."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300  # a busy machine takes long to start Python
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> tuple[str, str]:
    """Send a signal; what the process has printed when it has ended."""
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    return out or "", err or ""
