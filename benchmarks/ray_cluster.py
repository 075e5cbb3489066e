"""A Ray cluster of several machines' worth of processes on this one, which can be killed (Linux)."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_STORE_BYTES = 80 * 2**20
_BEGIN_SECONDS = 60.0
_IDLE = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


class Cluster:
    """A head that runs no tasks, and workers of one CPU each: of each the processes of ``ray start``.

    Args:
        folder: for all that it writes; its name must be short, as sockets lie below it.
        workers: how many; with 0 the head has a CPU, which takes less time to begin.

    Attributes:
        address: of the head.
        variables: for the environment of what uses it.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        token = (
            folder / "token"
        )  # without which nothing can join or use it; Ray keeps one for the user otherwise
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        cpus = int(workers == 0)
        self._head = self._start(
            "--head",
            f"--port={port}",
            f"--num-cpus={cpus}",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
        )
        self._workers: list[subprocess.Popen[bytes]] = []
        try:
            self._wait(port)
            self._workers += [self._new_worker() for _ in range(workers)]
        except BaseException:
            self.close()
            raise

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        words = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--node-ip-address=127.0.0.1",
        ]
        return subprocess.Popen(
            [*words, f"--object-store-memory={_STORE_BYTES}", *options],
            env=os.environ | self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _new_worker(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def _wait(self, port: int) -> None:
        deadline = time.monotonic() + _BEGIN_SECONDS
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            if self._head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the head of the cluster has not begun")
            time.sleep(0.05)

    def machines(self) -> list[int]:
        """Numbers of the processes that the workers' others come from."""
        return [worker.pid for worker in self._workers]

    def tasks(self) -> list[int]:
        """Numbers of the processes that run a task just now."""
        return [
            pid
            for machine in (self._head.pid, *self.machines())
            for pid, words in below(machine).items()
            if words.startswith("ray::") and not words.startswith(_IDLE)
        ]

    def lose(self, machine: int) -> None:
        """Kill all processes of a worker at once, and let another one join."""
        (lost,) = [worker for worker in self._workers if worker.pid == machine]
        self._workers.remove(lost)
        _kill(lost)
        self._workers.append(self._new_worker())

    def close(self) -> None:
        """End all of it."""
        for started in (*self._workers, self._head):
            _kill(started)


def _kill(started: subprocess.Popen[bytes]) -> None:
    for pid in (started.pid, *below(started.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    started.wait()


def below(root: int) -> dict[int, str]:
    """Command lines of the processes that come from one, by number."""
    found = processes()
    family = {root}
    while more := {pid for pid, (parent, _) in found.items() if parent in family} - family:
        family |= more
    return {pid: found[pid][1] for pid in family - {root}}


def processes() -> dict[int, tuple[int, str]]:
    """(parent's number, command line) of the processes of this machine, by number."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
                found[int(folder.name)] = parent, words
    return found
