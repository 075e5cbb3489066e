"""The masks that the images of a set share: given, or searched on some of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.autotune_cache import choices_put_back
from oes_fast.batch.job import COLOURS, Entry, MaskSearch, Options, SharedMask, Stopped, mask_path
from oes_fast.batch.restoring import Progress, digest_of_mask, going_on, measured
from oes_fast.batch.settings import EACH, FIRST, Settings
from oes_fast.errors import ImageWarning, InputError, MaskMismatchError, OESError
from oes_fast.flat import fingerprint
from oes_fast.io.image import load_image
from oes_fast.mask import Mask
from oes_fast.mask_notes import seed_of, with_network
from oes_fast.models.registry import network
from oes_fast.pipelines.search import search_mask
from oes_fast.pipelines.transfer import fresh_generator
from oes_fast.recipe import Recipe

_SIDE = 256  # of the image that networks are made for to be told apart
_SET = "set"  # setting of a mask: digest of the settings that it was searched with for a set
_LOOKED_AT = 10  # times the images to search on: so many are looked at for them
_LOOKED_AT_LEAST = 100


def given_masks(
    paths: Sequence[str | os.PathLike[str]], settings: Settings
) -> dict[int, tuple[Mask, SharedMask]]:
    """The masks in files by the number of channels that their networks give.

    Args:
        paths: of masks of ours or as they are published.
        settings: of the set: the network of masks that do not say theirs, and the seed to restore from.

    Raises:
        InputError: no such file, no mask, or two for one number of channels.
        MaskMismatchError: a mask is for no network of 1 or 3 channels.
    """
    found: dict[int, tuple[Mask, SharedMask]] = {}
    for path in paths:
        mask, channels = _given(Path(path), settings)
        if channels in found:
            raise InputError(f"{os.fspath(path)}: expected one mask for {COLOURS[channels]} images, got two")
        known = seed_of(mask)
        seed = settings.seed if settings.seed is not None else 0 if known is None else known + 1
        found[channels] = mask, SharedMask(channels, seed)
    return found


def _given(path: Path, settings: Settings) -> tuple[Mask, int]:
    named = Recipe(settings.model, settings.model_options)
    saved: Mask | None = None
    try:
        saved = Mask.load(path)
        recipe = saved.recipe or named
    except InputError as error:
        if not str(error).startswith("net:"):  # a published one, which does not tell its network
            raise
        recipe = named
    refusal: OESError | None = None
    for channels in sorted(COLOURS, reverse=True):
        net = _network(recipe, channels)
        if saved is not None and saved.fingerprint == fingerprint(net):
            return saved, channels
        if saved is None:
            try:
                return Mask.load(path, net), channels
            except MaskMismatchError as error:
                refusal = error
    of = refusal or f"one of {saved.fingerprint if saved is not None else ''}"
    raise MaskMismatchError(f"{path}: expected a mask of {recipe} for images of 1 or 3 channels, got {of}")


def _network(recipe: Recipe, channels: int) -> nn.Module:
    return network(recipe.name, (channels, _SIDE, _SIDE), device="meta", **recipe.options)


def keep_given(root: Path, masks: dict[int, tuple[Mask, SharedMask]]) -> None:
    """Write given masks to where the processes that restore look for them."""
    for mask, shared in masks.values():
        path = shared.path(root)
        if not path.exists() or digest_of_mask(Mask.load(path)) != digest_of_mask(mask):
            mask.save(path)


def found_masks(root: Path, settings: Settings) -> tuple[SharedMask, ...]:
    """Those that were searched for this set before.

    Raises:
        InputError: one was searched with other settings, or was put there by somebody.
    """
    found = []
    for channels in COLOURS if settings.search != EACH else ():
        path = mask_path(root, channels)
        if path.exists():
            if Mask.load(path).settings.get(_SET) != settings.search_digest:
                raise InputError(
                    f"{path}: expected the mask of this set, got another; without that file, it is searched "
                    "again"
                )
            found.append(SharedMask(channels, restore_seed(settings)))
    return tuple(found)


def restore_seed(settings: Settings) -> int:
    """Of the weights that images are restored from, where their mask is searched on some of them."""
    return (settings.seed or 0) + 1


def candidates(
    entries: Iterable[Entry], settings: Settings, channels: int | None = None
) -> tuple[list[Entry], int | None]:
    """The first images that can be read, as many as to search on, and all of as many channels.

    Args:
        entries: of the set, in order.
        settings: of the set.
        channels: of the images; None for those of the first.

    Returns:
        (images, fewer or none where there are no more; their number of channels).
    """
    wanted = 1 if settings.search in (FIRST, EACH) else int(settings.search)
    found: list[Entry] = []
    looks = max(_LOOKED_AT_LEAST, _LOOKED_AT * wanted)
    for entry in entries:
        count = _channels(entry, settings)
        if count is None:
            continue
        channels = count if channels is None else channels
        looks -= 1
        if count == channels:
            found.append(entry)
        if len(found) == wanted or looks <= 0:
            break
    return found, channels


def _channels(entry: Entry, settings: Settings) -> int | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        try:
            return load_image(entry.source, size=settings.size).pixels.shape[1]
        except (OESError, OSError):
            return None  # its own job says why


@choices_put_back()
def searched(job: MaskSearch, options: Options) -> dict[str, Any]:
    """Search a mask, or find it; figures of it.

    Several images are fitted by the one network, each from an input of its own, those of the seeds that
    follow. Of images of different sizes the middle is taken, as high and wide as all of them are.

    Raises:
        Stopped: before the end.
        OESError: an image is bad, or the mask cannot be written.
    """
    if job.path.exists():
        return {"density": Mask.load(job.path).density}
    settings, seed = job.settings, job.settings.seed or 0
    noise_seed = seed if settings.noise_seed is None else settings.noise_seed
    images = [load_image(entry.source, size=settings.size) for entry in job.entries]
    bad = [
        entry.source
        for entry, i in zip(job.entries, images, strict=True)
        if i.pixels.shape[1] != job.channels
    ]
    if bad:
        raise InputError(
            f"{bad[0]}: expected {job.channels} channels as when it was first read, got another number"
        )
    noisy = _middles([measured(i, settings.sigma, noise_seed + k) for k, i in enumerate(images)])
    clean = None if settings.sigma is None else _middles([image.pixels for image in images])
    noisy, clean = noisy.to(options.device), None if clean is None else clean.to(options.device)
    recipe = Recipe(settings.model, settings.model_options)
    net, z = fresh_generator(noisy[:1], model=recipe.name, options=recipe.options, seed=seed)
    more = [
        fresh_generator(noisy[:1], model=recipe.name, options=recipe.options, seed=seed + k)[1]
        for k in range(1, len(images))
    ]
    progress = Progress(job.name, job.work, options)
    checkpoint = job.work / "search.ckpt"
    inputs = torch.cat([z, *more])
    found = going_on(
        [checkpoint],
        lambda resume: search_mask(
            net, inputs, noisy, clean=clean, seed=seed, callback=progress, checkpoint=checkpoint,
            checkpoint_seconds=options.checkpoint_seconds, resume=resume, verify=options.verify,
            **settings.of_search(),
        ),
    )  # fmt: skip
    if found.interrupted or found.steps < settings.search_steps:
        raise Stopped
    noted = with_network(found.mask, recipe, seed)
    images_of_it = [entry.name for entry in job.entries]
    more_noted = {"searched_on": images_of_it, "seconds": progress.seconds, _SET: settings.search_digest}
    Mask(noted.flat, noted.fingerprint, {**noted.settings, **more_noted}).save(job.path)
    return {"density": found.mask.density, "seconds": progress.seconds}


def _middles(images: list[Tensor]) -> Tensor:
    """[N, C, H, W] of images [1, C, H, W], cut about their centres to the least height and width."""
    height, width = (min(image.shape[side] for image in images) for side in (2, 3))
    cut = []
    for image in images:
        top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
        cut.append(image[..., top : top + height, left : left + width])
    return torch.cat(cut).contiguous()
