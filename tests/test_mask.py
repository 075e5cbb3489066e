"""Masks: how they are made, matched to networks, and kept in files."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from conftest import unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import oes_fast as oes
from oes_fast.functional import gumbel_mask
from oes_fast.io.files import load_tensors, save_tensors


@pytest.fixture(scope="module")
def net():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(7, 5))  # 103 parameters


def random_bools(net, seed=0, density=0.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(sum(p.numel() for p in net.parameters()), generator=generator) < density


class Touch:
    """Leaves a trace if anybody unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


# from_flat


def test_from_flat_takes_every_form_of_booleans(net):
    bools = random_bools(net)
    expected = oes.Mask.from_flat(net, bools)
    assert torch.equal(expected.flat, bools)
    assert expected.flat.dtype == torch.bool
    assert expected.kept == int(bools.sum())
    assert expected.density == pytest.approx(bools.double().mean().item())
    frozen = bools.numpy().copy()
    frozen.flags.writeable = False
    forms = [bools.tolist(), bools.numpy(), frozen, bools.float(), bools.long().numpy(), bools.view(1, -1)]
    forms += [bools.double().requires_grad_(), bools.numpy()[::-1].copy()[::-1]]
    for form in forms:
        assert torch.equal(oes.Mask.from_flat(net, form).flat, bools)


def test_from_flat_copies(net):
    bools = random_bools(net)
    mask = oes.Mask.from_flat(net, bools, source="here")
    bools[:] = False
    assert mask.kept > 0
    assert mask.settings == {"source": "here"}
    assert f"{mask.kept} of 103" in repr(mask)


@pytest.mark.parametrize(
    "bools",
    [
        [True] * 102,
        [True] * 104,
        [],
        np.full(103, 2),
        np.full(103, 0.5),
        np.full(103, np.nan),
        ["yes"] * 103,
        None,
        np.array([None] * 103),
    ],
    ids=["short", "long", "empty", "2", "half", "NaN", "strings", "None", "objects"],
)
def test_from_flat_refuses(net, bools):
    with pytest.raises(oes.InputError, match=r"^bools: "):
        oes.Mask.from_flat(net, bools)


# from_logits


@settings(deadline=None, max_examples=30)
@given(density=st.floats(0.01, 1), levels=st.integers(1, 5), seed=st.integers(0, 2**64 - 1))
def test_from_logits_keeps_exactly_the_share_of_the_largest(net, density, levels, seed):
    logits = (torch.rand(103) * levels).floor()  # ties everywhere
    mask = oes.Mask.from_logits(net, logits, density, seed=seed)
    assert mask.kept == int(density * 103)
    assert logits[mask.flat].min() >= (logits[~mask.flat].max() if mask.kept < 103 else -1)
    assert torch.equal(mask.flat, oes.Mask.from_logits(net, logits, density, seed=seed).flat)


def test_ties_are_broken_by_the_seed(net):
    logits = torch.zeros(103)
    with unchanged(logits):
        masks = [oes.Mask.from_logits(net, logits, 0.5, seed=seed).flat for seed in range(20)]
    assert len({tuple(m.tolist()) for m in masks}) == 20
    kept = torch.stack(masks).float().mean(0)
    assert kept.min() > 0
    assert kept.max() < 1


def test_massive_ties_on_the_published_network():
    net = oes.models.skip(seed=0)
    logits = torch.zeros(3_008_867)
    logits[1000:2000] = 1
    logits[2000:3000] = -1
    mask = oes.Mask.from_logits(net, logits, 0.05, seed=7, lr=0.1)
    assert mask.kept == 150_443
    assert mask.flat[1000:2000].all()
    assert not mask.flat[2000:3000].any()
    halves = mask.flat[3000:].float().tensor_split(10)
    assert all(abs(float(h.mean()) - 0.05) < 0.005 for h in halves)  # no end of the vector is preferred
    assert mask.settings == {"density": 0.05, "seed": 7, "lr": 0.1}


