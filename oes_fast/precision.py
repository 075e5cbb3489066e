"""How products of float32 numbers are computed: one setting with one meaning for every backend.

PyTorch keeps this in flags of the whole process, and lets convolutions on a GPU round their operands to TF32
unless it is told otherwise. What is computed inside :func:`precision` is computed as it says, backward passes
included, whose threads see the same flags; afterwards the flags are what they were.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

from oes_fast._checks import check_choice
from oes_fast.errors import InputError

PRECISIONS = ("float32", "tf32", "tf32x3")
DEFAULT = "float32"

_BACKENDS: Any = torch.backends  # whose modules have more attributes than their stubs know

Undo = list[tuple[Any, str]]  # objects with the fp32_precision they had, in the order they were changed


class _Held:
    """Flags of the process, set as long as anybody needs them.

    Args:
        apply: sets them and returns what undoes it.
        undo: does.
    """

    def __init__(self, apply: Callable[[str], Any], undo: Callable[[Any], None]) -> None:
        self._apply, self._undo = apply, undo
        self._lock = threading.Lock()
        self._holders: list[tuple[int, str]] = []
        self._before: Any = None

    @contextlib.contextmanager
    def hold(self, setting: str) -> Iterator[None]:
        """The flags are as ``setting`` says inside.

        Raises:
            InputError: another thread holds them as another setting says.
        """
        holder = threading.get_ident(), setting
        with self._lock:
            others = [other for thread, other in self._holders if thread != holder[0] and other != setting]
            if others:
                raise InputError(
                    f"precision: expected {others[0]!r}, with which another thread of this process computes "
                    f"at the moment, since PyTorch has one setting for all threads; got {setting!r}"
                )
            self._change([*self._holders, holder])
        try:
            yield
        finally:
            with self._lock:
                last = len(self._holders) - 1 - self._holders[::-1].index(holder)
                self._change(self._holders[:last] + self._holders[last + 1 :])

    def held(self) -> str | None:
        """The setting, None where nobody needs one."""
        with self._lock:
            return self._holders[-1][1] if self._holders else None

    def _change(self, holders: list[tuple[int, str]]) -> None:
        now, wanted = (list_[-1][1] if list_ else None for list_ in (self._holders, holders))
        if now != wanted:
            if now is not None:
                self._undo(self._before)
            if wanted is not None:
                self._before = self._apply(wanted)
        self._holders = holders


def _set_gpu(setting: str) -> tuple[Undo, str | None]:
    # PyTorch has no products in three parts.
    wanted = "tf32" if setting == "tf32" else "ieee"
    cudnn, matmul = _BACKENDS.cudnn, _BACKENDS.cuda.matmul
    # What reads the older interface, as torch.compile does, raises where the two disagree.
    older = _older_matmul()
    kinds = [matmul, cudnn.conv, cudnn.rnn]
    before = [kind.fp32_precision for kind in kinds]
    whole = "none" if cudnn.fp32_precision == _BACKENDS.fp32_precision else cudnn.fp32_precision
    undo: Undo = [(cudnn, whole)]
    # By the setting for all kinds together, which those never set apart follow: asked to be "tf32" and back,
    # they would no longer be as they were.
    cudnn.fp32_precision = wanted
    for kind, was in zip(kinds, before, strict=True):
        if kind.fp32_precision != wanted:
            undo.append((kind, was))
            kind.fp32_precision = wanted
    if older is None or (older == "highest") == (wanted == "ieee"):
        return undo, None
    if not any(kind is matmul for kind, _ in undo):
        undo.append((matmul, "none"))
    matmul.allow_tf32 = wanted == "tf32"
    return undo, older


def _older_matmul() -> str | None:
    """What the older interface has for products of matrices; None where the newer one contradicts it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _unset_gpu(before: tuple[Undo, str | None]) -> None:
    undo, older = before
    if older is not None:
        on_cpu = _BACKENDS.mkldnn.matmul.fp32_precision
        torch.set_float32_matmul_precision(older)  # sets that of the CPU as well
        inherited = on_cpu == _BACKENDS.fp32_precision
        _BACKENDS.mkldnn.matmul.fp32_precision = "none" if inherited else on_cpu
    _unset(undo)


def _set_cpu(setting: str) -> Undo:
    undo: Undo = []
    for kind in (_BACKENDS.mkldnn.conv, _BACKENDS.mkldnn.matmul):
        was = kind.fp32_precision
        if was not in ("ieee", "none"):
            undo.append((kind, "none" if was == _BACKENDS.fp32_precision else was))
            kind.fp32_precision = "ieee"
    return undo


def _unset(undo: Undo) -> None:
    for kind, was in reversed(undo):
        kind.fp32_precision = was


_gpu = _Held(_set_gpu, _unset_gpu)
_cpu = _Held(_set_cpu, _unset)
_of_thread = threading.local()  # settings that it is inside of, the innermost last


def current() -> str:
    """The setting that holds where this is called.

    This thread's own, else another thread's for GPUs, else "float32", whatever PyTorch's flags say.
    """
    inside = getattr(_of_thread, "settings", ())
    return inside[-1] if inside else _gpu.held() or DEFAULT


@contextlib.contextmanager
def precision(setting: str = DEFAULT, *, device: torch.device | str | None = None) -> Iterator[None]:
    """Inside, float32 products are computed as ``setting`` says.

    "float32" takes all 24 bits of the operands. "tf32" allows a device that has units for it to round the
    operands of convolutions and products of matrices to 11 bits: NVIDIA GPUs of compute capability 8.0 and
    newer do, others and CPUs compute as with "float32". "tf32x3" makes a product of three such products, of
    the upper and lower parts of the operands, whose error is near that of float32: backend "cuda" does on
    units of that kind, every other one computes as with "float32". In all of them sums are in float32, and
    float64 is never rounded. Gradients have to be taken inside as well.

    The setting is the process's: what other threads compute meanwhile is computed by it too, and a thread
    that wants the other one for a GPU is refused. A setting may be nested in another one. What PyTorch's
    flags say inside is asked by their fp32_precision; the older torch.backends.cudnn.allow_tf32 may refuse to
    tell.

    Args:
        setting: "float32", "tf32" or "tf32x3".
        device: where; None for GPUs and the CPU.

    Raises:
        InputError: there is no such setting, or another thread has the other one.

    Example:
        >>> with oes.precision("float32"):
        ...     product = torch.rand(8, 8) @ torch.rand(8, 8)  # all bits, also on a GPU
    """
    check_choice("precision", setting, PRECISIONS)
    on_cpu = device is not None and torch.device(device).type == "cpu"
    with _cpu.hold(DEFAULT), contextlib.nullcontext() if on_cpu else _gpu.hold(setting):
        before: tuple[str, ...] = getattr(_of_thread, "settings", ())
        _of_thread.settings = (*before, setting)
        try:
            yield
        finally:
            _of_thread.settings = before


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``function`` computed as its argument ``precision`` says, on the device of its argument ``z``.

    Outside inference mode, so that gradients are there wherever it is called.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def computed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        given = signature.bind(*args, **kwargs).arguments
        device = getattr(given.get("z"), "device", None)
        with torch.inference_mode(False), precision(given.get("precision", DEFAULT), device=device):
            return function(*args, **kwargs)

    return computed
