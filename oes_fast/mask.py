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
from oes_fast.flat import FlatLayout, check_network
from oes_fast.io.files import check_readable, load_tensors, save_tensors
from oes_fast.io.published import PUBLISHED_SUFFIXES, read_published_mask
from oes_fast.named_masks import checked_bools, dict_of_flat, dict_of_pruned, flat_of_dict, prune_by
from oes_fast.recipe import Recipe
from oes_fast.reference.level_mask import drawn_mask, expected_level
from oes_fast.reference.philox import SHUFFLE, TIE_BREAK, random_bits, seeded_generator

_FORMAT = "oes_fast mask 1"
MODEL, MODEL_OPTIONS = "model", "model_options"  # settings: what the network was made from


@dataclass(frozen=True, eq=False)
class Mask:
    """Which weights of a network are kept.

    Attributes:
        flat: bool on the CPU, shape [number of parameters], in parameters() order.
        fingerprint: of the network it belongs to, see :attr:`oes_fast.flat.FlatLayout.fingerprint`.
        settings: what it was made with (seed, wanted density, search settings), for the record; of a network
            of :func:`oes_fast.models.generator`, also "model" and "model_options", which masks without them
            have as "skip" and none.

    Example:
        >>> net = torch.nn.Conv2d(2, 3, 3)  # 57 parameters
        >>> oes.Mask.from_flat(net, torch.arange(57) < 19).density
        0.3333333333333333
    """

    flat: Tensor
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe | None:
        """What the network it belongs to was made from, None where the settings do not say.

        Raises:
            InputError: the settings say what no mask was written with.
        """
        name, options = self.settings.get(MODEL), self.settings.get(MODEL_OPTIONS, {})
        if name is None:
            return None
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise InputError(f"mask: expected settings with a name as {MODEL}, got {name!r} and {options!r}")
        return Recipe(name, options)

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
        flat = checked_bools("bools", bools).reshape(-1)
        if flat.numel() != layout.numel:
            raise InputError(
                f"bools: expected {layout.numel} elements, one for each parameter, got {flat.numel()}"
            )
        return made_for(net, flat, settings)

    @classmethod
    def from_dict(cls, net: nn.Module, masks: Mapping[str, Tensor], **settings: Any) -> Mask:
        """A mask for ``net`` from a mask for each of its parameters; the inverse of :meth:`to_dict`.

        Args:
            net: the network it is for.
            masks: by the parameters' names; bool, or numbers of any real dtype that are all 0 or 1, each in
                the shape of its parameter, on any device.
            **settings: kept with the mask.

        Raises:
            InputError: a name is missing or not one of the network's, a shape is not the parameter's, or
                there are values other than 0 and 1.
        """
        return made_for(net, flat_of_dict(net, masks), settings)

    @classmethod
    def from_prune(cls, pruned: nn.Module, net: nn.Module | None = None, **settings: Any) -> Mask:
        """What torch.nn.utils.prune keeps of a network; parameters that were never pruned are kept.

        torch moves a parameter that it prunes behind the others of its layer, so that a pruned network and
        one that never was have their parameters in different orders: name the network that the mask is for.

        Args:
            pruned: a network with masks of torch.nn.utils.prune; left alone.
            net: the network the mask is for, with the parameters of ``pruned`` by name, such as a fresh one
                of the same class; None for ``pruned`` itself.
            **settings: kept with the mask.

        Raises:
            InputError: ``net`` has other parameters, a mask of torch's holds values other than 0 and 1, or a
                parameter used in several places is pruned in different ways there.
        """
        masks = dict_of_pruned(pruned)
        return cls.from_dict(pruned if net is None else check_network(net), masks, **settings)

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
        return made_for(net, flat, {"density": density, "seed": seed, **settings})

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

    def shuffled(self, net: nn.Module, *, seed: int = 0) -> Mask:
        """A random mask with the density of this one in every parameter tensor: the baseline to beat."""
        self.check(net)
        generator = seeded_generator(check_integer("seed", seed, minimum=0, below=2**64), SHUFFLE)
        pieces = self.flat.split(FlatLayout.of(net).sizes)
        orders = [torch.randperm(p.numel(), generator=generator, device="cpu") for p in pieces]
        flat = torch.cat([p[order] for p, order in zip(pieces, orders, strict=True)])
        return made_for(net, flat, {"source": "shuffled", "seed": seed})

    def check(self, net: nn.Module) -> None:
        """Raise :class:`MaskMismatchError` unless the mask belongs to ``net``."""
        self._check(net, "mask")

    def _check(self, net: nn.Module, name: object) -> None:
        wanted = FlatLayout.of(net).fingerprint
        if wanted != self.fingerprint:
            raise MaskMismatchError(
                f"{name}: made for the network {self.fingerprint}, used with the network {wanted}"
            )

    def layer_density(self, net: nn.Module) -> dict[str, float]:
        """Density within each parameter tensor of ``net``, by name."""
        self.check(net)
        return {
            name: view.float().mean().item() for name, view in FlatLayout.of(net).views(self.flat).items()
        }

    def to_dict(self, net: nn.Module) -> dict[str, Tensor]:
        """A mask for each parameter of ``net`` by name: bool on the CPU in the parameter's shape, copies.

        Names are those before torch.nn.utils.prune added "_orig" to them.

        Raises:
            MaskMismatchError: the mask belongs to another network.
        """
        self.check(net)
        return dict_of_flat(net, self.flat)

    def apply_prune(self, net: nn.Module) -> None:
        """Prune ``net`` by torch.nn.utils.prune.custom_from_mask, wherever the mask drops a weight.

        Layers then multiply their parameters by the mask in every call, and the dense network trains what the
        mask keeps. Parameters kept whole are left as they are; their order stays that of the network, so that
        the mask belongs to it afterwards as well.

        Args:
            net: the network the mask is for; changed in place.

        Raises:
            MaskMismatchError: the mask belongs to another network.
            InputError: a parameter is pruned already, or is held by a list or dict of parameters, for which
                torch has no pruning.
        """
        self.check(net)
        prune_by(net, self.to_dict(net))

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
    def load(cls, path: str | os.PathLike[str], net: nn.Module | None = None) -> Mask:
        """Read a mask from a file; nothing in it is executed.

        Args:
            path: what :meth:`save` wrote; or a mask as it is published: a tensor that was pickled or written
                by torch.save (.pkl, .pt), or an .npz of arrays ``bits``, packed by numpy.packbits in
                parameters() order, and ``count``, their number.
            net: the network the mask is for; needed for published masks, which do not tell.

        Raises:
            InputError: no such file, not a mask, or a published one without ``net``.
            MaskMismatchError: the mask belongs to another network than ``net``.
        """
        if _is_published(path):
            return cls._published(path, net)
        mask = cls._saved(path)
        if net is not None:
            mask._check(net, path)
        return mask

    @classmethod
    def from_published(cls, net: nn.Module, path: str | os.PathLike[str]) -> Mask:
        """:meth:`load` of a file in a published format alone: what :meth:`save` wrote is refused.

        Args:
            net: the network the mask is for.
            path: see :meth:`load`.

        Raises:
            InputError: no such file, or not a published mask.
            MaskMismatchError: the mask belongs to another network than ``net``.
        """
        return cls._published(path, net)

    @classmethod
    def _published(cls, path: str | os.PathLike[str], net: nn.Module | None) -> Mask:
        flat = read_published_mask(path)
        if net is None:
            raise InputError(
                f"net: expected the network that the mask is for, which {path} does not tell, got None"
            )
        layout = FlatLayout.of(net)
        if flat.numel() != layout.numel:
            raise MaskMismatchError(
                f"{path}: a mask of {flat.numel()} elements, the network has {layout.numel} parameters "
                f"({layout.fingerprint})"
            )
        return cls(flat, layout.fingerprint, {"source": os.path.basename(path)})

    @classmethod
    def _saved(cls, path: str | os.PathLike[str]) -> Mask:
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


