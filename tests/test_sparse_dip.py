"""``oes.SparseDIP`` where deepinv's own DeepImagePrior runs: its tests' substance, and batches."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from conftest import REPO
from optional_packages import deepinv
from torch import nn

import oes_fast as oes

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.errors.CollapsedRunWarning")

SMALL = {"num_channels_down": (4, 6), "filter_size_down": 3}
QUICK = {"density": 0.5, "search_steps": 2, "train_steps": 3, "backend": "torch", "verify": False}


@pytest.fixture(scope="module")
def physics():
    return deepinv().physics


def image(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def dip(**options):
    return oes.SparseDIP(**({"options": SMALL} | QUICK | options))


def test_it_is_imported_when_it_is_asked_for():
    code = """
import sys
import oes_fast as oes
assert "deepinv" not in sys.modules
assert "SparseDIP" in dir(oes)
sys.modules["deepinv"] = None
try:
    oes.SparseDIP
except oes.OESError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'pip install "oes_fast[physics]"' in done.stdout
    assert done.stdout.count("\n") == 1
    assert not hasattr(oes, "Sparse")


def test_it_removes_noise_as_deepinvs_prior_does(physics):
    """The test that deepinv has for DeepImagePrior, with its decoder."""
    size, models = (3, 37, 31), deepinv().models
    torch.manual_seed(0)
    denoising = physics.Denoising(physics.GaussianNoise(0.2))
    decoder = models.ConvDecoder(img_size=size, layers=3, channels=16)
    before = copy.deepcopy(decoder.state_dict())
    model = oes.SparseDIP(
        decoder,
        (16, 37, 31),
        density=0.7,
        search_steps=5,
        train_steps=120,
        lr=2e-2,
        average=0.9,
        backend="torch",
        verify=False,
    )
    assert isinstance(model, models.Reconstructor)
    x = torch.ones(1, *size)
    y = denoising(x)
    restored = model(y, denoising)
    assert restored.shape == x.shape
    assert not restored.requires_grad
    assert (restored - x).pow(2).mean() < (y - x).pow(2).mean()
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    (found,) = model.trained
    assert torch.equal(found.train.average, restored)
    assert found.mask.density == pytest.approx(0.7, abs=1e-3)
    assert found.search.steps == 5


def test_it_is_evaluated_by_deepinv(physics):
    """As a model of deepinv.test, without gradients, on batches; a last step of a benchmark."""
    dinv = deepinv()
    operator = physics.Inpainting(img_size=(3, 16, 16), mask=0.7)
    x = image(2, 3, 16, 16)
    data = torch.utils.data.TensorDataset(x, operator(x))
    results = dinv.test(
        dip().eval(),
        torch.utils.data.DataLoader(data, batch_size=2),
        operator,
        device="cpu",
        verbose=False,
        show_progress_bar=False,
    )
    assert any("PSNR" in name for name in results)


def operators(physics):
    size = (3, 16, 20)
    kernel = torch.ones(1, 1, 3, 3) / 9
    mask = (image(16, 20) > 0.4).float()
    return {
        "blur": (physics.Blur(filter=kernel, padding="circular"), size),
        "smaller": (physics.Downsampling(img_size=size, factor=2, filter="gaussian"), size),
        "MRI": (physics.MRI(mask=mask, img_size=(2, 16, 20)), (2, 16, 20)),
        "stacked": (
            physics.StackedLinearPhysics(
                [physics.Denoising(), physics.Blur(filter=kernel, padding="circular")]
            ),
            size,
        ),
        "sensing": (physics.CompressedSensing(m=40, img_size=(1, 16, 20)), (1, 16, 20)),
    }


@pytest.mark.parametrize("kind", ["blur", "smaller", "MRI", "stacked", "sensing"])
def test_operators_and_batches(physics, kind):
    operator, size = operators(physics)[kind]
    x = image(2, *size)
    y = operator(x)
    model = dip()
    both = model(y, operator)
    assert both.shape == x.shape
    assert len(model.trained) == 2
    assert not torch.equal(*(each.mask.flat for each in model.trained))
    one = [part[:1] for part in y] if kind == "stacked" else y[:1]
    alone = dip()(deepinv().utils.TensorList(one) if kind == "stacked" else one, operator)
    torch.testing.assert_close(alone, both[:1], rtol=1e-4, atol=1e-5)