def test_from_logits_takes_float64_and_gradients_and_zeros_of_both_signs(net):
    logits = torch.linspace(-1, 1, 103, dtype=torch.float64).requires_grad_()
    assert oes.Mask.from_logits(net, logits, 0.1).flat.nonzero().flatten().tolist() == list(range(93, 103))
    signed = torch.where(torch.arange(103) % 2 == 0, 0.0, -0.0)
    assert oes.Mask.from_logits(net, signed, 0.5).flat[1::2].any()


def test_from_logits_does_not_follow_the_default_device(net):
    with torch.device("meta"):
        assert oes.Mask.from_logits(net, torch.zeros(103, device="cpu"), 0.5).kept == 51


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(102)}, r"^logits: .*103.*102"),
        ({"logits": torch.zeros(1, 103)}, r"^logits: "),
        ({"logits": torch.zeros(103, dtype=torch.int64)}, r"^logits: .*int64"),
        ({"logits": [0.0] * 103}, r"^logits: .*list"),
        ({"logits": torch.full((103,), torch.nan)}, r"^logits: .*103 NaN or infinite of 103"),
        (
            {"logits": torch.cat([torch.zeros(102), torch.tensor([torch.inf])])},
            r"^logits: .*1 NaN or infinite",
        ),
        ({"density": 0.0}, r"^density: "),
        ({"density": 0.009}, r"^density: .*0\.009"),
        ({"density": 1.01}, r"^density: "),
        ({"density": torch.nan}, r"^density: "),
        ({"density": "0.5"}, r"^density: "),
        ({"seed": -1}, r"^seed: "),
        ({"seed": 2**64}, r"^seed: "),
    ],
)
def test_from_logits_refuses(net, changes, message):
    arguments = {"logits": torch.zeros(103), "density": 0.5} | changes
    with pytest.raises(oes.InputError, match=message):
        oes.Mask.from_logits(net, **arguments)


# networks


def test_a_mask_of_another_network_is_refused_with_both_fingerprints(net):
    other = nn.Sequential(nn.Linear(102, 1))  # as many parameters
    mask = oes.Mask.from_flat(net, random_bools(net))
    mask.check(net)
    for use in (mask.check, mask.layer_density, mask.shuffled):
        with pytest.raises(oes.MaskMismatchError) as caught:
            use(other)
        assert oes.fingerprint(net) in str(caught.value)
        assert oes.fingerprint(other) in str(caught.value)


def test_layer_density(net):
    bools = torch.zeros(103, dtype=torch.bool)
    bools[:27] = True  # half of the convolution's 54 weights
    bools[57:60] = True  # all of gamma
    density = oes.Mask.from_flat(net, bools).layer_density(net)
    assert list(density) == [name for name, _ in net.named_parameters()]
    assert density == pytest.approx({n: {"0.weight": 0.5, "1.weight": 1.0}.get(n, 0.0) for n in density})


def test_shuffled_keeps_the_density_of_every_tensor(net):
    mask = oes.Mask.from_flat(net, random_bools(net, density=0.3))
    with unchanged(mask.flat):
        first, again, other = (mask.shuffled(net, seed=seed) for seed in (0, 0, 1))
    assert first.layer_density(net) == mask.layer_density(net)
    assert torch.equal(first.flat, again.flat)
    assert not torch.equal(first.flat, other.flat)
    assert not torch.equal(first.flat, mask.flat)
    first.check(net)


def test_published_masks_fit_the_published_network(published, tmp_path):
    net = oes.models.skip(seed=0)
    for name, bools in published.items():
        mask = oes.Mask.from_flat(net, bools, image=name)
        assert mask.density == pytest.approx(0.05, abs=1e-6)
        mask.save(tmp_path / f"{name}.safetensors")
        assert torch.equal(oes.Mask.load(tmp_path / f"{name}.safetensors").flat, bools)
        assert (tmp_path / f"{name}.safetensors").stat().st_size < 400_000


def test_load_reads_published_pickles(net, tmp_path):
    bools = random_bools(net)
    for name, save in {"pickle": pickle.dump, "torch": torch.save}.items():
        path = tmp_path / name
        with path.open("wb") as file:
            save(bools.float(), file)
        mask = oes.Mask.load(path, net)
        assert torch.equal(mask.flat, bools)
        assert mask.settings == {"source": name}
        mask.check(net)


