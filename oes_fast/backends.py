"""Which implementations can run here, why the others cannot, and which one an operation takes."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from oes_fast import _cuda_extension, _extension
from oes_fast._cuda_toolkit import ARCHS, runs_on
from oes_fast.errors import BackendError, InputError, OESWarning
from oes_fast.requirements import lack

NAMES = ("reference", "torch", "cpu", "triton", "cuda")
AUTO = "auto"

# By kind of device. On a GPU "cuda" stands before "triton": its steps take longer, but its first step comes
# at once, where Triton compiles and tunes for longer than most runs take (docs/kernels.md).
_FASTEST_FIRST = {"cpu": ("cpu", "torch", "reference"), "cuda": ("cuda", "triton", "torch", "reference")}
_KNOWN_BY = {"cpu": "as measured", "cuda": "for runs of some thousand steps, as measured on an H100"}
_ANY_DEVICE = ("torch", "reference")
_warned = threading.Event()  # of missing C++ kernels


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run here; true if it can.

    Attributes:
        available: it can.
        reason: why not, and what to do; empty if it can.
    """

    available: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.available

    def __str__(self) -> str:
        return "available" if self.available else f"not available: {self.reason}"


def backends() -> dict[str, BackendStatus]:
    """Status of every backend, by name.

    reference: the definitions in plain PyTorch, dense, on any device. torch: the rewritten network in plain
    PyTorch operations, on any device. cpu: C++ kernels. triton: Triton kernels on a GPU, or on CPU tensors
    under TRITON_INTERPRET=1. cuda: CUDA C++ kernels on a GPU, or emulated on CPU tensors under
    OES_FAST_EMULATE_CUDA=1.

    Raises:
        InputError: an environment variable that chooses backends has a value that means nothing.

    Example:
        >>> str(oes.backends()["reference"])
        'available'
    """
    return {name: _status(name) for name in NAMES}


def _status(name: str, device: torch.device | None = None) -> BackendStatus:
    if name in _disabled():
        return BackendStatus(False, "switched off by OES_FAST_DISABLE_BACKENDS; remove it from the list")
    # GPUs of one machine may be of several kinds, of which the extension was built for some.
    emulated, index = _cuda_extension.emulated(), None
    if name == "cuda" and not emulated and device is not None and device.type == "cuda":
        index = device.index
    return _probe(name, emulated, index)


def automatic_order() -> dict[str, str]:
    """What "auto" takes, the first that can run here, by kind of device, and how that order is known.

    Example:
        >>> from oes_fast.backends import automatic_order
        >>> automatic_order()["cpu"]
        'cpu, torch, reference (as measured)'
    """
    return {device: f"{', '.join(order)} ({_KNOWN_BY[device]})" for device, order in _FASTEST_FIRST.items()}


def resolve(backend: str, device: torch.device | str, candidates: Sequence[str]) -> str:
    """The implementation an operation takes.

    Args:
        backend: "auto" for the first candidate in :func:`automatic_order` that runs on the device here, or a
            name.
        device: of the tensors.
        candidates: the backends that have the operation; "reference" must be one. "torch" stands for
            "reference" where an operation has nothing between the two.

    Raises:
        InputError: there is no backend of that name.
        OESWarning: once, where "auto" does without the C++ kernels because they are not built.
        BackendError: the named backend cannot run here, not on this device, or lacks the operation.
    """
    device = torch.device(device)
    kind = device.type
    if backend == AUTO:
        order = _FASTEST_FIRST.get(kind, _ANY_DEVICE)
        chosen = next(name for name in order if name in candidates and _status(name, device))
        if kind == "cpu" and "cpu" in candidates and chosen != "cpu":
            _warn_of_missing_kernels(_status("cpu"))
        return chosen
    if backend not in NAMES:
        raise InputError(f"backend: expected one of {', '.join((AUTO, *NAMES))}, got {backend!r}")
    name = "reference" if backend == "torch" and "torch" not in candidates else backend
    status = _status(backend, device)
    if not status:
        raise BackendError(f"backend {backend!r} is {status}")
    if name not in candidates:
        raise BackendError(
            f"backend {backend!r} does not have the operation for these tensors, only {', '.join(candidates)}"
        )
    devices = _devices(name)
    if devices is not None and kind not in devices:
        raise BackendError(f"backend {backend!r} needs tensors on {' or '.join(devices)}, got {kind}")
    return name


# What torch.compiler.assume_constant_result does; calling it loads the compiler, two seconds of every start.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _devices(name: str) -> tuple[str, ...] | None:
    if name in _ANY_DEVICE:
        return None
    if name == "triton":
        return ("cpu", "cuda") if triton_interprets() else ("cuda",)
    return (_cuda_extension.device_type(),) if name == "cuda" else (name,)


