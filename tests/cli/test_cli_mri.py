"""``oes-fast mri``: k-space of one coil and of several, and images measured on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import RESULTS, fails, files_of, result_of, run
from small_generator import small_generator
from task_runs import RUN, save

import oes_fast as oes

pytest_plugins = ("cli_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("same_threads", "small_task"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]
SIZE = (32, 24)


def disc() -> np.ndarray:
    """A magnitude in no usual unit."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, SIZE[0]), np.linspace(-1, 1, SIZE[1]), indexing="ij")
    return 1e-4 * ((rows**2 + columns**2 < 0.6) - 0.4 * (rows**2 + (columns - 0.2) ** 2 < 0.1))


def to_kspace(image: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes), norm="ortho"), axes)


def coils() -> np.ndarray:
    """Coil images [3, H, W] whose root sum of squares is the disc."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, SIZE[0]), np.linspace(-1, 1, SIZE[1]), indexing="ij")
    maps = np.stack([np.exp(-((rows - a) ** 2 + columns**2) + 1j * a * columns) for a in (-1, 0, 1)])
    return maps / np.sqrt((np.abs(maps) ** 2).sum(axis=0)) * disc()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Two slices of three coils in fastMRI's layout, with a smaller magnitude."""
    h5py = pytest.importorskip("h5py")
    kspace = np.stack([to_kspace(coils()), to_kspace(0.5 * coils())]).astype(np.complex64)
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["reconstruction_rss"] = np.stack([disc(), 0.5 * disc()])[:, 4:28, 2:22].astype(np.float32)
        file.attrs["acquisition"] = "AXT2"
    return path


def columns(tmp_path: Path) -> Path:
    mask = np.zeros(SIZE[1])
    mask[::3] = mask[8:16] = 1
    return save(tmp_path / "columns.npy", mask)


def test_fastmri_file_of_several_coils(scan: Path, tmp_path: Path) -> None:
    out, mask = tmp_path / "out.png", columns(tmp_path)
    assert run("mri", scan, "--mask", mask, "--slice", "0", "-o", out, *RUN) == 0
    assert files_of(out) == RESULTS | {".npy"}
    found = oes.tasks.load_kspace(scan, slice=0)
    task = oes.tasks.mri(found.samples, torch.from_numpy(np.load(mask)), clean=found.target)
    torch.set_num_threads(1)
    net, z = small_generator(task.noisy, shape=task.shape, options=task.model_options, seed=0)
    common = {**task.arguments(), "verify": False}
    kept = oes.search_mask(net, z, task.noisy, density=0.5, steps=2, **common).mask
    fit = oes.train_sparse(net, kept, z, task.noisy, steps=4, average=0.99, **common)
    real, imaginary = fit.average[0].numpy() * task.settings["scale"]
    written = np.load(tmp_path / "out.npy")
    assert written.shape == SIZE
    assert np.allclose(written, real + 1j * imaginary, rtol=1e-6)
    oes.save_image(tmp_path / "library.png", task.shown(fit.average), bits=16)
    assert (tmp_path / "library.png").read_bytes() == out.read_bytes()
    result = result_of(out)
    assert result["command"] == "mri"
    assert result["image"]["bits"] == 16
    assert (result["image"]["height"], result["image"]["width"]) == (24, 20)
    said = result["image"]["task"]
    assert (said["coils"], said["coil_maps"], said["slice"], said["slices"]) == (3, "estimated", 0, 2)
    assert said["acquisition"] == "AXT2"
    assert said["measured"] == pytest.approx(13 / 24)
    assert result["psnr"]["noisy"] == pytest.approx(oes.psnr(task.first, task.clean.image))
    assert result["psnr"]["last"] == pytest.approx(oes.psnr(task.shown(fit.output), task.clean.image))
    assert result["history"]["train"]["psnr"][-1] == pytest.approx(result["psnr"]["last"], abs=1e-4)


def test_simulated_from_all_of_kspace(scan: Path, tmp_path: Path) -> None:
    maps = save(tmp_path / "maps.npy", coils() / disc().max())
    args = ["mri", scan, "--acceleration", "3", "--center-fraction", "0.2", "--pattern", "equispaced"]
    args += ["--sigma", "0.01", "--coil-maps", maps, "--noise-seed", "2"]
    assert run(*args, "-o", tmp_path / "out.png", *RUN, "--no-plots") == 0
    result = result_of(tmp_path / "out.png")
    said = result["image"]["task"]
    assert (said["slice"], said["coil_maps"], said["pattern"]) == (1, "given", "equispaced")
    assert result["image"]["height"] == SIZE[0]  # the magnitude of all of it, not that of the file
    assert result["seeds"]["noise"] == 2
    assert result["psnr"]["noisy"] > 10