def test_load_executes_nothing_and_checks_the_length(net, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil"
    path.write_bytes(pickle.dumps(Touch(str(trace))))
    with pytest.raises(oes.InputError, match="evil"):
        oes.Mask.load(path, net)
    assert not trace.exists()
    torch.save(torch.ones(7), path)
    with pytest.raises(oes.MaskMismatchError, match=f"7 .*{oes.fingerprint(net)}"):
        oes.Mask.load(path, net)


# files


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 103])
def test_save_and_load(numel, tmp_path):
    net = nn.ParameterList([nn.Parameter(torch.zeros(numel))])
    mask = oes.Mask.from_flat(net, random_bools(net, numel), seed=3, note="ä", nested={"lr": [0.1, None]})
    mask.save(tmp_path / "mask.safetensors")
    again = oes.Mask.load(str(tmp_path / "mask.safetensors"))
    assert torch.equal(again.flat, mask.flat)
    assert again.fingerprint == mask.fingerprint
    assert again.settings == mask.settings
    assert [p.name for p in tmp_path.iterdir()] == ["mask.safetensors"]


def test_a_failing_save_keeps_the_older_file(net, tmp_path):
    path = tmp_path / "mask.safetensors"
    mask = oes.Mask.from_flat(net, random_bools(net))
    mask.save(path)
    before = path.read_bytes()
    with pytest.raises(oes.InputError, match="JSON"):
        oes.Mask.from_flat(net, random_bools(net), unwritable=object()).save(path)
    assert path.read_bytes() == before
    with pytest.raises(oes.OutputError, match="nowhere"):
        mask.save(tmp_path / "nowhere" / "mask.safetensors")


@pytest.fixture
def mask_file(net, tmp_path):
    path = tmp_path / "mask.safetensors"
    oes.Mask.from_flat(net, random_bools(net)).save(path)
    return path


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
def test_truncated_files_are_refused(mask_file, share):
    data = mask_file.read_bytes()
    mask_file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(oes.InputError, match=r"mask\.safetensors") as caught:
        oes.Mask.load(mask_file)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(net, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "mask.safetensors"
    oes.Mask.from_flat(net, random_bools(net)).save(path)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        mask = oes.Mask.load(path)
        mask.check(net)
    except oes.InputError:
        return
    assert mask.flat.shape == (103,)
    assert mask.flat.dtype == torch.bool


def test_files_that_are_no_mask(tmp_path):
    text = tmp_path / "text.safetensors"
    text.write_text("not a mask")
    tensors = tmp_path / "tensors.safetensors"
    save_tensors(tensors, {"bits": torch.zeros(3)})
    for path in (text, tensors, tmp_path, tmp_path / "missing"):
        with pytest.raises(oes.InputError, match=path.name):
            oes.Mask.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": None},
        {"count": "103"},
        {"count": -1},
        {"count": 10**12},
        {"count": 101.5},
        {"count": 97},  # as many bytes, but not the fingerprint's count
        {"fingerprint": None},
        {"fingerprint": 5},
        {"settings": None},
        {"settings": [1]},
        {"format": "oes_fast mask 2"},
    ],
    ids=str,
)
def test_metadata_that_does_not_fit(mask_file, changes):
    tensors, metadata = load_tensors(mask_file)
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    save_tensors(mask_file, tensors, metadata)
    with pytest.raises(oes.InputError, match=r"mask\.safetensors"):
        oes.Mask.load(mask_file)


@pytest.mark.parametrize("bits", [torch.zeros(12, dtype=torch.uint8), torch.zeros(13), torch.zeros(0)])
def test_bits_that_do_not_fit(mask_file, bits):
    save_tensors(mask_file, {"bits": bits}, load_tensors(mask_file)[1])
    with pytest.raises(oes.InputError, match=r"mask\.safetensors"):
        oes.Mask.load(mask_file)


# drawn masks