def test_operators_with_parameters_for_each_image(physics):
    x = image(2, 3, 16, 20)
    masks = (image(2, 3, 16, 20, seed=1) > 0.5).float()
    operator = physics.Inpainting(img_size=(3, 16, 20), mask=masks)
    both = dip(seed=4)(operator(x), operator)
    for number in range(2):
        own = physics.Inpainting(img_size=(3, 16, 20), mask=masks[number])
        alone = dip(seed=4 + number)(own(x[number : number + 1]), own)
        torch.testing.assert_close(alone[0], both[number], rtol=1e-4, atol=1e-5)


def test_complex_measurements():
    deepinv()

    class Fourier:
        def A(self, x):
            return torch.fft.fft2(x, norm="ortho")

    x = image(1, 3, 16, 20)
    model = dip(img_size=(3, 16, 20), tv=0.1, train={"clean": x})
    assert model(Fourier().A(x), Fourier()).shape == x.shape
    assert model.trained[0].train.history.psnr[-1] > 0
    with pytest.raises(oes.InputError, match=r"^img_size: expected .* physics.A_adjoint\(y\) fails: Attr"):
        dip()(Fourier().A(x), Fourier())


def test_masks_that_are_given_or_shared(physics):
    operator = physics.Denoising()
    y = image(2, 3, 16, 16)
    model = dip(share_mask=True)
    model(y, operator)
    first, second = model.trained
    assert first.search is not None
    assert second.search is None
    assert torch.equal(first.mask.flat, second.mask.flat)
    given = dip(mask=first.mask, average=None)
    restored = given(y[:1], operator)
    assert given.trained[0].search is None
    assert torch.equal(restored, given.trained[0].train.output)


