"""What may be filled in, and what is refused before a run."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from ui_runs import form, picture_file

from oes_fast.errors import InputError
from oes_fast.ui import form as form_module
from oes_fast.ui.form import check_image, safe_name, whole


def test_the_arguments_are_those_of_denoise(tmp_path: Path):
    arguments, output = form(runs=2, precision="tf32", stop="variance").prepare(tmp_path)
    assert " ".join(arguments) == (
        "denoise skimage:camera --sigma 0.1 --size 32 --preset fast --density 0.5 --search-steps 3 "
        "--train-steps 12 --precision tf32 --seed 3 --runs 2 --stop variance --threads 1 "
        "--model-option=num_channels_down=8,8 --no-plots --quiet -o camera_restored.png"
    )
    assert output == "camera_restored.png"


def test_a_mask_takes_the_place_of_the_search(tmp_path: Path):
    mask = tmp_path / "found.safetensors"
    mask.write_bytes(b"whatever")
    folder = tmp_path / "run"
    folder.mkdir()
    arguments, _ = form(mask_from="file", mask=mask).prepare(folder)
    assert arguments[2:4] == ("--mask", "mask_found.safetensors")
    assert not {"--density", "--search-steps"} & set(arguments)
    assert (folder / "mask_found.safetensors").read_bytes() == b"whatever"
    notes = picture_file(tmp_path / "a.png").rename(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"notes.txt: expected a mask file \(.safetensors, .npz, .pkl\)"):
        form(mask_from="file", mask=notes).prepare(folder)
    with pytest.raises(InputError, match="mask: expected a mask file, got none"):
        form(mask_from="file").prepare(folder)
    with pytest.raises(InputError, match="mask: expected one of search, profile, file, got 'guess'"):
        form(mask_from="guess").prepare(folder)


def test_a_layer_profile_takes_the_place_of_the_search(tmp_path: Path):
    arguments, _ = form(mask_from="profile").prepare(tmp_path)
    assert arguments[2:4] == ("--mask", "profile")
    assert "--density" in arguments
    assert "--search-steps" not in arguments
    arguments, _ = form(task="superres", mask_from="profile").prepare(tmp_path)
    assert arguments[4:6] == ("--weights-mask", "profile")


def test_the_tasks_are_their_commands(tmp_path: Path):
    mask = picture_file(tmp_path / "a.png").rename(tmp_path / "found.npz")
    folder = tmp_path / "run"
    folder.mkdir()
    arguments, _ = form(task="superres", factor=3, sigma=None, mask_from="file", mask=mask).prepare(folder)
    assert arguments[:6] == (
        *("superres", "skimage:camera", "--factor", "3", "--weights-mask", "mask_found.npz"),
    )
    with pytest.raises(InputError, match=r"16 times 512 x 512: expected 4,000,000 pixels at most"):
        form(task="superres", factor=16, sigma=None, size=None).prepare(folder)
    with pytest.raises(InputError, match="factor: expected an integer >= 2 and < 17, got 1"):
        form(task="superres", factor=1).prepare(folder)
    with pytest.raises(InputError, match="task: expected one of denoise, superres, inpaint, got 'mri'"):
        form(task="mri").prepare(folder)


def test_what_is_painted_over_is_missing(tmp_path: Path):
    painted = np.zeros((512, 512), bool)
    painted[128:256, :64] = True
    arguments, _ = form(task="inpaint", painted=painted).prepare(tmp_path)
    assert arguments[:4] == ("inpaint", "skimage:camera", "--mask", "known.png")
    known = np.asarray(PillowImage.open(tmp_path / "known.png")) > 127  # of the size that is restored
    assert known.shape == (32, 32)
    assert not known[8:16, :4].any()
    assert 0.9 < known.mean() < 1
    form(task="inpaint", painted=painted[::2, ::2], size=None).prepare(tmp_path)  # an editor's may be smaller
    known = np.asarray(PillowImage.open(tmp_path / "known.png")) > 127
    np.testing.assert_array_equal(known, ~painted)
    for nothing in (None, np.zeros((512, 512), bool)):
        with pytest.raises(InputError, match="painting: expected what is missing to be painted over"):
            form(task="inpaint", painted=nothing).prepare(tmp_path)


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
