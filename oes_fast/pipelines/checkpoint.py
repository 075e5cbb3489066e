"""Checkpoints: a run killed at any moment goes on from its last and ends bit for bit where it would have."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_number
from oes_fast.autotune_cache import choices_in_use, take_choices
from oes_fast.errors import CheckpointError, CheckpointWarning, InputError, OESError, warn_caller
from oes_fast.flat import fingerprint, fixed_parameters
from oes_fast.io.files import check_writable, free_name, load_metadata, load_tensors, save_tensors, set_aside
from oes_fast.pipelines.differences import compare
from oes_fast.pipelines.environment import differences as differences_of
from oes_fast.pipelines.environment import environment
from oes_fast.pipelines.optimizer_state import STATE

_FORMAT = "oes_fast checkpoint 1"
_RETRY_SECONDS = 1.0  # from a save that failed to the next, where the interval is shorter
_LARGE = ": gradients are too large, by a large kl or weights; smaller ones may help"
_HINTS = {
    "weights": ": a lower learning rate may help",
    "logits": ": a lower learning rate may help",
    "exp_avg": _LARGE,
    "exp_avg_sq": _LARGE,
}


class Checkpoint:
    """The checkpoint file of one run.

    Args:
        path: safetensors file, or None for none.
        settings: everything the result depends on but the number of steps, as JSON values. A checkpoint of
            other settings is refused.
        steps: that the run is to make; a checkpoint of so many is one of a finished run.
        every_seconds: time between two saves.
        resume: go on from the file where it exists; without, see :func:`keep_unfinished`.
        words: what to say of settings that are hashes, by their key: "512 x 512 pixels".
        device: that the run computes on.

    Raises:
        OutputError: the file's folder cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        *,
        steps: int,
        every_seconds: float = 60.0,
        resume: bool = False,
        words: Mapping[str, str] | None = None,
        device: torch.device | None = None,
    ) -> None:
        if resume and path is None:
            raise InputError("resume: expected a checkpoint to go on from, got checkpoint=None")
        if path is not None and not isinstance(path, str | os.PathLike):
            raise InputError(f"checkpoint: expected a file name or None, got {type(path).__name__}")
        self.path = path
        self.settings = dict(settings)
        self.steps = steps
        self.every_seconds = check_number("checkpoint_seconds", every_seconds, minimum=0.0)
        self.resume = resume
        self.words = dict(words or {})
        self.device = torch.device("cpu") if device is None else device
        self._due_at = time.monotonic() + self.every_seconds
        self._choices: dict[str, Any] = {}  # of the run that is resumed
        if path is not None:
            check_writable(path)

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """(step, state) to go on from, or None to start afresh, with the file that is there set aside.

        Raises:
            CheckpointError: the file is no complete checkpoint, or one of a run with other settings.
            OutputError: it cannot be set aside.
        """
        if self.path is None:
            return None
        if not self.resume:
            keep_unfinished([self.path])
            return None
        if not os.path.exists(self.path):
            return None
        tensors, metadata = self._read(self.path)
        self._check_settings(metadata, metadata["settings"])
        choices = metadata.get("choices")
        self._choices = choices if isinstance(choices, dict) else {}
        self._warn_of_environment(metadata.get("environment"))
        return metadata["step"], tensors

    def check(self, unknown: Collection[str] | None) -> None:
        """Refuse a file that :meth:`load` refuses, before all settings of the run are known.

        Args:
            unknown: settings that are not; None for all that are not here.

        Raises:
            CheckpointError: see :meth:`load`; or its step is beyond those that the run is to make.
        """
        if self.path is None or not self.resume or not os.path.exists(self.path):
            return
        _, metadata = self._read(self.path)
        found = metadata["settings"]
        known = [key for key in found if (key in self.settings if unknown is None else key not in unknown)]
        self._check_settings(metadata, {key: found[key] for key in known})
        self.check_step(metadata["step"], self.steps)

    def check_step(self, step: int, steps: int) -> None:
        """Raise :class:`CheckpointError` where ``step``, that of the file, is beyond ``steps``."""
        if step > steps:
            raise CheckpointError(
                f"{self.path}: the checkpoint is at step {step}, beyond the {steps} asked for", path=self.path
            )

    def _read(self, path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, metadata) of a complete checkpoint."""
        try:
            tensors, metadata = load_tensors(path)
        except InputError as error:
            raise CheckpointError(str(error), path=path) from error
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: expected a checkpoint ({_FORMAT}), got another file", path=path)
        step, settings = metadata.get("step"), metadata.get("settings")
        if not isinstance(step, int) or not isinstance(settings, dict) or "history" not in tensors:
            raise CheckpointError(f"{path}: expected a checkpoint with step, settings and history", path=path)
        if "digest" in metadata and metadata["digest"] != _digest_of(tensors):
            raise CheckpointError(f"{path}: the checkpoint is damaged: its contents have changed", path=path)
        return tensors, metadata

    def _check_settings(self, metadata: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Raise :class:`CheckpointError` where ``found`` are settings of another run."""
        differences = compare(found, self.settings, metadata.get("words"), self.words)
        if differences:
            clauses = "; ".join(difference.clause() for difference in differences)
            raise CheckpointError(
                f"{self.path}: the checkpoint was made {clauses}", path=self.path, differences=differences
            )

    def _warn_of_environment(self, made_in: object) -> None:
        if isinstance(made_in, dict) and (other := differences_of(made_in, environment(self.device))):
            warn_caller(
                f"{self.path}: the checkpoint was made with {', '.join(other)}: the run goes on from it, but "
                "may end with other bits than a run without a break: rounding differs, training amplifies it",
                CheckpointWarning,
            )

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.path is not None and time.monotonic() >= self._due_at

    def save(self, step: int, state: Mapping[str, Tensor], *, complete: bool = False) -> None:
        """Write the state before step ``step``; the file before it stays until the new one is whole.

        Args:
            step: updates made.
            state: tensors by name.
            complete: a stopping rule has ended the run: it is finished, whatever steps it was to make.

        Raises:
            OESError: the state holds NaN or infinity, so nothing could go on from it; nothing is written.
            OutputError: the file cannot be written.
        """
        if self.path is None:
            return
        metadata = {
            "format": _FORMAT,
            "step": step,
            "steps": self.steps,
            "settings": self.settings,
            "words": self.words,
            "environment": environment(self.device),
            "choices": choices_in_use() | self._choices,
            **({"complete": True} if complete else {}),
        }
        wait = max(self.every_seconds, _RETRY_SECONDS)
        try:
            for name, tensor in state.items():
                # Buffers of the network may hold infinity from the start, as masks of attention do.
                other = name.startswith(("buffer.", STATE))  # an optimiser may hold one as the lowest loss
                bad = tensor.isnan() if other else ~torch.isfinite(tensor)
                if name != "history" and bool(bad.any()):
                    phase = self.settings.get("phase", "run")
                    raise OESError(
                        f"{phase}: the state ({name}) is no longer finite at step {step}"
                        f"{_HINTS.get(name, '')}. {self.path} is left as it was"
                    )
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
            save_tensors(self.path, tensors, metadata | {"digest": _digest_of(tensors)})
            wait = self.every_seconds
        finally:  # what fails now fails at the next step: it is tried, and said, again after an interval
            self._due_at = time.monotonic() + wait


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    return digest(*(tensors[name] for name in sorted(tensors)))


