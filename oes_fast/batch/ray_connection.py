"""The connection to a Ray cluster, or one of this machine alone, without what Ray does and prints unasked."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from oes_fast.errors import OESError, OESWarning, one_line, warn_caller

LOCAL = "local"  # address of a cluster of this machine alone, which begins and ends with the command
EXTRA = 'pip install "oes_fast[ray]"'

_CONNECT_SECONDS = 15.0
_RETRIED = "so the task will be retried"  # in what Ray prints of a task whose worker has died
_STORE_BYTES = 80 * 2**20  # for objects of Ray, which asks for 75 MiB: tasks pass names and numbers
_SETTINGS = {
    # Read when Ray is imported. Statistics of use would be sent to Ray's makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Under "uv run" Ray would have every worker install the command's environment once more; workers have
    # the one that "ray start" was called in.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def package() -> Any:
    """The package ray.

    Raises:
        OESError: it is not installed, or cannot be imported.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        if error.name == "ray":
            raise OESError(f"ray: expected the package of that name, found none; {EXTRA}") from error
        raise OESError(f"ray: expected a package that can be imported, got: {one_line(error)}") from error


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a Ray cluster while inside; where this process is already, to that one.

    Args:
        address: HOST:PORT; "auto" for the cluster that this machine is part of; "local" for one of this
            machine alone, which begins and ends here.

    Raises:
        OESError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = package()
    if ray.is_initialized():  # by who called; it is theirs to end
        yield
        return
    # The messages of workers go to Ray's files: a table of progress is no place for them.
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        common |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    else:
        _check_reachable(address)
    with _unprinted(ray):
        try:
            with _own_signals():
                ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            expected = "a cluster that starts" if address == LOCAL else "the address of a Ray cluster"
            raise OESError(f"ray: expected {expected}, got {address}: {one_line(error)}") from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _unprinted(ray: Any) -> Iterator[None]:
    """Count what Ray says of dead workers, whole pages on standard output, and say it at the end."""
    worker = importlib.import_module("ray._private.worker")
    before = getattr(worker, "print_to_stdstream", None)  # of Ray 2.60 and those before; no part of its API
    if before is None:
        yield
        return
    said: list[str] = []

    def note(data: dict[str, Any], *args: Any, **options: Any) -> None:
        lines = [line.strip() for line in data.get("lines", ()) if line.strip()]
        said.extend(line for line in lines[:1] if _RETRIED in line)

    setattr(worker, "print_to_stdstream", note)  # noqa: B010 (mypy knows no such name)
    try:
        yield
    finally:
        setattr(worker, "print_to_stdstream", before)  # noqa: B010
        if said:
            times = "once" if len(said) == 1 else f"{len(said)} times"
            why = "what they did went on from its checkpoint; Ray's logs say why"
            warn_caller(f"ray: workers died {times}, and {why}", OESWarning)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back the handlers of signals afterwards: Ray's end a process that is told to stop with a dump."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _check_reachable(address: str) -> None:
    """Ray looks for a cluster that is not there for two minutes, prints lines of its own and then exits."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise OESError(
            f"ray: expected the address of a Ray cluster, HOST:PORT, got {address}: {reason}"
        ) from error


def check_room(ray: Any, address: str, cpus: float, gpus: float) -> None:
    """Fail if no machine of the cluster could ever run a job: Ray would wait for one to join.

    A cluster that grows by itself may have none yet, so one of which nothing asks for CPUs is given the time.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    able = [m for m in machines if m.get("CPU", 0) >= cpus and m.get("GPU", 0) >= gpus]
    if machines and not able and any(m.get("CPU", 0) for m in machines):
        most = ", ".join(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines[:8])
        raise OESError(
            f"ray: expected a machine with {cpus:g} CPUs and {gpus:g} GPUs for each image in the cluster "
            f"{address}, got machines with {most}"
        )
