"""Writing without loss: whatever fails, the older file is whole and nothing is left over."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oes_fast as oes
from oes_fast.errors import InputError, OESError, OutputError
from oes_fast.io import files
from oes_fast.io.files import (
    atomic_write,
    check_readable,
    check_writable,
    load_tensors,
    save_tensors,
    write_json,
)

needs_permissions = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root"
)


def fail_with(error: BaseException, half: bytes = b"half of it"):
    def write(path: Path) -> None:
        path.write_bytes(half)
        raise error

    return write


def test_a_file_is_written_under_its_name_with_its_suffix(tmp_path):
    seen = []

    def write(path: Path) -> None:
        seen.append(path)
        path.write_text("new")

    target = tmp_path / "result.json"
    atomic_write(target, write)
    atomic_write(str(target), write)
    assert target.read_text() == "new"
    assert all(path.parent == tmp_path and path.suffix == ".json" and path != target for path in seen)
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("x"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("existed", [True, False])
def test_a_failure_loses_nothing_and_leaves_nothing(tmp_path, error, existed):
    target = tmp_path / "result.txt"
    if existed:
        target.write_text("old")
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        atomic_write(target, fail_with(error))
    if isinstance(error, OSError):
        assert str(raised.value) == f"{target}: cannot write: No space left on device"
        assert raised.value.errno == errno.ENOSPC
        assert isinstance(raised.value, OESError)
    assert os.listdir(tmp_path) == (["result.txt"] if existed else [])
    assert not existed or target.read_text() == "old"


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OutputError, match="No such file"):
        atomic_write(tmp_path / "a", lambda path: None)
    assert (tmp_path / "a").read_text() == "old"


def test_a_killed_process_leaves_the_old_file(tmp_path):
    target = tmp_path / "result.txt"
    target.write_text("old")
    child = os.fork()
    if child == 0:
        atomic_write(target, lambda path: (path.write_bytes(b"half"), os._exit(9)))
    os.waitpid(child, 0)
    assert target.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_is_one_clear_line():
    with pytest.raises(OutputError, match=r"/dev/full: cannot write: No space left on device"):
        write_json("/dev/full", {"a": 1})
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_devices_and_pipes_are_written_to(tmp_path, capfd):
    os.write(1, b"printed before\n")
    write_json("/dev/stdout", 2)  # a file, under capture
    assert capfd.readouterr().out == "printed before\n2\n"
    write_json("/dev/null", {"a": 1})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    reader, writer = os.pipe()
    write_json(f"/dev/fd/{writer}", {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1}
    os.close(reader)
    os.close(writer)


def test_links_and_permissions_are_kept(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    atomic_write(link, lambda path: path.write_text("new"))
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    atomic_write(tmp_path / "ours", lambda path: path.write_text(""))
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "got a folder"),
        ("none/result.txt", "does not exist"),
        ("file/result.txt", "not a folder"),
        ("x" * 300, "File name too long"),
        ("nul\0l", "null byte"),
    ],
)
def test_names_that_cannot_be_written_are_refused_early(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    path = f"{tmp_path}/{name}"
    for refused in (check_writable, lambda p: write_json(p, {})):
        with pytest.raises(OutputError, match=message) as error:
            refused(path)
        assert "\n" not in str(error.value)
        assert "\0" not in str(error.value)


@needs_permissions
def test_folders_and_files_without_permission_are_refused(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    target.chmod(0o444)
    with pytest.raises(OutputError, match="no permission to change"):
        check_writable(target)
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="no permission to write in"):
        check_writable(tmp_path / "b")
    tmp_path.chmod(0o755)


def test_json_holds_plain_values(tmp_path):
    path = tmp_path / "a.json"
    write_json(
        path,
        {
            "path": tmp_path,
            "psnr": [math.inf, math.nan, 28.86],
            "numpy": (np.float32(0.5), np.int64(3), np.bool_(True)),
            "tensor": torch.tensor(2.5),
            "text": "déjà",
            1: None,
        },
    )
    assert json.loads(path.read_text("utf-8")) == {
        "path": str(tmp_path),
        "psnr": [None, None, 28.86],
        "numpy": [0.5, 3, True],
        "tensor": 2.5,
        "text": "déjà",
        "1": None,
    }
    for wrong in (object(), {"a": {1, 2}}, torch.zeros(2)):
        with pytest.raises(InputError, match="JSON: expected"):
            write_json(path, wrong)
    assert json.loads(path.read_text())["psnr"][2] == 28.86


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(
        [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64]
    ),
)
def test_tensors_come_back_as_they_were(tmp_path_factory, shape, dtype):
    path = tmp_path_factory.getbasetemp() / "tensors.safetensors"
    value = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    tensors = {"a": value, "again": value, "turned": value.mT if len(shape) > 1 else value}
    metadata = {"density": 0.05, "seed": 2**63, "text": "déjà", "nested": [1, {"a": None}]}
    save_tensors(path, tensors, metadata)
    found, note = load_tensors(path)
    assert note == metadata
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_gradients_and_expanded_tensors_are_saved(tmp_path):
    path = tmp_path / "a.safetensors"
    weight = torch.nn.Parameter(torch.ones(2, 2))
    save_tensors(path, {"w": weight, "e": torch.ones(1).expand(4), "s": weight[:, 0]})
    found, note = load_tensors(path)
    assert note == {}
    assert not found["w"].requires_grad
    assert found["e"].shape == (4,)
    found["w"].zero_()
    assert load_tensors(path)[0]["w"].all()


def test_what_is_no_tensor_is_refused_and_the_old_file_kept(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(3)})
    for wrong in ({"a": 3}, {"a": torch.ones(2).to_sparse()}):
        with pytest.raises(InputError, match="a: expected a dense"):
            save_tensors(path, wrong)
    with pytest.raises(InputError, match="JSON"):
        save_tensors(path, {}, {"a": object()})
    assert load_tensors(path)[0]["a"].all()


def test_files_that_are_not_whole_safetensors_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(30)}, {"b": 1})
    data = path.read_bytes()
    broken = [data[:n] for n in range(0, len(data), 11)]
    for content in (*broken, b"text\n", b"\xff" * 64, b"PK\x03\x04", data.replace(b'{\\"b', b'{\\"b\\')):
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            load_tensors(path)
        assert str(error.value).startswith(f"{path}: expected a complete safetensors file")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="does not exist"):
        load_tensors(tmp_path / "none")
    with pytest.raises(InputError, match="got a folder"):
        load_tensors(tmp_path)
    with pytest.raises(InputError, match="expected a file, got"):
        load_tensors("nul\0l")


@pytest.mark.parametrize("path", [None, 3, b"mask"])
def test_what_is_no_file_name_is_refused(path):
    net, image = torch.nn.Linear(2, 2), torch.zeros(1, 1, 8, 8)
    mask = oes.Mask.from_flat(net, torch.ones(6, dtype=torch.bool))
    for call in (
        lambda: oes.Mask.load(path),
        lambda: mask.save(path),
        lambda: oes.load_image(path),
        lambda: oes.save_image(path, image),
    ):
        with pytest.raises(
            oes.InputError, match=rf"^path.*: expected the name of a file.*{type(path).__name__}$"
        ):
            call()


def test_any_number_of_files_leaves_nothing_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SWEPT", 5)
    monkeypatch.setattr(files, "_swept", set())
    for number in range(12):
        atomic_write(tmp_path / f"{number}.txt", lambda path: path.write_text("x"))
    assert len(files._swept) <= 5


def test_an_empty_name_is_no_folder() -> None:
    with pytest.raises(InputError, match="expected a file, got an empty name"):
        check_readable("")