def test_drawn_masks_keep_each_weight_with_its_probability():
    net = nn.ParameterList([nn.Parameter(torch.zeros(2000))])
    logits = torch.linspace(-4, 4, 2000, dtype=torch.float64)
    draws = 400
    with unchanged(logits):
        kept = torch.stack([oes.Mask.drawn(net, logits, seed=3, draw=d).flat for d in range(draws)]).double()
    p = torch.sigmoid(logits)
    spread = (kept.mean(0) - p) / (p * (1 - p) / draws).sqrt()
    assert spread.abs().max() < 5
    assert float((spread**2).mean()) == pytest.approx(1, abs=0.2)
    rest = (kept - p) / (p * (1 - p)).sqrt()
    for first, second in ((rest[1:], rest[:-1]), (rest[:, 1:], rest[:, :-1])):  # draws, neighbours
        assert abs(float((first * second).mean())) < 4.5 / first.numel() ** 0.5


def test_a_drawn_mask_is_a_function_of_seed_and_draw(net):
    logits = torch.zeros(103)
    first = oes.Mask.drawn(net, logits, seed=2**64 - 1, lr=0.1)
    assert first.settings == {"mask_option": "drawn", "seed": 2**64 - 1, "draw": 0, "lr": 0.1}
    assert torch.equal(first.flat, oes.Mask.drawn(net, logits.double(), seed=2**64 - 1).flat)
    others = {"seed": 0}, {"seed": 2**64 - 1, "draw": 1}
    assert all((oes.Mask.drawn(net, logits, **other).flat != first.flat).any() for other in others)
    # Not the noise that a search with this seed has seen.
    seen = gumbel_mask(torch.ones(103), logits, seed=2**64 - 1, step=0, temperature=1e-4) > 0.5
    assert 20 < int((seen != first.flat).sum()) < 83
    first.check(net)


def test_from_draws_keeps_what_is_drawn_most_often(net):
    logits = torch.linspace(-2, 2, 103)
    mask = oes.Mask.from_draws(net, logits, 0.3, seed=5, draws=7, lr=0.1)
    assert mask.kept == 30
    assert mask.settings == {"mask_option": "mean", "density": 0.3, "seed": 5, "draws": 7, "lr": 0.1}
    counts = sum(oes.Mask.drawn(net, logits, seed=5, draw=d).flat.long() for d in range(7))
    assert counts[mask.flat].min() >= counts[~mask.flat].max()
    many = oes.Mask.from_draws(net, logits, 0.3, seed=5, draws=3000)
    assert (many.flat == oes.Mask.from_logits(net, logits, 0.3).flat).float().mean() > 0.95


def test_masks_of_more_than_two_levels(net):
    logits = torch.stack([torch.linspace(-3, 1, 103), torch.linspace(1, -4, 103)])
    assert oes.Mask.from_logits(net, logits, 0.2).kept == 20
    assert oes.Mask.from_draws(net, logits, 0.2, draws=3).kept == 20
    drawn = torch.stack([oes.Mask.drawn(net, logits, draw=d).flat for d in range(400)]).float().mean(0)
    p = torch.sigmoid(logits).sum(0).clamp(max=1)
    assert (drawn - p).abs().max() < 5 * 0.5 / 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(102)}, r"^logits: .*103.*102"),
        ({"logits": torch.zeros(1, 103)}, r"^logits: "),
        ({"logits": torch.zeros(2, 102)}, r"^logits: .*\(any, 103\)"),
        ({"logits": torch.full((103,), torch.nan)}, r"^logits: .*NaN"),
        ({"seed": -1}, r"^seed: "),
    ],
)
def test_drawn_masks_refuse(net, changes, message):
    arguments = {"logits": torch.zeros(103)} | changes
    with pytest.raises(oes.InputError, match=message):
        oes.Mask.drawn(net, **arguments)
    with pytest.raises(oes.InputError, match=message):
        oes.Mask.from_draws(net, **{"density": 0.5} | arguments)


@pytest.mark.parametrize(
    ("name", "value"), [("draws", 0), ("draws", 1.5), ("density", 0.0), ("density", 1.1), ("density", 1e-3)]
)
def test_from_draws_refuses(net, name, value):
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        oes.Mask.from_draws(net, torch.zeros(103), **{"density": 0.5, name: value})
    with pytest.raises(oes.InputError, match=r"^draw: "):
        oes.Mask.drawn(net, torch.zeros(103), draw=2**32)