def _disabled() -> frozenset[str]:
    names = frozenset(
        filter(None, os.environ.get("OES_FAST_DISABLE_BACKENDS", "").replace(" ", "").split(","))
    )
    optional = ("cpu", "triton", "cuda")
    if not names.issubset(optional):
        unknown = ", ".join(sorted(names.difference(optional)))
        raise InputError(
            f"OES_FAST_DISABLE_BACKENDS: expected names out of {', '.join(optional)}, got {unknown}"
        )
    return names


def triton_interprets() -> bool:
    """Whether Triton kernels run under its interpreter, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _probe(name: str, cuda_is_emulated: bool, index: int | None = None) -> BackendStatus:
    if index is not None:  # of a GPU that need not be the current one
        with torch.cuda.device(index):
            return _probe.__wrapped__(name, cuda_is_emulated)
    if name == "cpu":
        return _probe_cpu()
    if name == "triton":
        return _probe_triton()
    if name == "cuda":
        return _probe_emulated_cuda() if cuda_is_emulated else _probe_cuda()
    return BackendStatus(True)


def _probe_cpu() -> BackendStatus:
    if sys.platform == "win32":
        return BackendStatus(
            False,
            "the C++ kernels need gcc or clang, which Windows builds of Python do not use; WSL has them",
        )
    return _probe_extension(_extension.CPU, "with gcc or clang installed")


def _probe_cuda() -> BackendStatus:
    if sys.platform != "linux":
        return BackendStatus(False, "the CUDA kernels are built on Linux alone; WSL has it")
    extension = _extension.CUDA
    with_what = "with CUDA's nvcc and a CUDA build of torch installed"
    status = _probe_extension(extension, with_what, load=torch.cuda.is_available())
    if not status:
        return status
    if not torch.cuda.is_available():
        return BackendStatus(False, "PyTorch sees no GPU; install a CUDA build of torch and a driver")
    path, device = extension.find(), torch.cuda.get_device_capability()
    archs = _extension.archs_of(_extension.read_identity(path)) if path else []
    if runs_on(archs, device):
        return _probe_driver()
    arch = f"{device[0]}.{device[1]}"
    return BackendStatus(
        False,
        f"the CUDA extension was built for GPUs of compute capability {', '.join(archs)}, and "
        f"{torch.cuda.get_device_name()} has {arch}; run: {ARCHS}={arch} {extension.build_command()}",
    )


def _probe_driver() -> BackendStatus:
    """Whether the runtime in the extension works here: it may ask for a newer driver than PyTorch's does."""
    try:
        importlib.import_module(_extension.CUDA.name).processors(torch.cuda.current_device())
    except RuntimeError as error:
        return BackendStatus(
            False,
            f"the CUDA extension does not run here ({error}); update the driver, or build the extension "
            "with a toolkit as old as the driver",
        )
    return BackendStatus(True)


def _probe_emulated_cuda() -> BackendStatus:
    if not _extension.is_checkout(_extension.ROOT):
        return BackendStatus(
            False, f"{_cuda_extension.EMULATE}=1 is for tests in a checkout of oes_fast; unset it"
        )
    return _probe_extension(_extension.EMULATED_CUDA, "with gcc installed")


def _probe_extension(extension: _extension.Extension, with_what: str, *, load: bool = True) -> BackendStatus:
    """Whether an extension is there, may be loaded, and loads."""
    path = extension.find()
    if path is None:
        return BackendStatus(
            False, f"the {extension.title} was not built; {with_what}, run: {extension.build_command()}"
        )
    try:
        refusal = extension.refusal(path, torch.__version__)
        if not refusal and load:
            importlib.import_module(extension.name)
    except (ImportError, OSError) as error:
        if "OES_FAST_CPU_CAPABILITY" in str(error):
            raise InputError(str(error)) from None
        refusal = f"the {extension.title} does not load ({error.__cause__ or error})"
    if refusal:
        return BackendStatus(False, f"{refusal}; run: {extension.build_command()}")
    return BackendStatus(True)


def _warn_of_missing_kernels(status: BackendStatus) -> None:
    """Say once that all is slower than it need be, unless that was asked for."""
    if "cpu" in _disabled() or sys.platform == "win32" or _warned.is_set():
        return
    _warned.set()
    warnings.warn(
        f'backend "auto" runs on plain PyTorch, several times slower than the C++ kernels: {status.reason}',
        OESWarning,
        stacklevel=3,
    )


def _probe_triton() -> BackendStatus:
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return BackendStatus(False, f"Triton does not import ({error}); {lack('triton', None)}")
    if problem := lack("triton", str(getattr(triton, "__version__", "")) or None):
        return BackendStatus(False, problem)
    if torch.cuda.is_available() or triton_interprets():
        return BackendStatus(True)
    return BackendStatus(
        False,
        "PyTorch sees no GPU; install a CUDA build of torch and a driver, or set TRITON_INTERPRET=1 before "
        "Python starts to run the kernels slowly on the CPU",
    )