def test_single_coil_file_with_a_mask_of_its_own(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    mask = np.load(columns(tmp_path)).astype(bool)
    with h5py.File(tmp_path / "test.hdf5", "w") as file:
        file["kspace"] = (to_kspace(disc()) * mask)[None].astype(np.complex64)
        file["mask"] = mask
        file["reconstruction_esc"] = disc()[None, 4:28, 2:22].astype(np.float32)
    out = tmp_path / "out.png"
    assert run("mri", tmp_path / "test.hdf5", "-o", out, *RUN, "--no-plots") == 0
    result = result_of(out)
    assert result["image"]["task"]["measured"] == pytest.approx(13 / 24)
    assert (result["image"]["task"]["coils"], result["image"]["height"]) == (1, 24)
    assert result["psnr"]["noisy"] > 10
    assert run("mri", tmp_path / "test.hdf5", "--acceleration", "2", "-o", out, *RUN, "--no-plots") == 0
    assert result_of(out)["image"]["task"]["measured"] == pytest.approx(0.5)


def test_single_coil_array(tmp_path: Path) -> None:
    kspace = to_kspace(disc()) + 1e-9  # an image without noise has zeros of its own
    kspace[:, [1, 5, 20]] = 0
    path = save(tmp_path / "kspace.npy", kspace)
    out = tmp_path / "out.png"
    assert run("mri", path, "-o", out, *RUN) == 0
    assert files_of(out) == (RESULTS | {".npy"}) - {"_psnr.png"}
    result = result_of(out)
    assert result["psnr"] is None
    assert result["image"]["task"]["measured"] == pytest.approx(21 / 24)
    clean = save(tmp_path / "clean.npy", disc())
    assert run("mri", path, "-o", out, *RUN, "--clean", clean) == 0
    assert result_of(out)["psnr"]["noisy"] > 20


def test_of_a_clean_image(cli_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    args = ["mri", cli_images / "grey.png", "--size", "16", "--acceleration", "2", "--sigma", "0.05"]
    assert run(*args, "-o", out, *RUN) == 0
    assert oes.load_image(out).pixels.shape == (1, 1, 16, 16)
    assert np.load(tmp_path / "out.npy").dtype == np.complex64
    result = result_of(out)
    assert result["image"]["task"]["scale"] == 1.0
    assert result["settings"]["model_options"] == {"need_sigmoid": False}
    assert oes.Mask.load(tmp_path / "out_mask.safetensors").recipe.options == {"need_sigmoid": False}
    assert run(*args, "-o", out, *RUN, "--model-option", "need_sigmoid=true") == 0
    assert result_of(out)["settings"]["model_options"] == {"need_sigmoid": True}
    assert bool((np.load(tmp_path / "out.npy").imag >= 0).all())


def test_refusals(scan: Path, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["data"] = np.ones(3)
    (tmp_path / "words.h5").write_text("these are words")
    kspace = save(tmp_path / "kspace.npy", to_kspace(disc()))
    nan = save(tmp_path / "nan.npy", np.full(SIZE, np.nan, complex))
    mask = save(tmp_path / "wrong.npy", np.ones(7))
    maps = save(tmp_path / "maps.npy", np.ones((2, *SIZE), complex))
    real = save(tmp_path / "real.npy", np.ones(SIZE))
    before = sorted(tmp_path.iterdir())
    for args, says in (
        ([cli_images / "grey.png"], "expected k-space (.h5, .hdf5, .npy), or a clean image with --sigma"),
        ([cli_images / "grey.png", "--sigma", "0"], "mask: expected it or acceleration for an image"),
        (
            [cli_images / "grey.png", "--sigma", "0", "--slice", "0"],
            "--slice: expected it with k-space alone",
        ),
        ([tmp_path / "empty.h5"], "empty.h5: expected 'kspace', got 'data'"),
        ([tmp_path / "words.h5"], "expected a complete HDF5 file"),
        ([tmp_path / "none.h5"], "none.h5: expected a file, got nothing"),
        ([scan, "--slice", "2"], "--slice: expected an integer >= 0 and < 2, got 2"),
        ([scan, "--slice", "-1"], "--slice: expected an integer >= 0"),
        ([scan, "--size", "16"], "--size: expected it with a clean image alone"),
        ([scan, "--mask", mask], "--mask: expected shape (24,) or (32, 24) as k-space, got (7,)"),
        ([scan, "--mask", mask, "--acceleration", "4"], "--mask: expected it or --acceleration, got both"),
        ([scan, "--acceleration", "1"], "--acceleration: expected an integer >= 2"),
        ([scan, "--center-fraction", "0.1"], "--center-fraction: expected it with --acceleration"),
        ([scan, "--acceleration", "4", "--center-fraction", "0.9"], "--center-fraction: expected fewer"),
        ([scan, "--acceleration", "4", "--pattern", "spiral"], "--pattern: expected one of random"),
        ([scan, "--coil-maps", maps], "--coil-maps: expected shape (3, 32, 24), got (2, 32, 24)"),
        ([scan, "--coil-maps", real], "real.npy: expected complex maps of shape (coils, H, W)"),
        ([scan, "--clean", save(tmp_path / "big.npy", np.ones((64, 64)))], "--clean: expected a magnitude"),
        ([scan, "--sigma", "0", "--clean", real], "--clean: expected no --sigma"),
        ([kspace, "--slice", "0"], "expected no slice beside an array"),
        ([nan], "nan.npy: expected finite values in 'kspace'"),
        ([real], "real.npy: expected complex k-space"),
    ):
        assert says in fails(capsys, "mri", *args, "-o", tmp_path / "o.png")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "big.npy"])
