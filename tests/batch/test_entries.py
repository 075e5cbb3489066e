"""What a set consists of: folders, patterns, lists, files; the names of results, and what is refused."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import oes_fast as oes
from oes_fast.batch import Listing


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(sources: object, out: Path, **more: Any) -> dict[str, str]:
    """Source by name."""
    return {entry.name: entry.source for entry in Listing(sources, out, **more)}  # type: ignore[arg-type]


class TestFolders:
    def test_images_by_name_alone(self, tmp_path: Path) -> None:
        source = touched(
            tmp_path / "in", "a.png", "b B.JPG", "ü.tif", "notes.txt", ".hidden.png", "._a.png", "sub/c.png"
        )
        listing = Listing(source, tmp_path / "out")
        assert {entry.name for entry in listing} == {"a", "b B", "ü"}
        assert listing.left_out == 1
        assert listing.by_name

    def test_folders_within_folders_keep_their_path(self, tmp_path: Path) -> None:
        source = touched(tmp_path / "in", "a.png", "x y/a.png", "x y/z/b.png", ".git/c.png")
        found = names(source, tmp_path / "out", recursive=True)
        assert set(found) == {"a", "x y/a", "x y/z/b"}
        assert found["x y/a"] == str(source / "x y" / "a.png")

    def test_results_and_clean_images_within_are_no_images(self, tmp_path: Path) -> None:
        source = touched(
            tmp_path / "in", "a.png", "out/a.png", "clean/a.png", "other/batch.sqlite", "other/a.png"
        )
        found = names(source, source / "out", recursive=True, clean=source / "clean")
        assert set(found) == {"a"}

    @pytest.mark.skipif(os.name == "nt", reason="links")
    def test_links_are_followed_once(self, tmp_path: Path) -> None:
        source = touched(tmp_path / "in", "sub/a.png")
        touched(tmp_path / "elsewhere", "b.png")
        (source / "sub" / "up").symlink_to(source)
        (source / "more").symlink_to(tmp_path / "elsewhere")
        assert set(names(source, tmp_path / "out", recursive=True)) == {"sub/a", "more/b"}

    @pytest.mark.skipif(os.name == "nt", reason="links")
    def test_a_link_to_itself_is_no_folder(self, tmp_path: Path) -> None:
        source = touched(tmp_path / "in", "a.png")
        for name in ("loop", "b.png"):
            (source / name).symlink_to(name)
        listing = Listing(source, tmp_path / "out", recursive=True)
        assert {entry.name for entry in listing} == {"a", "b"}  # b fails by itself
        assert listing.left_out == 1

    def test_the_folder_of_the_images_is_not_one_for_results(self, tmp_path: Path) -> None:
        touched(tmp_path, "a.png")
        with pytest.raises(oes.InputError, match="expected another folder for the results"):
            Listing(tmp_path, tmp_path)


class TestPatterns:
    def test_names_are_those_below_the_fixed_part(self, tmp_path: Path) -> None:
        source = touched(tmp_path / "in", "a/x.png", "b/x.png", "b/y.tif", "b/c/z.png")
        assert set(names(f"{source}/*/x.png", tmp_path / "out")) == {"a/x", "b/x"}
        assert set(names(f"{source}/b/*.png", tmp_path / "out")) == {"x"}
        assert set(names(f"{source}/**/*.png", tmp_path / "out")) == {"a/x", "b/x", "b/c/z"}

    def test_results_below_are_no_images(self, tmp_path: Path) -> None:
        source = touched(tmp_path / "in", "a.png", "out/a.png")
        assert set(names(f"{source}/**/*.png", source / "out")) == {"a"}


class TestLists:
    def test_keep_their_order_and_their_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        elsewhere = tmp_path.parent / "elsewhere.png"
        lines = ["z.png", "", "a b/ü.png", str(tmp_path / "c.png"), "skimage:camera", str(elsewhere)]
        (tmp_path / "list.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
        listing = Listing("list.txt", tmp_path / "out")
        outside = elsewhere.with_suffix("").as_posix().lstrip("/")
        assert [entry.name for entry in listing] == ["z", "a b/ü", "c", "camera", outside]
        assert next(iter(listing)).source == str(tmp_path / "z.png")
        assert not listing.by_name

    def test_from_standard_input(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b.png\na.png")))
        assert list(names("-", tmp_path / "out")) == ["b", "a"]

    @pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
    def test_names_that_are_no_text(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "list.txt").write_bytes(b"\xff.png\n")
        assert list(names("list.txt", tmp_path / "out")) == [os.fsdecode(b"\xff")]


def test_files_have_names_of_their_own(tmp_path: Path) -> None:
    source = touched(tmp_path / "in", "a.png", "sub/b.png")
    found = names([source / "sub" / "b.png", source / "a.png", "skimage:camera"], tmp_path / "out")
    assert list(found) == ["b", "a", "camera"]


class TestClean:
    def test_lies_at_the_same_path_whatever_its_kind(self, tmp_path: Path) -> None:
        source = touched(tmp_path / "in", "a.png", "x/b.jpg", "c.png")
        clean = touched(tmp_path / "clean", "a.png", "x/b.tif")
        found = {e.name: e.clean for e in Listing(source, tmp_path / "out", recursive=True, clean=clean)}
        assert found["a"] == str(clean / "a.png")
        assert found["x/b"] == str(clean / "x" / "b.tif")
        assert found["c"] == str(clean / "c.png")  # which its job will not find

    def test_is_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(oes.InputError, match="clean: expected a folder"):
            Listing(touched(tmp_path, "a.png"), tmp_path / "out", clean=tmp_path / "none")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none", "expected a folder, an image, a pattern such as"),
        ("no\0ne", "it does not exist"),
        ([], "^sources: expected a folder"),
        (["-", "-"], "^sources: expected - once"),
    ],
)
def test_sources_that_are_none(source: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(oes.InputError, match=message):
        Listing(source, tmp_path / "out")  # type: ignore[arg-type]


def test_names_of_the_summary_are_taken(tmp_path: Path) -> None:
    with pytest.raises(oes.InputError, match=r"batch\.png: expected another name"):
        list(Listing(touched(tmp_path / "in", "batch.png"), tmp_path / "out"))


def test_a_result_does_not_take_the_name_of_its_image(tmp_path: Path) -> None:
    image = touched(tmp_path, "a.png") / "a.png"
    with pytest.raises(oes.InputError, match="expected another folder for the results"):
        list(Listing(image, tmp_path))
    assert [entry.name for entry in Listing(image, tmp_path, suffix=".tif")] == ["a"]