def keep_unfinished(paths: Iterable[str | os.PathLike[str]], folder: Path | None = None) -> None:
    """Set aside what a run that starts afresh would overwrite, where it is not that of a finished run.

    The files of one run are kept together: all of them, unless all are there and finished. Each is given
    another name, "run.old.ckpt" or "run.old2.ckpt", or keeps its own in a folder of such a name, and a
    :class:`CheckpointWarning` says so.

    Args:
        paths: of the files, as a run keeps one in each of its phases or for each of its images.
        folder: whose free name is that of the folder they go to; None for names of their own.

    Raises:
        OutputError: one cannot be renamed.
    """
    found = [Path(path) for path in paths]
    # A pipe or device has nothing to lose. A folder is refused where it would be written to.
    there = [path for path in found if path.is_file()]
    if len(there) == len(found) and all(map(finished, there)):
        return
    into = None if folder is None or not there else free_name(folder)
    for path in there:
        said = describe_file(path)
        new = set_aside(path, None if into is None else into / path.name)
        warn_caller(
            f"{path}: {said}, set aside as {new}: without resume=True the run starts afresh",
            CheckpointWarning,
        )


def finished(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the checkpoint of a run that has made all its steps, or that its rule has ended."""
    try:
        metadata = load_metadata(path)
    except InputError:
        return False
    step = metadata.get("step")
    if metadata.get("format") != _FORMAT or step is None:
        return False
    return metadata.get("complete") is True or step == metadata.get("steps")


def describe_file(path: str | os.PathLike[str]) -> str:
    """What a file is, to follow its name: "the checkpoint of step 20 of an unfinished run"."""
    step = checkpoint_step(path)
    if step is None:
        return "no checkpoint that can be read"
    return f"the checkpoint of step {step} of {'a finished' if finished(path) else 'an unfinished'} run"


def take_checkpoint_choices(path: str | os.PathLike[str] | None, *, resume: bool) -> None:
    """Choose between algorithms as the run did that is to be resumed, whatever would be measured now.

    To be called before the network is bound. A file that cannot be read is left to :meth:`Checkpoint.load`.
    """
    take_choices(checkpoint_choices(path, resume=resume))


def checkpoint_choices(path: str | os.PathLike[str] | None, *, resume: bool) -> dict[str, Any]:
    """The choices between algorithms of the run that is to be resumed; none where there is no such run."""
    if path is None or not resume or not os.path.exists(path):
        return {}
    with suppress(InputError):
        metadata = load_metadata(path)
        choices = metadata.get("choices")
        if metadata.get("format") == _FORMAT and isinstance(choices, dict):
            return choices
    return {}


def checkpoint_step(path: str | os.PathLike[str]) -> int | None:
    """The step a checkpoint is at; None if there is none, or it cannot be read."""
    try:
        metadata = load_metadata(path)
    except InputError:
        return None
    step = metadata.get("step")
    return step if metadata.get("format") == _FORMAT and isinstance(step, int) else None


def network_digest(net: nn.Module) -> str:
    """The network's fingerprint and 8 hex digits of the SHA-256 of its layers, in which options show.

    Of a network that holds some parameters fixed, their names are in the hash as well.
    """
    text = f"{net!r}{fixed_parameters(net) or ''}"
    return f"{fingerprint(net)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def digest(*tensors: Tensor) -> str:
    """First 16 hex digits of the SHA-256 of the tensors' shapes, dtypes and contents."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
