"""Masks over the parameters of a network, and the files they are kept in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oes_fast._checks import check_integer, check_logits, check_number
from oes_fast.errors import InputError, MaskMismatchError
from oes_fast.flat import FlatLayout
from oes_fast.io.files import load_tensors, save_tensors
from oes_fast.io.published import read_published_mask
from oes_fast.reference.level_mask import drawn_mask, expected_level
from oes_fast.reference.philox import SHUFFLE, TIE_BREAK, random_bits, seeded_generator

_FORMAT = "oes_fast mask 1"


@dataclass(frozen=True, eq=False)
class Mask:
    """Which weights of a network are kept.

    Attributes:
        flat: bool on the CPU, shape [number of parameters], in parameters() order.
        fingerprint: of the network it belongs to, see :attr:`oes_fast.flat.FlatLayout.fingerprint`.
        settings: what it was made with (seed, wanted density, search settings), for the record.

    Example:
        >>> net = torch.nn.Conv2d(2, 3, 3)  # 57 parameters
        >>> oes.Mask.from_flat(net, torch.arange(57) < 19).density
        0.3333333333333333
    """

    flat: Tensor
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return int(self.flat.sum())

    @property
    def density(self) -> float:
        """Share of the weights kept."""
        return self.kept / self.flat.numel()

    def __repr__(self) -> str:
        return (
            f"Mask({self.kept} of {self.flat.numel()} kept, {100 * self.density:.3g} %, {self.fingerprint})"
        )

    @classmethod
    def from_flat(cls, net: nn.Module, bools: Tensor | np.ndarray | Sequence[bool], **settings: Any) -> Mask:
        """A mask for ``net`` from booleans in parameters() order.

        Args:
            net: the network it is for.
            bools: bool, or numbers that are all 0 or 1, one for each parameter element; any shape.
            **settings: kept with the mask.

        Raises:
            InputError: another number of elements than the network has, or values other than 0 and 1.
        """
        layout = FlatLayout.of(net)
        flat = _tensor_of(bools).detach().cpu().reshape(-1)
        if flat.numel() != layout.numel:
            raise InputError(
                f"bools: expected {layout.numel} elements, one for each parameter, got {flat.numel()}"
            )
        if flat.dtype != torch.bool:
            if not bool(((flat == 0) | (flat == 1)).all()):
                raise InputError("bools: expected only 0 and 1, got other values")
            flat = flat.bool()
        return cls(flat.clone(), layout.fingerprint, settings)

    @classmethod
    def from_logits(
        cls, net: nn.Module, logits: Tensor, density: float, *, seed: int = 0, **settings: Any
    ) -> Mask:
        """Keep the int(density * n) largest logits over all parameters together (published as "det").

        Equal logits at the threshold are chosen among by the Philox stream ``TIE_BREAK`` of the seed. Where a
        mask has q > 2 levels, the weights of the largest expected level are kept.

        Args:
            net: the network the mask is for.
            logits: s, shape [n] or [q - 1, n], finite.
            density: share to keep, in (0, 1].
            seed: of the tie-break.
            **settings: kept with the mask.

        Raises:
            InputError: wrong length, NaN, or a density that keeps nothing.
        """
        layout = FlatLayout.of(net)
        check_logits(logits, numel=layout.numel, finite=True)
        check_number("density", density, above=0.0, maximum=1.0)
        keep = int(density * layout.numel)
        if keep == 0:
            raise InputError(
                f"density: expected to keep one weight of {layout.numel} at least, got {density}"
            )
        logits = logits.detach().cpu()
        if logits.ndim == 2:
            logits = expected_level(logits)
        threshold = torch.topk(logits, keep).values[-1]
        flat = logits > threshold
        ties = torch.nonzero(logits == threshold).flatten()
        bits = random_bits(
            check_integer("seed", seed, minimum=0, below=2**64),
            0,
            layout.numel,
            stream=TIE_BREAK,
            device="cpu",
        )
        order = torch.argsort(bits[ties], stable=True)
        flat[ties[order[: keep - int(flat.sum())]]] = True
        return cls(flat, layout.fingerprint, {"density": density, "seed": seed, **settings})

    @classmethod
    def drawn(cls, net: nn.Module, logits: Tensor, *, seed: int = 0, draw: int = 0, **settings: Any) -> Mask:
        """One mask drawn from the probabilities (published as "single", where the draw is a relaxed one).

        Each weight is kept with probability sigmoid(s), whatever density that comes to; where a mask has
        q > 2 levels, with that of a level above 0. See :func:`oes_fast.reference.drawn_mask`.

        Args:
            net: the network the mask is for.
            logits: s, shape [n] or [q - 1, n], finite.
            seed: of the draws.
            draw: which of them, in [0, 2^32).
            **settings: kept with the mask.

        Raises:
            InputError: wrong length, NaN, or a number out of range.
        """
        level = _draw(net, logits, seed, draw)
        return cls.from_flat(net, level > 0, mask_option="drawn", seed=seed, draw=draw, **settings)

    @classmethod
    def from_draws(
        cls,
        net: nn.Module,
        logits: Tensor,
        density: float,
        *,
        seed: int = 0,
        draws: int = 10,
        **settings: Any,
    ) -> Mask:
        """Keep the int(density * n) weights whose mean over many drawn masks is largest.

        The masks are those of :meth:`drawn`; weights kept equally often are chosen among as in
        :meth:`from_logits`.

        Args:
            net: the network the mask is for.
            logits: s, shape [n] or [q - 1, n], finite.
            density: share to keep, in (0, 1].
            seed: of the draws and the tie-break.
            draws: how many, >= 1.
            **settings: kept with the mask.

        Raises:
            InputError: wrong length, NaN, or a density that keeps nothing.
        """
        check_integer("draws", draws, minimum=1, below=2**32)
        mean = _draw(net, logits, seed, 0)
        for draw in range(1, draws):
            mean += _draw(net, logits, seed, draw)
        mean /= draws
        return cls.from_logits(
            net, mean, density, seed=seed, **{"mask_option": "mean", "draws": draws, **settings}
        )

    @classmethod
    def from_published(cls, net: nn.Module, path: str | os.PathLike[str]) -> Mask:
        """A mask that the published code pickled, read without executing anything in the file.

        Raises:
            InputError: no such file, not a pickled tensor, or another number of elements than ``net`` has.
        """
        flat = read_published_mask(path)
        layout = FlatLayout.of(net)
        if flat.numel() != layout.numel:
            raise MaskMismatchError(
                f"{path}: a mask of {flat.numel()} elements, the network has {layout.numel} parameters "
                f"({layout.fingerprint})"
            )
        return cls(flat, layout.fingerprint, {"source": os.path.basename(path)})

    def shuffled(self, net: nn.Module, *, seed: int = 0) -> Mask:
        """A random mask with the density of this one in every parameter tensor: the baseline to beat."""
        self.check(net)
        generator = seeded_generator(check_integer("seed", seed, minimum=0, below=2**64), SHUFFLE)
        pieces = self.flat.split(FlatLayout.of(net).sizes)
        orders = [torch.randperm(p.numel(), generator=generator, device="cpu") for p in pieces]
        flat = torch.cat([p[order] for p, order in zip(pieces, orders, strict=True)])
        return Mask(flat, self.fingerprint, {"source": "shuffled", "seed": seed})

    def check(self, net: nn.Module) -> None:
        """Raise :class:`MaskMismatchError` unless the mask belongs to ``net``."""
        wanted = FlatLayout.of(net).fingerprint
        if wanted != self.fingerprint:
            raise MaskMismatchError(
                f"mask: made for the network {self.fingerprint}, used with the network {wanted}"
            )

    def layer_density(self, net: nn.Module) -> dict[str, float]:
        """Density within each parameter tensor of ``net``, by name."""
        self.check(net)
        return {
            name: view.float().mean().item() for name, view in FlatLayout.of(net).views(self.flat).items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: bits packed eight to a byte, the rest as metadata.

        Raises:
            OutputError: the file cannot be written; an older file of that name is left as it was.
        """
        bits = torch.from_numpy(np.packbits(self.flat.numpy()))
        metadata = {
            "format": _FORMAT,
            "count": self.flat.numel(),
            "density": self.density,
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
        }
        save_tensors(path, {"bits": bits}, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mask:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: no such file, or not a mask.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != _FORMAT or "bits" not in tensors:
            raise InputError(
                f"{path}: expected a mask file ({_FORMAT}), got {metadata.get('format', 'another file')}"
            )
        count, settings = metadata.get("count"), metadata.get("settings")
        fingerprint = metadata.get("fingerprint")
        if not isinstance(count, int) or not isinstance(settings, dict) or not isinstance(fingerprint, str):
            raise InputError(f"{path}: expected a mask file, got one without count, fingerprint or settings")
        if not fingerprint.startswith(f"{count}-"):
            raise InputError(f"{path}: expected a mask of the network {fingerprint}, got {count} elements")
        bits = tensors["bits"]
        if bits.dtype != torch.uint8 or bits.numel() != (count + 7) // 8:
            raise InputError(
                f"{path}: expected {(count + 7) // 8} bytes of mask, got {bits.numel()} {bits.dtype}"
            )
        flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=count)).bool()
        return cls(flat, fingerprint, settings)


def _draw(net: nn.Module, logits: Tensor, seed: int, draw: int) -> Tensor:
    """Levels [n] of one drawn mask, on the CPU: on a GPU a logarithm may differ in its last bit."""
    check_logits(logits, numel=FlatLayout.of(net).numel, finite=True)
    check_integer("seed", seed, minimum=0, below=2**64)
    check_integer("draw", draw, minimum=0, below=2**32)
    return drawn_mask(logits.detach().cpu(), seed=seed, draw=draw)


def _tensor_of(bools: Tensor | np.ndarray | Sequence[bool]) -> Tensor:
    if isinstance(bools, Tensor):
        return bools
    try:
        array = np.array(bools)
    except ValueError as error:
        raise InputError(f"bools: expected one boolean for each parameter, got {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"bools: expected booleans, got {type(bools).__name__} of {array.dtype}")
    return torch.from_numpy(array if array.dtype.kind == "b" else array.astype(np.float64))