def made_for(net: nn.Module, flat: Tensor, settings: Mapping[str, Any]) -> Mask:
    """The mask ``flat`` for ``net``, with what the network was made from among its settings."""
    return Mask(flat, FlatLayout.of(net).fingerprint, {**record_of(net), **settings})


def record_of(net: nn.Module) -> dict[str, Any]:
    """Settings that say what ``net`` was made from; none of the default network and of others' own."""
    recipe = getattr(net, "recipe", None)
    if not isinstance(recipe, Recipe) or recipe == Recipe("skip"):
        return {}
    return {MODEL: recipe.name, MODEL_OPTIONS: dict(recipe.options)}


def _draw(net: nn.Module, logits: Tensor, seed: int, draw: int) -> Tensor:
    """Levels [n] of one drawn mask, on the CPU: on a GPU a logarithm may differ in its last bit."""
    check_logits(logits, numel=FlatLayout.of(net).numel, finite=True)
    check_integer("seed", seed, minimum=0, below=2**64)
    check_integer("draw", draw, minimum=0, below=2**32)
    return drawn_mask(logits.detach().cpu(), seed=seed, draw=draw)


def _is_published(path: str | os.PathLike[str]) -> bool:
    """Whether a file is to be read as one of the published code: by its first bytes, or a pickle's suffix."""
    file = check_readable(path)
    try:
        with file.open("rb") as opened:
            head = opened.read(9)
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror or error}") from error
    if head[8:] == b"{":  # a safetensors header, after the eight bytes of its length
        return False
    return head.startswith((b"PK", b"\x80")) or file.suffix in PUBLISHED_SUFFIXES
