"""Checkpoints: a run killed at any moment goes on from its last and ends bit for bit where it would have."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_number
from oes_fast.errors import CheckpointError, InputError, OESError
from oes_fast.files import check_writable, load_tensors, save_tensors
from oes_fast.flat import fingerprint

_FORMAT = "oes_fast checkpoint 1"
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
        every_seconds: time between two saves.
        resume: go on from the file where it exists; without, an existing file is overwritten.

    Raises:
        OutputError: the file's folder cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        *,
        every_seconds: float = 60.0,
        resume: bool = False,
    ) -> None:
        if resume and path is None:
            raise InputError("resume: expected a checkpoint to go on from, got checkpoint=None")
        self.path = path
        self.settings = dict(settings)
        self.every_seconds = check_number("checkpoint_seconds", every_seconds, minimum=0.0)
        self.resume = resume
        self._saved_at = time.monotonic()
        if path is not None:
            check_writable(path)

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """(step, state) to go on from, or None to start afresh.

        Raises:
            CheckpointError: the file is no complete checkpoint, or one of a run with other settings.
        """
        if self.path is None or not self.resume or not os.path.exists(self.path):
            return None
        try:
            tensors, metadata = load_tensors(self.path)
        except InputError as error:
            raise CheckpointError(str(error)) from error
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{self.path}: expected a checkpoint ({_FORMAT}), got another file")
        step, settings = metadata.get("step"), metadata.get("settings")
        if not isinstance(step, int) or not isinstance(settings, dict) or "history" not in tensors:
            raise CheckpointError(f"{self.path}: expected a checkpoint with step, settings and history")
        for key, wanted in self.settings.items():
            found = settings.get(key)
            if found != wanted:
                raise CheckpointError(
                    f"{self.path}: the checkpoint was made with {key} = {found}, this run has {wanted}"
                )
        return step, tensors

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.path is not None and time.monotonic() - self._saved_at >= self.every_seconds

    def save(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Write the state before step ``step``; the file before it stays until the new one is whole.

        Raises:
            OESError: the state holds NaN or infinity, so nothing could go on from it; nothing is written.
            OutputError: the file cannot be written.
        """
        if self.path is None:
            return
        for name, tensor in state.items():
            # Buffers of the network may hold infinity from the start, as masks of attention do.
            bad = tensor.isnan() if name.startswith("buffer.") else ~torch.isfinite(tensor)
            if name != "history" and bool(bad.any()):
                self._saved_at = time.monotonic()  # the next try is an interval away, as is its warning
                raise OESError(
                    f"{self.settings.get('phase', 'run')}: the state ({name}) is no longer finite at step "
                    f"{step}{_HINTS.get(name, '')}. {self.path} is left as it was"
                )
        metadata = {"format": _FORMAT, "step": step, "settings": self.settings}
        save_tensors(
            self.path, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, metadata
        )
        self._saved_at = time.monotonic()


def network_digest(net: nn.Module) -> str:
    """The network's fingerprint and 8 hex digits of the SHA-256 of its layers, in which options show."""
    return f"{fingerprint(net)}-{hashlib.sha256(repr(net).encode()).hexdigest()[:8]}"


def digest(*tensors: Tensor) -> str:
    """First 16 hex digits of the SHA-256 of the tensors' shapes, dtypes and contents."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