def test_the_same_again(physics):
    operator, y = physics.Denoising(), image(1, 3, 16, 16)
    model = dip(seed=3)
    with torch.inference_mode():
        first = model(y, operator)
    assert torch.equal(model(y, operator), first)
    assert not torch.equal(dip(seed=4)(y, operator), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": 3}, r"^generator: expected a torch.nn.Module, got int"),
        ({"generator": nn.Identity()}, r"^z: expected it together with generator"),
        ({"z": (3, 8, 8)}, r"^z: expected it together with generator"),
        ({"mask": torch.ones(3)}, r"^mask: expected an oes_fast.Mask, got Tensor"),
        ({"options": {"depth": 3}}, r"^options: expected options of skip"),
        ({"model": "unknown"}, r"^model: "),
        ({"img_size": (3, 0, 8)}, r"^img_size: expected an integer >= 1"),
        ({"density": 1.0}, r"^density: "),
        ({"search_steps": -1}, r"^search_steps: "),
        ({"train_steps": 1.5}, r"^train_steps: "),
        ({"search_lr": 0}, r"^search_lr: "),
        ({"search_kl": -1}, r"^search_kl: "),
        ({"tv": -1}, r"^tv: "),
        ({"entry": 1}, r"^entry: expected it together with generator, got 1 without"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_arguments_that_do_not_fit(options, message):
    deepinv()
    with pytest.raises(oes.InputError, match=message):
        oes.SparseDIP(**options)


class Beside(nn.Module):
    """Its image beside the features that it is made of."""

    def __init__(self, together):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.together = together

    def forward(self, z):
        features = torch.relu(self.first(z))
        image = torch.sigmoid(self.last(features))
        return (features, image) if self.together else image


def test_a_generator_of_several_results(physics):
    operator = physics.Denoising()
    y, z = image(2, 3, 8, 8), image(1, 2, 8, 8)
    options = {"density": 0.9, "search_steps": 2, "train_steps": 3, "backend": "torch", "verify": False}
    wanted = oes.SparseDIP(Beside(False), z, **options)(y, operator)
    assert torch.equal(oes.SparseDIP(Beside(True), z, entry=1, **options)(y, operator), wanted)
    with pytest.raises(oes.InputError, match=r"generator: .* got a tuple of 2; .* entry="):
        oes.SparseDIP(Beside(True), z, **options)(y, operator)


def test_measurements_that_do_not_fit(physics):
    operator, y = physics.Denoising(), image(1, 3, 16, 16)
    for wrong, message in (
        (y.numpy(), r"^y: expected measurements \[N, ...\]"),
        (y[:0], r"^y: expected a measurement at least"),
        (y.half(), r"^y: expected float32, float64"),
        ([y, y.double()], r"^y: expected measurements of one dtype"),
    ):
        with pytest.raises(oes.InputError, match=message):
            dip()(wrong, operator)
    with pytest.raises(oes.InputError, match=r"^physics: expected an operator with a method A, got NoneType"):
        dip()(y, None)


def batch(physics, count=2):
    denoising = physics.Denoising(physics.GaussianNoise(0.0))
    return image(count, 3, 16, 16), denoising


def test_checkpoints_are_of_each_image(physics, tmp_path):
    y, operator = batch(physics)
    search = {"checkpoint": tmp_path / "search.ckpt", "resume": True, "checkpoint_seconds": 0.0}
    train = {**search, "checkpoint": str(tmp_path / "train.ckpt")}
    whole = dip()(y, operator)
    stop = {"callback": lambda info: info.step == 1}
    stopped = dip(search=search, train={**train, **stop})
    stopped(y, operator)
    assert all(each.train.interrupted for each in stopped.trained)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "search-0.ckpt",
        "search-1.ckpt",
        "train-0.ckpt",
        "train-1.ckpt",
    ]
    resumed = dip(search=search, train=train)
    assert torch.equal(resumed(y, operator), whole)
    dip(train={"checkpoint": tmp_path / "one.ckpt"})(y[:1], operator)
    assert (tmp_path / "one.ckpt").is_file()


def test_checkpoints_of_a_call_that_was_broken_off_are_set_aside_together(physics, tmp_path):
    y, operator = batch(physics)
    files = {"search": {"checkpoint": tmp_path / "s.ckpt"}, "train": {"checkpoint": tmp_path / "t.ckpt"}}

    def stop(info):
        if info.phase == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # image 1 is not even begun
        dip(search=files["search"], train={**files["train"], "checkpoint_seconds": 0, "callback": stop})(
            y, operator
        )
    kept = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(kept) == ["s-0", "t-0"]
    with pytest.warns(oes.CheckpointWarning, match="set aside as") as warned:
        dip(**files)(y, operator)
    assert {f"{stem}.old.ckpt": data for stem, data in kept.items()} == {
        path.name: path.read_bytes() for path in tmp_path.glob("*.old.ckpt")
    }
    assert [each.category for each in warned].count(oes.CheckpointWarning) == 2
    dip(**files)(y, operator)  # that was finished, and is overwritten
    assert len(list(tmp_path.iterdir())) == 6


def test_clean_images_and_weights_are_of_each_image(physics):
    y, operator = batch(physics)
    clean, weight = image(2, 3, 16, 16, seed=1), (image(2, 3, 16, 16, seed=2) > 0.5).float()
    model = dip(search={"clean": clean, "weight": weight}, train={"clean": clean, "weight": weight})
    model(y, operator)
    for number, each in enumerate(model.trained):
        one = slice(number, number + 1)
        psnr = float(oes.psnr(each.train.output, clean[one]))
        assert each.train.history.psnr[-1] == pytest.approx(psnr, abs=1e-3)
        options = {"clean": clean[one], "weight": weight[one]}
        alone = dip(seed=number, search=options, train=options)
        alone(y[one], operator)
        assert alone.trained[0].search.history.psnr == each.search.history.psnr
        assert torch.equal(alone.trained[0].train.output, each.train.output)
    shared = dip(train={"clean": clean[:1]})
    shared(y, operator)
    assert all(each.train.history.psnr for each in shared.trained)
    with pytest.raises(oes.InputError, match="clean: expected 2 images as y has, got 3"):
        dip(train={"clean": image(3, 3, 16, 16)})(y, operator)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"train": {"step": 3}},
            r"train: expected arguments of oes_fast.train_sparse \(loss, .*steps.* 'step'",
        ),
        ({"search": {"clear": 3}}, r"search: expected arguments of oes_fast.search_mask \(.*clean.* 'clear'"),
        ({"train": {"forward": abs}}, "train: expected arguments .* got 'forward'"),
        ({"train": 3}, "train: expected arguments of oes_fast.train_sparse by name, got int"),
        (
            {"train": {"checkpoint": "a.ckpt"}, "search": {"checkpoint": "./a.ckpt"}},
            "train: expected another checkpoint than search's, got a.ckpt in both",
        ),
    ],
)
def test_further_arguments_that_do_not_fit(options, says, physics):
    with pytest.raises(oes.InputError, match=says):
        dip(**options)
