"""Tasks: operators are deepinv's, shapes, seeds, scales, and what does not fit is refused."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import optional_packages
import pytest
import torch
from conftest import REPO, assert_close

import oes_fast as oes
from oes_fast.pipelines.clean import CleanView
from oes_fast.tasks import mri as _  # noqa: F401  # the module, whose name the function has
from oes_fast.tasks.packages import make_filter, package

mri_module = importlib.import_module("oes_fast.tasks.mri")


@pytest.fixture(scope="module")
def physics() -> ModuleType:
    optional_packages.deepinv()
    return importlib.import_module("deepinv.physics")


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(0))


def noise_of(shape: torch.Size | tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """What add_noise adds with sigma 1."""
    return oes.add_noise(torch.zeros(shape), 1.0, seed, clip=False)


class TestInpainting:
    def test_operator_is_deepinv_s_and_noise_comes_to_known_pixels(self, physics, image):
        mask = torch.zeros(24, 20, dtype=torch.bool)
        mask[::2] = True
        task = oes.tasks.inpainting(image, mask, sigma=0.1, seed=3)
        wanted = physics.Inpainting(img_size=(3, 24, 20), mask=mask[None].float())
        assert isinstance(task.forward, physics.Inpainting)
        assert torch.equal(task.forward.A(image), wanted.A(image))
        assert torch.equal(task.noisy, (wanted.A(image) + 0.1 * noise_of(image.shape, 3)) * mask)
        assert task.noisy.min() < 0  # not clipped
        assert task.shape == (3, 24, 20)
        assert task.clean is image
        assert (task.sigma, task.seed) == (0.1, 3)
        assert task.first is task.noisy
        assert task.shown(image) is image

    def test_measured_image(self, physics, image):
        mask = torch.ones(1, 3, 24, 20)
        mask[:, 0, :5] = 0
        task = oes.tasks.inpainting(image, mask, clean=image.flip(-1))
        assert torch.equal(task.noisy, image * mask)
        assert torch.equal(task.clean, image.flip(-1))
        assert (task.sigma, task.seed) == (None, None)

    def test_missing_pixels_are_those_of_the_seed(self, physics):
        image = torch.ones(1, 3, 64, 64)
        first, again, other = (
            oes.tasks.inpainting(image, missing=0.3, sigma=0, seed=seed).noisy for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(first[:, 0], first[:, 2])
        assert float(first.mean()) == pytest.approx(0.7, abs=0.03)
        double = oes.tasks.inpainting(image.double(), missing=0.3, sigma=0, seed=0).noisy
        assert double.dtype == torch.float64
        assert torch.equal(double, first.double())

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({}, "mask: expected it or missing, got neither"),
            ({"mask": torch.ones(24, 20), "missing": 0.5}, "mask: expected it or missing, got both"),
            ({"missing": 0.0}, "missing: expected a finite number > 0"),
            ({"missing": 1.5}, "missing: expected"),
            ({"mask": torch.ones(20, 24)}, r"mask: expected shape \(24, 20\) as the image, got \(20, 24\)"),
            ({"mask": torch.full((24, 20), 0.5)}, "mask: expected 0 or 1"),
            ({"mask": torch.zeros(24, 20)}, "mask: expected one known pixel at least"),
            ({"mask": [[1]]}, "mask: expected a torch.Tensor, got list"),
            ({"missing": 0.5, "sigma": -1.0}, "sigma: expected"),
            ({"missing": 0.5, "sigma": 25.0}, "divide by 255"),
            ({"missing": 0.5, "seed": -1}, "seed: expected"),
            ({"missing": 0.5, "clean": torch.ones(1, 3, 4, 4)}, "clean: expected shape"),
            ({"missing": 0.5, "sigma": 0.1, "clean": torch.ones(1, 3, 24, 20)}, "clean: expected None"),
        ],
    )
    def test_refusals(self, physics, image, arguments, says):
        with pytest.raises(oes.InputError, match=says):
            oes.tasks.inpainting(image, **arguments)

    @pytest.mark.parametrize(
        "wrong", [torch.rand(3, 24, 20), torch.rand(1, 2, 24, 20), torch.rand(1, 1, 0, 4)]
    )
    def test_images_are_grey_or_rgb(self, wrong):
        with pytest.raises(oes.InputError, match="image: expected shape"):
            oes.tasks.inpainting(wrong, missing=0.5)
        with pytest.raises(oes.InputError, match="image: expected finite"):
            oes.tasks.deblurring(torch.full((1, 1, 16, 16), torch.nan), gaussian=1.0)


class TestSuperresolution:
    @pytest.mark.parametrize("factor", [2, 4])
    def test_bicubic_is_deepinv_s_of_matlab(self, physics, image, factor):
        task = oes.tasks.superresolution(image, factor, sigma=0.2, seed=1)
        wanted = physics.DownsamplingMatlab(factor=factor).A(image)
        assert wanted.shape == (1, 3, 24 // factor, 20 // factor)
        assert torch.equal(task.forward.A(image), wanted)
        assert torch.equal(task.noisy, wanted + 0.2 * noise_of(wanted.shape, 1))
        assert task.shape == (3, 24, 20)
        assert task.first.shape == image.shape

    @pytest.mark.parametrize("filter", ["gaussian", "bilinear"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_other_filters(self, physics, image, filter, dtype):
        image = image.to(dtype)
        task = oes.tasks.superresolution(image, 2, filter=filter, sigma=0)
        wanted = physics.Downsampling(img_size=(3, 24, 20), filter=filter, factor=2, padding="reflect")
        assert_close(task.noisy, wanted.A(image.float()).to(dtype), 1e-6)
        assert task.noisy.dtype == dtype

    def test_a_pixel_lies_in_the_middle_of_those_it_stands_for(self, physics):
        ramp = torch.arange(64.0).expand(1, 1, 64, 64) / 64
        for factor in (2, 3, 4):
            part = ramp[..., : 64 // factor * factor, : 64 // factor * factor]
            task = oes.tasks.superresolution(part, factor, sigma=0)
            assert float(task.noisy[0, 0, 5, 5]) == pytest.approx((5 * factor + (factor - 1) / 2) / 64)
            inner = (..., slice(16, 44), slice(16, 44))
            assert_close(task.first[inner], part[inner], 0.01)

    def test_measured_image(self, physics, image):
        task = oes.tasks.superresolution(image, 3)
        assert task.noisy is image
        assert task.shape == (3, 72, 60)
        assert task.forward.A(torch.rand(1, 3, 72, 60)).shape == image.shape
        assert task.clean is None

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"factor": 1}, "factor: expected an integer >= 2, got 1"),
            ({"factor": 2.0}, "factor: expected an integer"),
            ({"factor": 3, "sigma": 0.0}, "divides the image's 24 rows and 20 columns, got 3"),
            ({"factor": 2, "filter": "lanczos"}, "filter: expected one of bicubic, gaussian, bilinear"),
            (
                {"factor": 4, "filter": "gaussian", "sigma": 0.0},
                "whose filter fits the image of 20 x 24 pixels",
            ),
            ({"factor": 4, "clean": torch.ones(1, 3, 24, 20)}, r"clean: expected shape \(1, 3, 96, 80\)"),
        ],
    )
    def test_refusals(self, physics, image, arguments, says):
        with pytest.raises(oes.InputError, match=says):
            oes.tasks.superresolution(image, **arguments)


class TestDeblurring:
    @pytest.mark.parametrize("padding", ["reflect", "replicate", "circular", "valid"])
    def test_operator_is_deepinv_s(self, physics, image, padding):
        kernel = torch.rand(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        task = oes.tasks.deblurring(image, kernel, padding=padding, sigma=0.05, seed=2)
        taps = (kernel / kernel.sum()).float()[None, None]
        if padding == "circular":
            wanted = physics.BlurFFT(img_size=(3, 24, 20), filter=taps).A(image)
        else:
            wanted = physics.Blur(filter=taps, padding=padding).A(image)
        assert_close(task.forward.A(image), wanted, 1e-6)
        assert_close(task.noisy, wanted + 0.05 * noise_of(wanted.shape, 2), 1e-6)
        assert task.noisy.shape == (1, 3, 20, 18) if padding == "valid" else image.shape

    def test_gaussian(self, physics, image):
        task = oes.tasks.deblurring(image, gaussian=1.2, sigma=0)
        taps = make_filter("gaussian_blur")(sigma=(1.2, 1.2))
        wanted = physics.Blur(filter=taps, padding="reflect").A(image)
        assert_close(task.noisy, wanted, 1e-6)

    def test_valid_shows_what_was_measured(self, physics, image):
        kernel = torch.ones(5, 3)
        measured = oes.tasks.deblurring(image, kernel, padding="valid", clean=image)
        assert measured.shape == (3, 28, 22)
        larger = torch.rand(1, 3, 28, 22)
        assert measured.forward.A(larger).shape == measured.noisy.shape == image.shape
        assert torch.equal(measured.shown(larger), larger[..., 2:26, 1:21])
        assert torch.equal(measured.clean.image, image)
        made = oes.tasks.deblurring(image, kernel, padding="valid", sigma=0)
        assert isinstance(made.clean, CleanView)
        assert torch.equal(made.clean.image, image[..., 2:22, 1:19])
        assert torch.equal(made.clean.view(image), made.clean.image)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({}, "kernel: expected it or gaussian, got neither"),
            ({"kernel": torch.ones(3, 3), "gaussian": 1.0}, "got both"),
            ({"kernel": torch.ones(4, 3)}, "expected an odd number of rows and columns, got 4 and 3"),
            ({"kernel": torch.ones(3)}, "kernel: expected 2 dimensions"),
            ({"kernel": torch.ones(25, 3)}, "no larger than the image of 20 x 24 pixels, got 3 x 25"),
            ({"kernel": torch.zeros(3, 3)}, "kernel: expected weights with a sum above 0, got 0"),
            ({"kernel": torch.full((3, 3), torch.nan)}, "kernel: expected finite values"),
            ({"gaussian": 0.0}, "gaussian: expected a finite number > 0"),
            ({"gaussian": 1e10, "padding": "valid"}, "gaussian: expected at most half the side of the image"),
            ({"gaussian": 9.0}, "gaussian: expected a kernel no larger than the image"),
            ({"gaussian": 1.0, "padding": "zeros"}, "padding: expected one of reflect"),
        ],
    )
    def test_refusals(self, physics, image, arguments, says):
        with pytest.raises(oes.InputError, match=says):
            oes.tasks.deblurring(image, **arguments)


def maps_of(coils: int = 4, size: tuple[int, int] = (32, 24)) -> torch.Tensor:
    """Smooth sensitivities with phases, [coils, H, W]."""
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    places = [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)][:coils]
    return torch.stack(
        [
            torch.exp(-((rows - a) ** 2 + (columns - b) ** 2) / 1.5 + 0.5j * (a * rows + b * columns))
            for a, b in places
        ]
    )


@pytest.fixture
def phantom() -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 24), indexing="ij")
    disc = ((rows**2 + columns**2) < 0.6).float() - 0.5 * ((rows**2 + (columns - 0.2) ** 2) < 0.1).float()
    return disc[None, None]


class TestMri:
    def test_of_an_image(self, physics, phantom):
        task = oes.tasks.mri(phantom, acceleration=4, sigma=0.01, seed=5)
        x = torch.cat([phantom, torch.zeros_like(phantom)], dim=1)
        known = task.forward.mask[0, 0]
        wanted = physics.MRI(mask=known)
        assert type(task.forward) is physics.MRI
        assert torch.equal(task.forward.A(x), wanted.A(x))
        assert torch.equal(task.noisy, (wanted.A(x) + 0.01 * noise_of(x.shape, 5)) * known)
        assert task.shape == (2, 32, 24)
        assert task.settings["measured"] == pytest.approx(6 / 24)
        assert task.settings["scale"] == 1.0
        assert task.model_options == {"need_sigmoid": False}
        assert_close(task.shown(x), phantom, 1e-6)
        assert torch.equal(task.clean.image, phantom)
        assert_close(task.first, wanted.A_adjoint(task.noisy, mag=True), 1e-6)

    @pytest.mark.parametrize("pattern", ["random", "equispaced"])
    def test_columns_are_those_of_the_seed(self, physics, phantom, pattern):
        def columns(seed: int) -> torch.Tensor:
            arguments = {"acceleration": 4, "center_fraction": 0.1, "pattern": pattern, "sigma": 0}
            mask = oes.tasks.mri(phantom, seed=seed, **arguments).forward.mask[0, 0]
            assert torch.equal(mask, mask[:1].expand_as(mask))
            return mask[0]

        state = torch.get_rng_state()
        assert torch.equal(columns(0), columns(0))
        assert torch.equal(torch.get_rng_state(), state)
        drawn = torch.stack([columns(seed) for seed in range(6)])
        assert len(set(map(tuple, drawn.tolist()))) > 1
        assert bool(drawn[:, 11:13].all())
        assert float(drawn.sum(dim=1).mean()) == pytest.approx(6, abs=1)

    def test_single_coil_is_scaled_by_the_zero_filled_image(self, physics, phantom):
        kspace = physics.MRI.fft(1e-3 * phantom[0, 0] * torch.exp(torch.tensor(0.7j)))
        mask = torch.zeros(24)
        mask[4:20] = 1
        task = oes.tasks.mri(kspace, mask)
        assert float(task.first.max()) == pytest.approx(1.0)
        scale = task.settings["scale"]
        assert scale == pytest.approx(float((physics.MRI.ifft(kspace * mask)).abs().max()))
        assert_close(
            torch.view_as_complex(task.noisy[0].movedim(0, -1).contiguous()) * scale, kspace * mask, 1e-6
        )
        clean = 1e-3 * phantom[0, 0, 4:28, 2:22]
        known = oes.tasks.mri(kspace, mask, clean=clean)
        assert torch.equal(known.noisy, task.noisy)  # the clean image has no say in what is fitted
        x = torch.view_as_real(physics.MRI.ifft(kspace)).movedim(-1, 0)[None] / scale
        assert_close(known.shown(x), clean[None, None] / clean.max(), 1e-5)
        assert float(known.clean.image.max()) == 1.0

    def test_numbers_that_overflow_are_refused(self, physics):
        for value in (1e30, 1e-30):
            with pytest.raises(oes.InputError, match="measured: expected"):
                oes.tasks.mri(torch.full((16, 16), value, dtype=torch.complex64))

    def test_what_is_zero_was_not_measured(self, physics, phantom):
        kspace = physics.MRI.fft(maps_of() * phantom[0, 0])
        kspace[..., 3] = 0
        kspace[0, :, 7] = 0  # the other coils have something there
        mask = oes.tasks.mri(kspace).forward.mask[0, 0]
        assert mask.sum(dim=0).tolist() == [0 if column == 3 else 32 for column in range(24)]

    def test_coils(self, physics, phantom):
        maps = maps_of()
        total = maps.abs().square().sum(dim=0).sqrt()
        kspace = physics.MRI.fft(maps / total * phantom[0, 0])
        task = oes.tasks.mri(kspace, acceleration=2, coil_maps=3 * maps, sigma=0)
        assert isinstance(task.forward, physics.MultiCoilMRI)
        assert task.noisy.shape == (1, 2, 4, 32, 24)
        x = torch.cat([phantom, torch.zeros_like(phantom)], dim=1) / task.settings["scale"]
        assert_close(task.forward.A(x), task.noisy, 1e-5)
        assert_close(task.clean.image, phantom, 1e-5)
        assert_close(task.shown(x), phantom, 1e-5)
        simulated = oes.tasks.mri(phantom, acceleration=2, coil_maps=maps, sigma=0)
        assert_close(simulated.noisy, task.noisy * task.settings["scale"], 1e-5)

    def test_one_coil_of_several_dimensions(self, physics, phantom):
        kspace = physics.MRI.fft(phantom[0, 0].to(torch.complex64))
        wanted = oes.tasks.mri(kspace, torch.ones(24))
        assert torch.equal(oes.tasks.mri(kspace[None], torch.ones(24)).noisy, wanted.noisy)
        phase = torch.exp(torch.tensor(0.3j)) * torch.ones(1, 32, 24)
        for samples in (kspace, kspace[None]):
            task = oes.tasks.mri(samples, torch.ones(24), coil_maps=phase)
            assert_close(task.noisy[:, :, 0], wanted.noisy, 1e-6)
            assert_close(task.first, wanted.first, 1e-5)

    def test_coil_maps_are_estimated_from_the_middle(self, physics):
        maps = maps_of(size=(48, 48))
        total = maps.abs().square().sum(dim=0, keepdim=True).sqrt()
        disc = torch.ones(48, 48)
        kspace = physics.MRI.fft(maps / total * disc)
        mask = torch.zeros(48)
        mask[::4] = 1
        mask[18:31] = 1
        found = mri_module.estimate_coil_maps(kspace * mask, mask.expand(48, 48))
        assert_close(found.abs().square().sum(dim=0), torch.ones(48, 48), 1e-5)
        inner = (..., slice(8, -8), slice(8, -8))
        assert float((found[inner] - (maps / total)[inner]).abs().max()) < 0.05
        # k-space outside the square that was measured whole has no say
        other = kspace.clone()
        other[..., :17] = 5
        assert torch.equal(mri_module.estimate_coil_maps(other * mask, mask.expand(48, 48)), found)

    def test_simulated_noise_comes_before_everything_that_is_estimated(self, physics, phantom):
        kspace = physics.MRI.fft(maps_of() * phantom[0, 0])
        task = oes.tasks.mri(kspace, torch.ones(24), sigma=0.1, seed=4)
        top = float((physics.MRI.ifft(kspace).abs().square().sum(dim=0).sqrt()).max())
        noisy = torch.view_as_real(kspace).movedim(-1, 0)[None]
        noisy = noisy + 0.1 * top * noise_of(noisy.shape, 4)
        assert_close(task.noisy * task.settings["scale"], noisy, 1e-5)
        samples = torch.view_as_complex(noisy[0].movedim(0, -1).contiguous())
        wanted = mri_module.estimate_coil_maps(samples, torch.ones(32, 24))
        assert_close(task.forward.coil_maps[0], wanted, 1e-4)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"mask": torch.ones(24), "acceleration": 4}, "mask: expected it or acceleration, got both"),
            ({"mask": torch.ones(32)}, r"mask: expected shape \(24,\) or \(32, 24\) as k-space, got \(32,\)"),
            ({"mask": torch.full((24,), 0.5)}, "mask: expected 0 or 1"),
            ({"mask": torch.zeros(24)}, "mask: expected one sample at least"),
            ({"acceleration": 1}, "acceleration: expected an integer >= 2"),
            (
                {"acceleration": 4, "center_fraction": 0.5},
                "center_fraction: expected fewer than the 6 columns",
            ),
            ({"pattern": "spiral"}, "pattern: expected one of random, equispaced"),
            ({"coil_maps": torch.ones(2, 32, 24)}, "coil_maps: expected dtype complex64"),
            ({"coil_maps": maps_of(2)}, r"coil_maps: expected shape \(4, 32, 24\), got \(2, 32, 24\)"),
            ({"mask": torch.arange(24) != 12}, "samples about the centre of k-space to estimate them from"),
            ({"clean": torch.ones(64, 64)}, r"clean: expected a magnitude of at most \(32, 24\)"),
            ({"clean": -torch.ones(8, 8)}, "clean: expected a magnitude >= 0"),
            ({"clean": torch.ones(8, 8), "sigma": 0.0}, "clean: expected None with sigma"),
        ],
    )
    def test_refusals(self, physics, phantom, arguments, says):
        kspace = physics.MRI.fft(maps_of() * phantom[0, 0])
        with pytest.raises(oes.InputError, match=says):
            oes.tasks.mri(kspace, **arguments)

    def test_refusals_of_what_was_measured(self, physics, phantom):
        with pytest.raises(oes.InputError, match="expected complex k-space, or an image with sigma"):
            oes.tasks.mri(phantom)
        with pytest.raises(oes.InputError, match="mask: expected it or acceleration for an image"):
            oes.tasks.mri(phantom, sigma=0)
        with pytest.raises(oes.InputError, match=r"measured: expected shape \(1, 1, any, any\)"):
            oes.tasks.mri(phantom[0], acceleration=2, sigma=0)
        with pytest.raises(oes.InputError, match="got zeros alone"):
            oes.tasks.mri(torch.zeros(16, 16, dtype=torch.complex64), torch.ones(16))
        with pytest.raises(oes.InputError, match=r"\(H, W\) or \(coils, H, W\)"):
            oes.tasks.mri(torch.zeros(1, 1, 16, 16, dtype=torch.complex64))


class TestPackages:
    def test_nothing_of_it_is_imported_with_the_package(self):
        early = re.compile(r"^(?:import|from) (?:deepinv|h5py)\b", re.MULTILINE)
        files = (REPO / "oes_fast").rglob("*.py")
        assert [path for path in files if early.search(path.read_text("utf-8"))] == []

    def test_missing_package_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "deepinv", None)
        for name in [name for name in sys.modules if name.startswith("deepinv.")]:
            monkeypatch.delitem(sys.modules, name)
        with pytest.raises(oes.OESError, match="deepinv") as caught:
            oes.tasks.inpainting(torch.rand(1, 3, 16, 16), missing=0.5)
        assert 'pip install "oes_fast[physics]"' in str(caught.value)

    def test_torchvision_that_does_not_load_is_named(self, monkeypatch, tmp_path):
        (tmp_path / "no_vision.py").write_text(
            "raise RuntimeError('operator torchvision::nms does not exist')", "utf-8"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(oes.OESError, match="needs a torchvision built for PyTorch") as caught:
            package("no_vision")
        assert "\n" not in str(caught.value)


class TestKSpaceFiles:
    def write(self, path: Path, **arrays: np.ndarray) -> Path:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
            file.attrs["acquisition"] = "AXT2"
            file.attrs["patient_id"] = "someone"
        return path

    def test_layout_of_fastmri(self, tmp_path):
        draw = np.random.default_rng(0)
        kspace = (draw.normal(size=(5, 3, 8, 6)) + 1j * draw.normal(size=(5, 3, 8, 6))).astype(np.complex64)
        target = draw.random((5, 4, 4)).astype(np.float32)
        path = self.write(tmp_path / "a.h5", kspace=kspace, reconstruction_rss=target, mask=np.ones(6, bool))
        found = oes.tasks.load_kspace(path)
        assert (found.slice, found.slices) == (2, 5)
        assert np.array_equal(found.samples.numpy(), kspace[2])
        assert np.array_equal(found.target.numpy(), target[2])
        assert found.mask.tolist() == [1.0] * 6
        assert found.attributes == {"acquisition": "AXT2"}
        found = oes.tasks.load_kspace(path, slice=4)
        assert np.array_equal(found.samples.numpy(), kspace[4])
        path = self.write(tmp_path / "b.hdf5", kspace=kspace[:, 0], reconstruction_esc=target)
        found = oes.tasks.load_kspace(path, slice=0)
        assert found.samples.shape == (8, 6)
        assert np.array_equal(found.target.numpy(), target[0])
        assert found.mask is None

    def test_numpy(self, tmp_path):
        for shape in ((8, 6), (2, 8, 6)):
            np.save(tmp_path / "k.npy", np.ones(shape, np.complex128))
            found = oes.tasks.load_kspace(tmp_path / "k.npy")
            assert found.samples.shape == shape
            assert found.samples.dtype == torch.complex64
        with pytest.raises(oes.InputError, match="no slice beside an array"):
            oes.tasks.load_kspace(tmp_path / "k.npy", slice=0)

    def test_refusals(self, tmp_path):
        good = np.ones((3, 8, 6), np.complex64)

        def refused(says: str, slice: int | None = None, **arrays: np.ndarray) -> None:
            path = self.write(tmp_path / "bad.h5", **arrays)
            with pytest.raises(oes.InputError, match=says):
                oes.tasks.load_kspace(path, slice=slice)

        refused("expected 'kspace', got 'data'", data=good)
        refused("expected complex 'kspace'", kspace=good.real)
        refused("expected complex 'kspace'", kspace=good[0])
        refused("expected an integer >= 0 and < 3, got 3", slice=3, kspace=good)
        refused(
            "1 NaN or infinite of 48",
            slice=0,
            kspace=np.where(np.arange(6) + np.arange(8)[:, None], good, np.nan),
        )
        refused("expected 'mask' of shape", kspace=good, mask=np.ones(8))
        refused(r"of shape \(3, h, w\)", kspace=good, reconstruction_rss=np.ones((2, 4, 4)))
        refused("no larger than k-space", kspace=good, reconstruction_rss=np.ones((3, 9, 4)))
        (tmp_path / "words.h5").write_text("these are words")
        (tmp_path / "words.npy").write_text("these are words")
        np.save(tmp_path / "real.npy", np.ones((8, 6)))
        np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
        for name, says in {
            "words.h5": "expected a complete HDF5 file",
            "words.npy": "expected a complete NumPy array",
            "real.npy": "expected complex k-space",
            "objects.npy": "expected a complete NumPy array",
            "missing.h5": "does not exist",
        }.items():
            with pytest.raises(oes.InputError, match=says):
                oes.tasks.load_kspace(tmp_path / name)
        (tmp_path / "k.dat").write_text("")
        with pytest.raises(oes.InputError, match=r"ends in \.h5, \.hdf5, \.npy, got \.dat"):
            oes.tasks.load_kspace(tmp_path / "k.dat")


def test_repr_is_one_line(physics, image):
    task = oes.tasks.deblurring(image, gaussian=1.0)
    assert repr(task).startswith("Task(deblurring: gaussian=1.0, ")
    assert "\n" not in repr(task)
