"""The images of a set: from folders, patterns, lists and files, one at a time, however many there are."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from oes_fast.batch.job import UNFINISHED, Entry
from oes_fast.errors import InputError
from oes_fast.io.image import SKIMAGE_PREFIX

# Names of files that a folder's images are known by; what a file is, its contents decide.
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".j2k", ".jpx", ".avif",
    ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".qoi", ".pcx", ".sgi", ".ras", ".tga",
)  # fmt: skip
LIST_SUFFIX = ".txt"
STDIN = "-"
SUMMARY = "batch"  # stem of the files about the whole set
MANIFEST = f"{SUMMARY}.sqlite"


class Listing:
    """The images of a set, listed anew each time it is iterated over.

    What a folder or a pattern gives has no order of its own. Names keep the path below the folder, or below
    the part of a pattern without ``*``, ``?`` and ``[``; those of a list the path as it is written, below the
    current folder or below that of the file system; those of single files are the files' own.

    Args:
        sources: folders; patterns as in a shell, with ``**`` for any folders; lists, that is .txt files with
            a path in every line, or "-" for one on standard input; image files; skimage:NAME.
        root: folder of results, which is no source of images where it lies within one; nor are those of other
            sets, in folders within folders.
        suffix: of the images to write, such as ".png".
        recursive: take what is in folders within folders.
        clean: folder of clean images, which lie there as the images do in theirs, whatever their kind.

    Attributes:
        left_out: files of folders whose names are not those of images, as of the last time.
        by_name: whether the order is that of the names, and not the one in which they are listed.

    Raises:
        InputError: a source is nothing of that.
    """

    def __init__(
        self,
        sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        root: Path,
        *,
        suffix: str = ".png",
        recursive: bool = False,
        clean: str | os.PathLike[str] | None = None,
    ) -> None:
        given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
        self._sources = [os.fspath(source) for source in given]
        if not self._sources:
            raise InputError("sources: expected a folder, a pattern, a list or images, got nothing")
        self._root, self._suffix, self._recursive = Path(os.path.abspath(root)), suffix, recursive
        self._clean = None if clean is None else os.path.abspath(clean)
        if self._clean is not None and not os.path.isdir(self._clean):
            raise InputError(f"clean: expected a folder of clean images, got {os.fspath(clean or '')}")
        if self._sources.count(STDIN) > 1:
            raise InputError("sources: expected - once, got it twice")
        kinds = [_kind(source) for source in self._sources]
        for source, kind in zip(self._sources, kinds, strict=True):
            if kind == "folder" and os.path.realpath(source) == os.path.realpath(self._root):
                raise InputError(
                    f"{source}: expected another folder for the results (-o) than that of the images"
                )
        self._kinds = kinds
        self.by_name = all(kind in ("folder", "pattern") for kind in kinds)
        self.left_out = 0

    def __iter__(self) -> Iterator[Entry]:
        self.left_out = 0
        for source, kind in zip(self._sources, self._kinds, strict=True):
            if kind == "folder":
                found: Iterable[tuple[str, str]] = self._folder(os.path.abspath(source), "", ())
            elif kind == "pattern":
                found = self._pattern(source)
            elif kind == "list":
                found = _lines(source)
            else:
                found = [(source, _base_name(source))]
            for path, relative in found:
                yield self._entry(path, relative)

    def _entry(self, path: str, relative: str) -> Entry:
        if path.startswith(SKIMAGE_PREFIX):
            source, name = path, relative
        else:
            source, name = os.path.abspath(path), os.path.splitext(relative)[0]
        name = name.replace(os.sep, "/")
        if name == SUMMARY:
            raise InputError(
                f"{path}: expected another name than that of the set's summary, {SUMMARY}.json; rename it"
            )
        if os.path.normcase(source) == os.path.normcase(self._root / f"{name}{self._suffix}"):
            raise InputError(f"{path}: expected another folder for the results (-o) than that of the image")
        return Entry(source, name, self._clean and _like(self._clean, relative))

    def _folder(self, path: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str]]:
        """The images of a folder as (path, path below the source)."""
        try:
            this = os.stat(path)
            if (key := (this.st_dev, this.st_ino)) in above:  # a link to a folder that it is in
                return
            with os.scandir(path) as found:
                folders = []
                for each in found:
                    if each.name.startswith("."):
                        continue
                    relative = os.path.join(below, each.name)
                    if _is_folder(each):
                        folders.append((each.path, relative))
                    elif os.path.splitext(each.name)[1].lower() in SUFFIXES:
                        yield each.path, relative
                    else:
                        self.left_out += 1
        except OSError as error:
            raise InputError(f"{path}: cannot list the folder: {error.strerror or error}") from error
        for folder, relative in folders if self._recursive else ():
            if not self._is_ours(folder):
                yield from self._folder(folder, relative, (*above, key))

    def _is_ours(self, folder: str) -> bool:
        """Whether a folder within a source holds results of this or another set, or the clean images."""
        if os.path.exists(os.path.join(folder, MANIFEST)):
            return True
        real = os.path.realpath(folder)
        return real == os.path.realpath(self._root) or (
            self._clean is not None and real == os.path.realpath(self._clean)
        )

    def _pattern(self, pattern: str) -> Iterator[tuple[str, str]]:
        base, whole = _fixed(pattern), os.path.abspath(pattern)
        within = self._root.is_relative_to(base) and self._root != Path(base)
        for path in glob.iglob(whole, recursive=True):
            ours = UNFINISHED in path or (within and Path(path).is_relative_to(self._root))
            if not ours and os.path.isfile(path):
                yield path, os.path.relpath(path, base)


def _kind(source: str) -> str:
    if source == STDIN:
        return "list"
    if source.startswith(SKIMAGE_PREFIX):
        return "file"
    try:
        if os.path.isdir(source):
            return "folder"
        if os.path.isfile(source):
            return "list" if source.lower().endswith(LIST_SUFFIX) else "file"
    except ValueError:  # a null byte in the name
        pass
    if glob.has_magic(source):
        return "pattern"
    raise InputError(
        f"{source}: expected a folder, an image, a pattern such as 'photos/*.png' or a list ({LIST_SUFFIX}, "
        "or - for standard input), got nothing: it does not exist"
    )


def _is_folder(each: os.DirEntry[str]) -> bool:
    try:
        return each.is_dir()
    except OSError:  # a link to itself; if it has the name of an image, that fails by itself
        return False


def _fixed(pattern: str) -> str:
    """The folders of a pattern that are no pattern."""
    parts: Sequence[str] = Path(os.path.abspath(pattern)).parts[:-1]
    fixed = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return os.path.join(*parts[:fixed])


def _lines(source: str) -> Iterator[tuple[str, str]]:
    """The images of a list."""
    if source == STDIN:
        yield from _of_lines(sys.stdin.buffer)
        return
    try:
        with open(source, "rb") as file:
            yield from _of_lines(file)
    except OSError as error:
        raise InputError(f"{source}: cannot read the list: {error.strerror or error}") from error


def _of_lines(file: BinaryIO) -> Iterator[tuple[str, str]]:
    here = os.getcwd()
    for number, line in enumerate(file):
        path = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf" if number == 0 else b"").rstrip(b"\r\n"))
        if not path.strip():
            continue
        if path.startswith(SKIMAGE_PREFIX):
            yield path, _base_name(path)
            continue
        whole = os.path.abspath(path)
        below = os.path.relpath(whole, here)
        if below.startswith(os.pardir):
            below = os.path.relpath(whole, Path(whole).anchor)
        yield whole, below


def _base_name(source: str) -> str:
    """Of a file, or of one of scikit-image's pictures."""
    return (
        source.removeprefix(SKIMAGE_PREFIX) if source.startswith(SKIMAGE_PREFIX) else os.path.basename(source)
    )


def _like(folder: str, relative: str) -> str:
    """The clean image of an image: of its name, or of its name but for the suffix."""
    path = os.path.join(folder, relative)
    if os.path.exists(path):
        return path
    stem = os.path.splitext(path)[0]
    return next((stem + suffix for suffix in SUFFIXES if os.path.exists(stem + suffix)), path)
