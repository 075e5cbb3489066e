"""A whole set of images, from what is listed to its summary; what is done is kept, what is missing is run."""

from __future__ import annotations

import csv
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from oes_fast._checks import check_flag, check_number
from oes_fast.batch import local, summary
from oes_fast.batch.arguments import check_arguments, results_folder
from oes_fast.batch.entries import MANIFEST, SUMMARY, Listing
from oes_fast.batch.job import (
    COLOURS,
    DONE,
    FAILED,
    SPREAD,
    UNFINISHED,
    UNMASKED,
    Entry,
    Job,
    MaskSearch,
    Options,
    Outcome,
    SharedMask,
    mask_path,
)
from oes_fast.batch.manifest import RUNNING, WAITING, Manifest
from oes_fast.batch.masks import candidates, found_masks, given_masks, keep_given, restore_seed
from oes_fast.batch.restoring import digest_of_mask
from oes_fast.batch.run import stamp_of
from oes_fast.batch.settings import EACH, Settings
from oes_fast.batch.watching import Engine, Watcher
from oes_fast.errors import InputError, OESError, OESWarning, OutputError, warn_caller
from oes_fast.io.files import real_path
from oes_fast.io.locks import Busy, RunLocks
from oes_fast.pipelines.differences import Difference

_SHOWN = 20  # failures that the result tells of
_NO_MASK = SharedMask(0, 0)  # fits no image: each that can be read waits for one


