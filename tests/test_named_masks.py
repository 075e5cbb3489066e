"""Masks by name: dicts, torch.nn.utils.prune, and published files of packed bits."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import REPO, unchanged
from torch import nn
from torch.nn.utils import prune

import oes_fast as oes

REAL = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn),
)


class Small(nn.Module):
    """A convolution, a batch norm whose scale and shift have one shape, and a parameter used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(self.norm(self.conv(x))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def mask(net):
    count = sum(p.numel() for p in net.parameters())
    return oes.Mask.from_flat(net, torch.rand(count, generator=torch.Generator().manual_seed(1)) < 0.5)


# dicts


def test_dicts_hold_a_mask_for_each_parameter(net, mask):
    masks = mask.to_dict(net)
    assert {name: m.shape for name, m in masks.items()} == {n: p.shape for n, p in net.named_parameters()}
    assert torch.equal(torch.cat([m.flatten() for m in masks.values()]), mask.flat)
    again = oes.Mask.from_dict(
        net, dict(reversed(masks.items())), source="here"
    )  # the names tell, not the order
    assert torch.equal(again.flat, mask.flat)
    assert again.settings == {"source": "here"}
    again.check(net)
    before = mask.flat.clone()
    masks["conv.weight"][:] = False
    assert torch.equal(mask.flat, before)


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_dicts_of_any_real_dtype(net, mask, dtype):
    masks = {name: m.to(dtype) for name, m in mask.to_dict(net).items()}
    with unchanged(*masks.values()):
        assert torch.equal(oes.Mask.from_dict(net, masks).flat, mask.flat)


def test_dicts_of_other_forms(net, mask):
    masks = mask.to_dict(net)
    masks["conv.weight"] = masks["conv.weight"].double().requires_grad_()
    masks["conv.bias"] = masks["conv.bias"].numpy()
    masks["norm.weight"] = masks["norm.weight"].tolist()
    masks["first.weight"] = masks["first.weight"].t().contiguous().t()
    with torch.inference_mode():
        masks["norm.bias"] = masks["norm.bias"].clone()
    assert torch.equal(oes.Mask.from_dict(net, masks).flat, mask.flat)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv.bias": None}, r"^masks: expected one for each .* 6 parameters, got none for 'conv\.bias'$"),
        ({"conv.weight_orig": torch.ones(1)}, r"^masks: .* got 'conv\.weight_orig', which it does not have$"),
        ({"second.weight": torch.ones(4, 4)}, r"^masks: .* got 'second\.weight'"),
        ({"conv.bias": None, "bias": torch.ones(3)}, r"none for 'conv\.bias' and 'bias', which"),
        ({"conv.bias": torch.ones(4)}, r"^masks\['conv\.bias'\]: .*shape \(3,\), got \(4,\)$"),
        ({"first.weight": torch.ones(16)}, r"^masks\['first\.weight'\]: .*shape \(4, 4\), got \(16,\)$"),
        ({"conv.bias": torch.tensor([0, 1, 2])}, r"'conv\.bias'\]: expected only 0 and 1, got 1 .* as 2$"),
        (
            {"conv.bias": torch.tensor([0, 0.5, 1])},
            r"expected only 0 and 1, got 1 other values of 3, such as 0\.5$",
        ),
        ({"conv.bias": torch.full((3,), torch.nan)}, r"expected only 0 and 1, got 3 .* such as nan$"),
        ({"conv.bias": torch.tensor([-1, 0, 1])}, r"expected only 0 and 1, got 1 .* such as -1$"),
        ({"conv.bias": torch.ones(3, dtype=torch.complex64)}, r"'conv\.bias'\]: .*complex64"),
        ({"conv.bias": torch.ones(3, device="meta")}, r"'conv\.bias'\]: .*meta"),
        ({"conv.bias": torch.ones(3).to_sparse()}, r"'conv\.bias'\]: .*sparse_coo"),
        ({"conv.bias": "yes"}, r"'conv\.bias'\]: .*str"),
        ({"conv.bias": 1}, r"'conv\.bias'\]: .*int"),
    ],
    ids=str,
)
def test_from_dict_refuses(net, mask, changes, message):
    masks = {name: value for name, value in (mask.to_dict(net) | changes).items() if value is not None}
    with pytest.raises(oes.InputError, match=message):
        oes.Mask.from_dict(net, masks)


