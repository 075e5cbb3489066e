"""A Ray cluster of several machines' worth of processes on this one, whose processes can be killed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

_STORE_BYTES = 80 * 2**20
_IDLE = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


class Cluster:
    """A head that runs no tasks, and workers of one CPU each, each a raylet with its processes.

    Args:
        folder: for its token, without which nothing can join or use it; Ray keeps one for the user otherwise.
        workers: how many.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        token = folder / "ray-token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        os.environ.update(self.variables)  # before ray is imported, which reads them
        from ray.cluster_utils import Cluster as Processes

        self._processes: Any = Processes(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
            },
        )
        self.address: str = self._processes.address
        self._workers = [self._new_worker() for _ in range(workers)]

    def _new_worker(self) -> Any:
        return self._processes.add_node(num_cpus=1, object_store_memory=_STORE_BYTES, wait=False)

    def raylets(self) -> list[int]:
        """Process numbers of the workers' raylets."""
        return [raylet_of(worker) for worker in self._workers]

    def tasks(self) -> list[int]:
        """Process numbers of the processes that run a task just now."""
        parents = set(self.raylets())
        return [
            pid
            for pid, parent, words in processes()
            if parent in parents and words.startswith("ray::") and not words.startswith(_IDLE)
        ]

    def lose_worker(self, number: int) -> None:
        """Kill a worker whole, and let another one join."""
        lost = self._workers.pop(number)
        self._processes.remove_node(lost, allow_graceful=False)
        self._workers.append(self._new_worker())

    def close(self) -> None:
        """End all of it."""
        self._processes.shutdown()


def raylet_of(worker: Any) -> int:
    """Process number of a worker's raylet."""
    return int(worker.all_processes["raylet"][0].process.pid)


def processes() -> list[tuple[int, int, str]]:
    """(number, parent's number, command line) of the processes of this machine (Linux)."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
            except (OSError, ValueError, IndexError):  # it has ended meanwhile
                continue
            found.append((int(folder.name), parent, words))
    return found