@dataclass(frozen=True)
class Batch:
    """What :func:`restore_all` returns.

    Attributes:
        folder: of the results.
        counts: number of images "done", "failed" and "waiting".
        means: over the images that are done: "psnr_noisy", "psnr", "psnr_lowest" and "psnr_highest" in dB,
            None where there is no clean image, and "seconds", their sum.
        failures: name and reason of the first that failed.
        left_out: files in folders whose names are not those of images.
        files: what was written of the whole set, by kind.
        interrupted: whether the set was stopped before its end.
        seconds: time this call took.
    """

    folder: Path
    counts: dict[str, int]
    means: dict[str, Any]
    failures: list[tuple[str, str]]
    left_out: int
    files: dict[str, Path]
    interrupted: bool
    seconds: float

    def lines(self) -> Iterator[dict[str, str]]:
        """The lines of batch.csv, one at a time, by the names of their columns."""
        with self.files["csv"].open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def restore_all(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    masks: Sequence[str | os.PathLike[str]] = (),
    recursive: bool = False,
    clean: str | os.PathLike[str] | None = None,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    verify: bool = True,
    checkpoint_seconds: float = 60.0,
    retry_failed: bool = False,
    engine: Engine | None = None,
    watcher: Watcher | None = None,
    stopping: Callable[[], bool] | None = None,
) -> Batch:
    """Restore every image of a set, with one mask or a mask each.

    Each image is restored as :func:`oes_fast.transfer_mask` does it, with a mask that is given or is searched
    on the first images; or, with "each", by a search and a training of its own, as `oes-fast denoise` does.
    Its results lie in ``folder``, at its path below the source: NAME.png and NAME.json, with "each"
    NAME_mask.safetensors, and with several runs NAME_spread.png and NAME_spread.npy. Of the whole set there
    are batch.csv, batch.json, batch_mask_rgb.safetensors or batch_mask_grey.safetensors, and batch.sqlite,
    the manifest, which is written as the set goes on.

    A second call with the same folder does what is missing: whatever was killed, no image is restored twice,
    and those that were under way go on from their checkpoints, bit for bit. It takes images that were added,
    and restores again those whose file or clean image has changed. Other settings are refused. A bad image is
    reported, and the others go on.

    Args:
        sources: see :class:`oes_fast.batch.Listing`.
        folder: of the results, made where there is none.
        settings: how to restore, None for those of the paper.
        masks: files of masks to use, one for each number of channels; none to search.
        recursive: take images in folders within folders.
        clean: folder of clean images, to measure the PSNR against.
        workers: images at once, each in a process of its own where there is more than one. As always with
            processes, a script must then call this under ``if __name__ == "__main__":``.
        threads: CPU threads of each; None for the cores divided by ``workers``, and with one worker for what
            torch has.
        device: to compute on.
        verify: compare the rewritten network with the dense one, once for each mask and size of image.
        checkpoint_seconds: time between two checkpoints of an image.
        retry_failed: try images again that failed in an earlier call.
        engine: what runs the jobs, None for this machine; ``workers`` and ``threads`` are its own then.
        watcher: is told how it goes on.
        stopping: asked after every step; true ends the set after the steps under way, as Ctrl-C does.

    Returns:
        :class:`Batch`, also where images failed or the set was stopped.

    Raises:
        InputError: an argument does not fit; two images would write one result; the folder has results of
            other settings; another process restores into it.
        OutputError: the folder cannot be written to, or the disk is full.
        OESError: the search for a mask failed; the GPU does nothing more for this process; or workers cannot
            start.
    """
    began = time.monotonic()
    settings = settings or Settings()
    check_arguments(settings, masks, workers, threads, here=engine is None)
    options = Options(
        device=str(device),
        verify=check_flag("verify", verify),
        checkpoint_seconds=check_number("checkpoint_seconds", checkpoint_seconds, minimum=0.0),
    )
    root = results_folder(folder)
    listing = Listing(sources, root, suffix=f".{settings.format}", recursive=recursive, clean=clean)
    try:
        locks = RunLocks([real_path(root / MANIFEST)])
    except Busy as error:
        raise InputError(f"{error}; wait for it to end, or give this set another folder (-o)") from None
    try:
        for at, reason in locks.missing.items():
            warn_caller(
                f"{at}: files cannot be locked here ({reason}); another process that restores into this "
                "folder would not be noticed",
                OESWarning,
            )
        with Manifest(root / MANIFEST, by_name=listing.by_name) as manifest:
            whole = _Set(root, settings, masks, options, manifest, watcher or Watcher(), stopping)
            if engine is None:
                total = None if threads is None else threads * workers
                if workers > 1 and threads is None:
                    threads = max(1, (os.cpu_count() or 1) // workers)
                whole.search_engine = partial(local.outcomes, workers=1, threads=total)
                whole.engine = partial(local.outcomes, workers=workers, threads=threads)
            else:
                whole.engine = whole.search_engine = engine
            whole.take(listing, retry_failed=retry_failed)
            whole.run()
            return whole.summarised(listing.left_out, began)
    finally:
        locks.release()


class _Set:
    """A set that is restored."""

    engine: Engine
    search_engine: Engine

    def __init__(
        self,
        root: Path,
        settings: Settings,
        masks: Sequence[str | os.PathLike[str]],
        options: Options,
        manifest: Manifest,
        watcher: Watcher,
        stopping: Callable[[], bool] | None,
    ) -> None:
        self.root, self.settings, self.options = root, settings, options
        self.manifest, self.watcher = manifest, watcher
        self._asked = stopping or (lambda: False)
        self._fatal: Outcome | None = None
        self.interrupted = False
        given = given_masks(masks, settings)
        self._noted: dict[str, Any] | None = None  # settings to note once there is an image
        self._check_settings({COLOURS[c]: digest_of_mask(mask) for c, (mask, _) in given.items()})
        self._given = given
        self.masks = tuple(shared for _, shared in given.values()) or found_masks(root, settings)

    def _stopping(self) -> bool:
        return self._fatal is not None or self._asked()

    def _check_settings(self, given: dict[str, str]) -> None:
        wanted: dict[str, Any] = {**self.settings.plain(searched=not given), "mask": given or None}
        before = self.manifest.settings
        if before is None or self._nothing_made():
            self._noted = wanted
            return
        keys = [key for key in dict.fromkeys((*wanted, *before)) if before.get(key) != wanted.get(key)]
        if "mask" in keys:  # what was searched, or is, follows from it
            keys = ["mask"]
        clauses = []
        for key in keys:
            option = f"--{key.replace('_', '-')}".removesuffix("s" if key == "model_options" else "")
            clauses.append(Difference(key, before.get(key), wanted.get(key)).clause(option))
        if clauses:
            raise InputError(
                f"{self.root}: the set was restored {'; '.join(clauses)}; give this one another folder (-o)"
            )

    def _nothing_made(self) -> bool:
        """Whether there is no result yet, nor anything of one."""
        unfinished = self.root / UNFINISHED
        masks = any(mask_path(self.root, channels).exists() for channels in COLOURS)
        return not (masks or self.manifest.holds(DONE) or (unfinished.is_dir() and any(unfinished.iterdir())))

    def take(self, listing: Listing, *, retry_failed: bool) -> None:
        """Note the images of the set, and which of them are to be run."""
        # The names of results beside an image that another image's may have.
        beside = [f"_{Path(SPREAD).stem}"] if self.settings.runs > 1 and self.settings.format == "png" else []
        count = self.manifest.add(listing, beside=beside)
        if count == 0:
            more = f" among {listing.left_out} files" if listing.left_out else ""
            raise InputError(
                f"sources: expected one image at least, got none{more}; "
                "--recursive takes folders within folders"
            )
        if self._noted is not None:
            self.manifest.note_settings(self._noted)
        keep_given(self.root, self._given)
        for row in self.manifest.rows(DONE, FAILED):
            stamp = stamp_of(row.entry)
            changed = row.stamp != stamp
            if row.state == DONE:
                job = self._job(row.entry)
                changed = changed and stamp is not None  # the result stays where the image itself is gone
                changed |= not (job.record.exists() and job.image.exists())
            if changed or (retry_failed and row.state == FAILED):
                self.manifest.mark(row.entry.name, WAITING)
        counts = self.manifest.counts()
        self.watcher.listed(count, counts[DONE] + counts[FAILED])

    def run(self) -> None:
        """Search what masks are missing, and restore all images that wait.

        Raises:
            OutputError: the results cannot be written, whatever the image.
            OESError: the search for a mask failed, or this process can compute nothing more.
        """
        try:
            self._run()
        except KeyboardInterrupt:  # outside of the loops, which end the update under way
            if self._asked():  # a second one: at once
                raise
            self.interrupted = True
        if self._fatal is not None:
            counts = self.manifest.counts()
            where = f"{self._fatal.name}: " if self._fatal.broken else ""
            raise (OESError if self._fatal.broken else OutputError)(
                f"{where}{self._fatal.failure}; {counts[DONE]} of {sum(counts.values())} images are done, "
                "and the same command goes on from there"
            )

    def _run(self) -> None:
        if not self.masks and self.settings.search != EACH:
            everything = (row.entry for row in self.manifest.rows())
            self._search(*candidates(everything, self.settings))
        while not self.interrupted:
            self._restore()
            counts = self.manifest.counts()
            self.interrupted = counts[WAITING] + counts[RUNNING] > 0
            missing = [] if self.interrupted else self.manifest.unmasked()
            if not missing:
                break
            for channels in missing:
                self._see_to(channels)

    def _see_to(self, channels: int) -> None:
        """Search the mask that images of so many channels wait for, or refuse them where masks are given."""
        if self._given:
            of = " or ".join(COLOURS[mask.channels] for mask in self.masks)
            why = f"expected {of} images, which the masks are for, got a {COLOURS[channels]} one"
            for row in self._unmasked(channels):
                failure = f"{row.entry.source}: {why}; --mask takes one mask for each"
                outcome = Outcome(row.entry.name, FAILED, failure=failure, stamp=row.stamp)
                self.manifest.end(outcome)
                self.watcher.ended(outcome)
            return
        if all(mask.channels != channels for mask in self.masks):
            entries = (row.entry for row in self._unmasked(channels))
            found, _ = candidates(entries, self.settings, channels)
            if found:  # else their own jobs say what has become of them
                self._search(found, channels)
        for row in self._unmasked(channels):
            self.manifest.mark(row.entry.name, WAITING)

    def _unmasked(self, channels: int) -> Iterator[Any]:
        return (row for row in self.manifest.rows(UNMASKED) if row.figures.get("channels") == channels)

    def _search(self, entries: list[Entry], channels: int | None) -> None:
        """Search on ``entries`` the mask of all images of so many channels."""
        if channels is None:
            return
        job = MaskSearch(self.root, tuple(entries), channels, self.settings)
        ended = self.search_engine(iter([job]), self.options, stopping=self._stopping, tell=self.watcher.step)
        with _closing(ended):
            outcome = next(ended, None)
        if outcome is None:
            self.interrupted = True
            return
        if outcome.failure is not None:
            raise (OutputError if outcome.fatal else OESError)(f"{job.name}: {outcome.failure}")
        self.watcher.searched(outcome)
        self.masks = (*self.masks, SharedMask(channels, restore_seed(self.settings)))

    def _restore(self) -> None:
        """Run the jobs of all images that wait."""
        ended = self.engine(self._jobs(), self.options, stopping=self._stopping, tell=self.watcher.step)
        with _closing(ended):
            for outcome in ended:
                if outcome.fatal or outcome.broken:
                    self._fatal = outcome
                    self.manifest.mark(outcome.name, WAITING)
                    continue
                self.manifest.end(outcome)
                if outcome.state != UNMASKED:
                    self.watcher.ended(outcome)

    def _jobs(self) -> Iterator[Job]:
        for row in self.manifest.rows(WAITING):
            if self._stopping():
                return
            self.manifest.mark(row.entry.name, RUNNING)
            yield self._job(row.entry)

    def _job(self, entry: Entry) -> Job:
        masks = self.masks or (() if self.settings.search == EACH else (_NO_MASK,))
        return Job(self.root, entry, self.settings, masks)

    def summarised(self, left_out: int, began: float) -> Batch:
        """Write the summary; remove what is left over once all is done."""
        self.manifest.rest()
        found = self.manifest.counts()
        counts = {name: found[name] for name in (DONE, FAILED)}
        counts["waiting"] = sum(found.values()) - sum(counts.values())
        unfinished = self.root / UNFINISHED
        if not any(map(self.manifest.holds, (WAITING, UNMASKED, FAILED))):  # nor images of an earlier call
            shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            unfinished.rmdir()
        failures = [(row.entry.name, row.failure or "") for row in islice(self.manifest.rows(FAILED), _SHOWN)]
        files = {"csv": self.root / f"{SUMMARY}.csv", "json": self.root / f"{SUMMARY}.json"}
        for mask in self.masks:
            files[f"mask_{COLOURS[mask.channels].lower()}"] = mask.path(self.root)
        batch = Batch(
            folder=self.root,
            counts=counts,
            means=self.manifest.means(),
            failures=failures,
            left_out=left_out,
            files=files,
            interrupted=self.interrupted,
            seconds=time.monotonic() - began,
        )
        summary.write_csv(files["csv"], self.manifest)
        summary.write_description(files["json"], batch, self.manifest.settings or {})
        return batch


@contextmanager
def _closing(ended: Iterator[Outcome]) -> Iterator[None]:
    """End what an engine has under way, whatever happens inside: an error would keep it, by its frames."""
    try:
        yield
    finally:
        getattr(ended, "close", lambda: None)()