def test_what_is_no_dict_or_no_network_is_refused(net, mask):
    with pytest.raises(oes.InputError, match=r"^masks: expected a dict .* got list$"):
        oes.Mask.from_dict(net, [torch.ones(3)])
    with pytest.raises(
        oes.InputError, match=r"^masks: .*none for 'conv\.weight', 'conv\.bias', .* and 3 more$"
    ):
        oes.Mask.from_dict(net, {})
    for wrong in (None, {}, torch.ones(3)):
        for use in (lambda n: oes.Mask.from_dict(n, {}), mask.to_dict, mask.apply_prune, oes.Mask.from_prune):
            with pytest.raises(oes.InputError, match=r"^net: "):
                use(wrong)
    with pytest.raises(oes.MaskMismatchError):
        mask.to_dict(nn.Linear(3, 3))
    with pytest.raises(oes.MaskMismatchError):
        mask.apply_prune(nn.Linear(3, 3))


# torch.nn.utils.prune


def test_apply_prune_makes_the_network_the_masked_one(net, mask):
    pruned = copy.deepcopy(net)
    mask.apply_prune(pruned)
    assert prune.is_pruned(pruned)
    for name, kept in mask.to_dict(net).items():
        assert torch.equal(pruned.get_buffer(f"{name}_mask").bool(), kept)
        assert torch.equal(pruned.get_parameter(f"{name}_orig"), net.get_parameter(name))
    masked = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            parameter.mul_(mask.to_dict(net)[name])
    x = torch.rand(1, 2, 6, 6)
    assert torch.equal(pruned(x), masked(x))
    pruned(x).sum().backward()
    assert not pruned.conv.weight_orig.grad[~mask.to_dict(net)["conv.weight"]].any()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_apply_prune_masks_what_weight_norm_computes_with():
    net, pruned = (nn.utils.weight_norm(nn.Conv2d(2, 3, 3)) for _ in range(2))
    mask = oes.Mask.from_flat(net, torch.rand(sum(p.numel() for p in net.parameters())) < 0.5)
    mask.apply_prune(pruned)
    x = torch.rand(1, 2, 5, 5)
    for scale in (1.0, 1.5):
        with torch.no_grad():
            for parameter, like, kept in zip(
                net.parameters(), pruned.parameters(), mask.to_dict(net).values(), strict=True
            ):
                like.mul_(scale)
                parameter.copy_(like * kept)
        torch.testing.assert_close(pruned(x), net(x))


def test_apply_prune_keeps_the_order_and_comes_back_from_prune(net, mask):
    pruned = copy.deepcopy(net)
    mask.apply_prune(pruned)
    shapes = [p.shape for p in net.parameters()]
    assert [p.shape for p in pruned.parameters()] == shapes
    assert [n.removesuffix("_orig") for n, _ in pruned.named_parameters()] == [
        n for n, _ in net.named_parameters()
    ]
    mask.check(pruned)
    assert pruned.first.weight_orig is pruned.second.weight_orig
    for found in (oes.Mask.from_prune(pruned, source="prune"), oes.Mask.from_prune(pruned, net)):
        assert torch.equal(found.flat, mask.flat)
    assert list(mask.to_dict(pruned)) == list(mask.to_dict(net))
    assert torch.equal(oes.Mask.from_dict(pruned, mask.to_dict(net)).flat, mask.flat)


def test_parameters_kept_whole_are_not_pruned(net):
    mask = oes.Mask.from_dict(
        net,
        {
            n: torch.ones(p.shape) if n != "conv.bias" else torch.tensor([1, 0, 1])
            for n, p in net.named_parameters()
        },
    )
    mask.apply_prune(net)
    assert [name for name, _ in net.named_buffers() if name.endswith("_mask")] == ["conv.bias_mask"]
    assert torch.equal(oes.Mask.from_prune(net).flat, mask.flat)


