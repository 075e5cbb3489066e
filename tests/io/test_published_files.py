"""The reader of published pickles: it reads what torch wrote and executes nothing."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oes_fast.errors import InputError
from oes_fast.io.published import read_published_mask, read_published_tensor, read_published_weights

PROTOCOLS = (2, 3, 4, 5)
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "file.pkl"
    path.write_bytes(data)
    return path


def mask_of(n: int = 100) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.3


class Evil:
    """Unpickling this calls os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Calls:
    """Unpickling this calls ``function`` with ``arguments``."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("n", [1, 8, 1000])
def test_masks_of_every_protocol_are_read(tmp_path, protocol, n):
    mask = mask_of(n)
    found = read_published_mask(write(tmp_path, pickle.dumps(mask, protocol=protocol)))
    assert found.dtype == torch.bool
    assert torch.equal(found, mask)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_dtype_and_shape_are_read(tmp_path, protocol, dtype):
    values = (torch.arange(120).reshape(2, 3, 4, 5) % 2).to(dtype)
    for tensor in (values, values[1:, ::2, :, 1], values.permute(3, 1, 0, 2), values[0, 0, 0, 0], values[:0]):
        found = read_published_tensor(write(tmp_path, pickle.dumps(tensor, protocol=protocol)))
        assert found.dtype == dtype
        assert found.is_contiguous()
        assert torch.equal(found, tensor)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_are_read(tmp_path, zipped):
    mask, state = mask_of(), nn.Conv2d(2, 3, 3).state_dict()
    path = tmp_path / "file.pth"
    torch.save(mask, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_published_mask(path), mask)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    found = read_published_weights(path)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_float_masks_of_zeros_and_ones_are_read(tmp_path):
    mask = mask_of()
    assert torch.equal(read_published_mask(write(tmp_path, pickle.dumps(mask.float()))), mask)
    with pytest.raises(InputError, match="expected a mask of 0 and 1"):
        read_published_mask(write(tmp_path, pickle.dumps(torch.full((3,), 0.5))))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickled_network_becomes_its_state_dict(tmp_path, protocol):
    net = nn.Sequential(
        nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.AvgPool2d(2, 2)),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(4, 2, 1, bias=False),
    )
    with torch.no_grad():
        net(torch.rand(1, 3, 8, 8))
    state = net.state_dict()
    found = read_published_weights(write(tmp_path, pickle.dumps(net, protocol=protocol)))
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    found["0.1.weight"].zero_()
    assert state["0.1.weight"].any()


def test_a_weight_that_two_modules_share_is_read_under_both_names(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    found = read_published_weights(write(tmp_path, pickle.dumps(net)))
    assert torch.equal(found["0.weight"], found["1.weight"])


@pytest.mark.parametrize("location", ["cuda:0", "cpu"])
def test_masks_that_were_on_a_gpu_are_read_on_the_cpu(tmp_path, location):
    data = pickle.dumps(mask_of(), protocol=3)
    inner = data.replace(b"ctorch\nBoolStorage", b"ctorch.cuda\nBoolStorage")
    grown = len(inner) - len(data)
    inner = inner.replace(
        b"X\x03\x00\x00\x00cpu", b"X" + struct.pack("<I", len(location)) + location.encode()
    )
    grown += len(location) - 3
    at = inner.index(b"B") if b"_from_bytes\nq\x01B" in inner else inner.index(b"C\xff")
    assert inner[at : at + 1] == b"B"
    size = struct.unpack("<I", inner[at + 1 : at + 5])[0] + grown
    path = write(tmp_path, inner[: at + 1] + struct.pack("<I", size) + inner[at + 5 :])
    assert torch.equal(read_published_mask(path), mask_of())


@pytest.mark.parametrize("protocol", [0, *PROTOCOLS])
@pytest.mark.parametrize("read", [read_published_mask, read_published_tensor, read_published_weights])
def test_a_call_in_the_pickle_is_refused_and_not_made(tmp_path, protocol, read):
    trap = tmp_path / "trap"
    for content in (Evil(f"touch {trap}"), [torch.ones(2), Evil(f"touch {trap}")], Calls(eval, "1/0")):
        path = write(tmp_path, pickle.dumps(content, protocol=protocol))
        with pytest.raises(
            InputError, match=r"calls (posix|nt|__builtin__|builtins)\.\w+, which is refused; nothing"
        ):
            read(path)
        assert not trap.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_in_the_inner_bytes_is_refused_and_not_made(tmp_path, protocol):
    trap = tmp_path / "trap"
    inner = b"".join(
        pickle.dumps(part, protocol=2)
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, Evil(f"touch {trap}"), [])
    )
    storage = Calls(torch.storage._load_from_bytes, inner)
    tensor = Calls(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), False, {})
    with pytest.raises(InputError, match=r"calls posix\.system, which is refused"):
        read_published_mask(write(tmp_path, pickle.dumps(tensor, protocol=protocol)))
    assert not trap.exists()


def test_calls_by_the_old_operations_are_refused(tmp_path):
    for code in (b"(S'true'\nios\nsystem\n.", b"(cos\nsystem\nS'true'\no.", b"cos\nsystem\n(S'true'\n\x81."):
        with pytest.raises(InputError, match=r"refused|complete"):
            read_published_mask(write(tmp_path, code))


def test_a_zip_with_code_is_refused(tmp_path):
    trap = tmp_path / "trap"
    path = tmp_path / "file.pth"
    torch.save([torch.ones(2), Evil(f"touch {trap}")], path)
    for read in (read_published_mask, read_published_weights):
        with pytest.raises(InputError, match="not tensors alone"):
            read(path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(InputError, match="not tensors alone"):
        read_published_weights(path)
    assert not trap.exists()


def test_a_zip_that_unpacks_to_more_than_the_file_is_refused(tmp_path):
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save(torch.zeros(1_000_000), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as sink:
        for name in source.namelist():
            sink.writestr(name, source.read(name))
    with pytest.raises(InputError, match="compressed"):
        read_published_tensor(packed)
    torch.save(torch.zeros(1).expand(10**12), plain)
    with pytest.raises(InputError, match="larger than the file"):
        read_published_tensor(plain)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"PK\x03\x04 not a zip",
        b"\x80\x03.",
        b"\x80\x03N.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 2^63 bytes
        b"\x80\x03B\xff\xff\xff\xff.",  # 4 GB of bytes
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # 8 EB of bytes
        b"\x80\x03\x8b\xff\xff\xff\x7f.",  # a number of 2^31 digits
        b"(" * 1000 + b".",
        b"]" * 200_000 + b".",
        b")" + b"\x85" * 100_000 + b".",
        b"I" + b"9" * 100_000 + b"\n.",
        pickle.dumps([]),
        pickle.dumps({"a": 1}),
        pickle.dumps("text"),
        pickle.dumps(10**30),
        pickle.dumps(nn.Linear),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path, data):
    path = write(tmp_path, data)
    for read in (read_published_mask, read_published_tensor, read_published_weights):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < len(str(path)) + 300


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_published_mask(tmp_path / "none.pkl")
    with pytest.raises(InputError, match="got a folder"):
        read_published_mask(tmp_path)
    with pytest.raises(InputError, match=r"expected a tensor, got an object of torch\.nn"):
        read_published_mask(write(tmp_path, pickle.dumps(nn.Linear(2, 2))))
    with pytest.raises(InputError, match="expected a network or its state dict, got a call of"):
        read_published_weights(write(tmp_path, pickle.dumps(mask_of())))


def test_tensors_that_claim_more_than_their_storage_are_refused(tmp_path):
    class Wrong:
        def __init__(self, offset, size, stride):
            self.parts = offset, size, stride

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (torch.zeros(4)._typed_storage(), *self.parts, False, {})

    for wrong in (
        *(Wrong(0, (5,), (1,)), Wrong(1, (4,), (1,)), Wrong(0, (10**9,), (0,)), Wrong(0, (2, 2), (4, 1))),
        *(Wrong(0, (-1,), (1,)), Wrong(-1, (1,), (1,)), Wrong(0, (2,), (-1,)), Wrong(0, (2,), (1, 1))),
        *(
            Wrong(0, (0, 2**70), (1, 1)),
            Wrong(0, (0, 2**40), (1, 1)),
            Wrong(0, [2], (1,)),
            Wrong(None, (2,), (1,)),
        ),
        Wrong(0, (0, *[2**30] * 8), (1,) * 9),
    ):
        with pytest.raises(InputError, match=r"damaged shape|more elements"):
            read_published_tensor(write(tmp_path, pickle.dumps(wrong)))


def test_a_network_that_contains_itself_is_refused(tmp_path):
    net = nn.Sequential(nn.ReLU())
    net._modules["1"] = net
    with pytest.raises(InputError, match="contains itself"):
        read_published_weights(write(tmp_path, pickle.dumps(net)))
    net = nn.Sequential(nn.ReLU())
    for _ in range(60):  # 2^60 paths
        net = nn.Sequential(net, net)
    with pytest.raises(InputError, match="contains itself"):
        read_published_weights(write(tmp_path, pickle.dumps(net)))


def test_truncated_files_are_refused(tmp_path):
    for protocol in PROTOCOLS:
        data = pickle.dumps(mask_of(), protocol=protocol)
        for length in range(0, len(data), 7):
            with pytest.raises(InputError):
                read_published_mask(write(tmp_path, data[:length]))


VALID = [pickle.dumps(mask_of(40), protocol=protocol) for protocol in PROTOCOLS]
VALID_NET = pickle.dumps(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), protocol=3)


def read_or_refuse(data: bytes, folder: Path) -> None:
    for read in (read_published_mask, read_published_weights):
        try:
            read(write(folder, data))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 (a file that is read is right too)


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from([*VALID, VALID_NET]),
    changes=st.lists(
        st.tuples(st.integers(0, 10**6), st.binary(min_size=0, max_size=4)), min_size=1, max_size=4
    ),
    removed=st.integers(0, 3),
)
def test_mutated_pickles_are_read_or_refused(tmp_path_factory, data, changes, removed):
    for position, new in changes:
        position %= len(data)
        data = data[:position] + new + data[position + removed :]
    read_or_refuse(data, tmp_path_factory.getbasetemp())


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), start=st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04"]))
def test_random_bytes_are_refused(tmp_path_factory, data, start):
    read_or_refuse(start + data, tmp_path_factory.getbasetemp())


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 10**6), new=st.binary(min_size=1, max_size=8))
def test_mutated_zips_are_read_or_refused(tmp_path_factory, position, new):
    buffer = io.BytesIO()
    torch.save(mask_of(40), buffer)
    data = buffer.getvalue()
    position %= len(data)
    read_or_refuse(data[:position] + new + data[position + len(new) :], tmp_path_factory.getbasetemp())


def test_memory_stays_bounded(tmp_path):
    # 2,000 tensors of the whole storage each: 2 GB if they were all copied.
    storage = torch.zeros(250_000)
    path = tmp_path / "views.pth"
    views = {f"w{i}": storage.as_strided((250_000,), (1,)) for i in range(2000)}
    torch.save(views, path, _use_new_zipfile_serialization=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="larger than the file"):
        read_published_weights(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_the_published_masks_are_those_of_the_paper():
    folder = os.environ.get("OES_PUBLISHED_MASKS")
    if not folder:
        pytest.skip("OES_PUBLISHED_MASKS names no folder with NAME_mask.npz and mask_NAME.pkl")
    files = sorted(Path(folder).glob("*_mask.npz"))
    assert files
    for file in files:
        with np.load(file) as packed:
            expected = np.unpackbits(packed["bits"])[: int(packed["count"])].astype(bool)
        name = file.name.removesuffix("_mask.npz")
        assert np.array_equal(read_published_mask(file.with_name(f"mask_{name}.pkl")).numpy(), expected)
