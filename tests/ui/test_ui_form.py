"""What may be filled in, and what is refused before a run."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from ui_runs import form, picture_file

from oes_fast.errors import InputError
from oes_fast.ui import form as form_module
from oes_fast.ui.form import check_image, safe_name, whole


def test_the_arguments_are_those_of_denoise(tmp_path: Path):
    arguments, output = form(runs=2, precision="tf32", stop="variance").prepare(tmp_path)
    assert " ".join(arguments) == (
        "denoise skimage:camera --sigma 0.1 --size 32 --preset quick --density 0.5 --search-steps 3 "
        "--train-steps 12 --precision tf32 --seed 3 --runs 2 --stop variance --threads 1 "
        "--model-option=num_channels_down=8,8 --no-plots --quiet -o camera_restored.png"
    )
    assert output == "camera_restored.png"


def test_a_mask_takes_the_place_of_the_search(tmp_path: Path):
    mask = tmp_path / "found.safetensors"
    mask.write_bytes(b"whatever")
    folder = tmp_path / "run"
    folder.mkdir()
    arguments, _ = form(mask=mask).prepare(folder)
    assert arguments[2:4] == ("--mask", "mask_found.safetensors")
    assert not {"--density", "--search-steps"} & set(arguments)
    assert (folder / "mask_found.safetensors").read_bytes() == b"whatever"
    with pytest.raises(InputError, match=r"notes.txt: expected a mask file \(.safetensors, .npz, .pkl\)"):
        form(mask=picture_file(tmp_path / "a.png").rename(tmp_path / "notes.txt")).prepare(folder)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("photo.png", "photo.png"),
        ("my photo (1).JPG", "my_photo_1.JPG"),
        ("-o.png", "o.png"),
        ("../../etc/passwd", "passwd"),
        (".png", "png"),
        ("$(reboot);.tif", "reboot.tif"),
        ("Bär.png", "Bär.png"),
    ],
)
def test_names_are_no_options_and_no_paths(name: str, safe: str):
    assert safe_name(name) == safe


def test_names_are_short():
    assert len(safe_name("a" * 300 + "." + "b" * 300)) < 130


def test_a_file_that_is_no_image_is_one_sentence_without_a_folder(tmp_path: Path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"no image at all")
    with pytest.raises(InputError) as caught:
        check_image(path)
    assert str(tmp_path) not in str(caught.value)
    assert str(caught.value).startswith("photo.png: ")


def test_too_many_pixels_are_refused_by_the_header_alone(tmp_path: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side, said in ((5000, "got 5000 x 5000 = 25,000,000; make it smaller"), (60_000, "far more")):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        path = tmp_path / f"{side}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        with pytest.raises(InputError, match=f"{side}.png: expected 4,000,000 pixels at most, .*{said}"):
            check_image(path)


def test_too_many_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(form_module, "MAX_BYTES", 2**20)
    path = tmp_path / "large.png"
    path.write_bytes(b"0" * (2**20 + 1))
    with pytest.raises(InputError, match=r"large\.png: expected 1 MiB at most"):
        check_image(path)


@pytest.mark.parametrize("picture", [None, "", "../../secret", "skimage:camera"])
def test_pictures_are_those_of_scikit_image(picture: str | None, tmp_path: Path):
    with pytest.raises(InputError):
        form(picture=picture).prepare(tmp_path)


def test_whole_numbers():
    assert (whole("size", None), whole("size", 64.0)) == (None, 64)
    for value in (1.5, float("nan"), float("inf")):
        with pytest.raises(InputError, match="size: expected"):
            whole("size", value)
    with pytest.raises(InputError, match="network options: expected 1000 characters at most, got 2000"):
        form(model_options="a" * 2000).prepare(Path())