def test_from_prune_reads_what_torch_pruned(net):
    """torch moves pruned parameters behind the others: names tell which they are, not the order."""
    torch.manual_seed(3)
    pruned = copy.deepcopy(net)
    pruned.second.weight = nn.Parameter(pruned.first.weight.detach().clone())  # torch prunes one place alone
    fresh = copy.deepcopy(pruned)
    prune.random_unstructured(pruned.conv, "weight", 0.5)
    prune.l1_unstructured(pruned.conv, "weight", 5)  # twice: what both keep
    prune.random_structured(pruned.first, "weight", 1, dim=0)
    prune.random_unstructured(pruned.norm, "weight", 1)
    with unchanged(pruned, fresh):
        mask = oes.Mask.from_prune(pruned, fresh, found="here")
        own = oes.Mask.from_prune(pruned)
    assert mask.settings == {"found": "here"}
    by_name = mask.to_dict(fresh)
    for name in ("conv.weight", "first.weight", "norm.weight"):
        assert torch.equal(by_name[name], pruned.get_buffer(f"{name}_mask").bool())
        assert 0 < int(by_name[name].sum()) < by_name[name].numel()
    assert all(by_name[name].all() for name in ("conv.bias", "norm.bias", "first.bias", "second.weight"))
    # The mask of the pruned network itself is in its present order, which prune.remove leaves as it is.
    assert list(own.to_dict(pruned)) != list(by_name)
    assert {n: m.tolist() for n, m in own.to_dict(pruned).items()} == {
        n: m.tolist() for n, m in by_name.items()
    }
    for module in (pruned.conv, pruned.first, pruned.norm):
        prune.remove(module, "weight")
    own.check(pruned)
    assert not (pruned.conv.weight[~own.to_dict(pruned)["conv.weight"]]).any()


def test_a_network_never_pruned_is_kept_whole(net):
    assert oes.Mask.from_prune(net).density == 1.0


def test_pruning_is_refused_where_it_would_be_ambiguous(net, mask):
    prune.random_unstructured(net.first, "weight", 0.5)
    with pytest.raises(oes.InputError, match=r"^pruned: .*first\.weight and second\.weight share"):
        oes.Mask.from_prune(net)
    with pytest.raises(oes.MaskMismatchError):  # torch has moved its parameters
        mask.apply_prune(net)
    whole = oes.Mask.from_flat(net, torch.ones(mask.flat.numel()))
    with pytest.raises(oes.InputError, match=r"^net: .*not yet pruned .*first\.weight_orig"):
        whole.apply_prune(net)
    with pytest.raises(oes.InputError, match=r"^masks: .*'0\.weight'"):
        oes.Mask.from_prune(Small(), nn.Sequential(nn.Linear(2, 2)))
    held = nn.ModuleDict({"list": nn.ParameterList([torch.ones(4)])})
    with unchanged(held), pytest.raises(oes.InputError, match=r"^net: .*list\.0 in a ParameterList"):
        oes.Mask.from_flat(held, [1, 0, 1, 1]).apply_prune(held)


def test_masks_of_torch_that_hold_other_values_are_refused(net):
    prune.identity(net.conv, "weight")
    net.conv.weight_mask[0] = 0.5
    with pytest.raises(
        oes.InputError, match=r"^conv\.weight_mask: expected only 0 and 1, got 18 .* such as 0\.5"
    ):
        oes.Mask.from_prune(net)


def test_a_pruned_network_trains_as_the_mask_alone(make_problem):
    """From a network that torch pruned to a training, by a network of the same class."""
    problem = make_problem(size=(16, 16))
    pruned = copy.deepcopy(problem.net)
    places = [(m, "weight") for m in pruned.modules() if isinstance(m, nn.Conv2d)]
    prune.global_unstructured(places, prune.L1Unstructured, amount=0.3)
    mask = oes.Mask.from_prune(pruned, problem.net)
    assert 0.6 < mask.density < 0.9
    fit = oes.train_sparse(problem.net, mask, problem.z, problem.noisy, steps=2)
    dropped = ~mask.to_dict(fit.net)["1.1.1.weight"]
    assert dropped.any()
    assert not fit.net.get_parameter("1.1.1.weight")[dropped].any()


# files of packed bits


def test_load_reads_packed_bits(net, mask, tmp_path):
    path = tmp_path / "mask.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, bits=np.packbits(mask.flat.numpy()), count=mask.flat.numel())
        found = oes.Mask.load(path, net)
        assert torch.equal(found.flat, mask.flat)
        assert found.settings == {"source": "mask.npz"}
        found.check(net)
    unnamed = path.rename(tmp_path / "mask")  # the contents tell
    assert torch.equal(oes.Mask.load(str(unnamed), net).flat, mask.flat)


def test_load_checks_the_network(net, mask, tmp_path):
    packed, pickled, ours = tmp_path / "mask.npz", tmp_path / "mask.pkl", tmp_path / "mask.safetensors"
    np.savez(packed, bits=np.packbits(mask.flat.numpy()), count=mask.flat.numel())
    pickled.write_bytes(pickle.dumps(mask.flat))
    mask.save(ours)
    for path in (packed, pickled):
        with pytest.raises(oes.InputError, match=rf"^net: .*{path.name}.*, got None$"):
            oes.Mask.load(path)
    for path in (packed, pickled):
        assert torch.equal(oes.Mask.from_published(net, path).flat, mask.flat)
    with pytest.raises(oes.InputError, match=ours.name):
        oes.Mask.from_published(net, ours)
    for path in (packed, pickled, ours):
        assert torch.equal(oes.Mask.load(path, net).flat, mask.flat)
        with pytest.raises(oes.MaskMismatchError, match=oes.fingerprint(nn.Linear(3, 3))):
            oes.Mask.load(path, nn.Linear(3, 3))
    assert torch.equal(oes.Mask.load(ours).flat, mask.flat)


@pytest.mark.parametrize("content", ["empty", "other"])
def test_load_says_what_an_npz_should_hold(net, content, tmp_path):
    path = tmp_path / "mask.npz"
    if content == "empty":
        path.touch()
    else:
        np.savez(path, other=np.zeros(3))
    with pytest.raises(oes.InputError, match=r"mask.npz: .*'bits' and 'count'"):
        oes.Mask.load(path, net)


BITS = np.packbits(np.ones(12, dtype=bool))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"bits": BITS}, "arrays bits and count alone"),
        ({"count": 12}, "arrays bits and count alone"),
        ({"bits": BITS, "count": 17}, "expected 3 bytes for 17 bits, got shape \\(2,\\)"),
        ({"bits": BITS, "count": 8}, "expected 1 bytes for 8 bits"),
        ({"bits": BITS, "count": 11}, "expected 11 bits, got more"),
        ({"bits": BITS, "count": -1}, "expected 0 bytes"),
        ({"bits": BITS, "count": 0}, "expected 0 bytes"),
        ({"bits": BITS, "count": 12.0}, "expected one integer as count"),
        ({"bits": BITS, "count": [12, 12]}, "expected one integer as count"),
        ({"bits": BITS.astype(np.int64), "count": 12}, "of int64"),
        ({"bits": BITS[None], "count": 12}, "got shape \\(1, 2\\)"),
        ({"bits": np.array([None, Small], dtype=object), "count": 12}, "arrays bits and count alone"),
        ({"other": BITS}, "file of the published code"),
    ],
    ids=str,
)
def test_packed_bits_that_do_not_fit(net, tmp_path, arrays, message):
    path = tmp_path / "mask.npz"
    np.savez(path, **arrays)
    with pytest.raises(oes.InputError, match=rf"mask\.npz: .*{message}"):
        oes.Mask.load(path, net)


def test_damaged_archives(net, mask, tmp_path):
    file = io.BytesIO()
    np.savez_compressed(file, bits=np.packbits(mask.flat.numpy()), count=mask.flat.numel())
    data, path = file.getvalue(), tmp_path / "mask.npz"
    for at in range(0, len(data), 7):
        for content in (data[:at], data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]):
            path.write_bytes(content)
            with contextlib.suppress(oes.InputError):
                assert oes.Mask.load(path, net).flat.shape == mask.flat.shape


def test_archives_that_unpack_to_far_too_much_are_refused(net, tmp_path):
    path = tmp_path / "mask.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("count.npy", b"")
        with archive.open("bits.npy", "w") as entry:
            for _ in range(129):
                entry.write(bytes(2**20))
    with pytest.raises(oes.InputError, match=r"mask\.npz: .*larger than 128 MiB"):
        oes.Mask.load(path, net)


def test_published_masks_are_read_as_they_are(published):
    net = oes.models.skip(seed=0)
    for name, bools in published.items():
        found = oes.Mask.load(REPO.parent / "shared" / "published" / f"{name}_mask.npz", net)
        assert torch.equal(found.flat, bools)
