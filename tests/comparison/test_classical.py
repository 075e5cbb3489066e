"""Classical denoisers: better than the noisy image, of its kind, and clear about what they lack."""

from __future__ import annotations

import builtins
import importlib.util

import pytest
import torch

import oes_fast as oes
from oes_fast.comparison import CLASSICAL, nlm, tv
from oes_fast.comparison.classical import check_classical


@pytest.fixture(scope="module")
def clean() -> torch.Tensor:
    return oes.load_image("skimage:astronaut", size=48).pixels


def skip_without(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize(("channels", "dtype"), [(3, torch.float32), (1, torch.float64)])
def test_they_denoise(name, channels, dtype, clean):
    if name == "bm3d":
        skip_without("bm3d")
    clean = clean[:, :channels].to(dtype)
    noisy = oes.add_noise(clean, 0.1, seed=0)
    before = noisy.clone()
    found = CLASSICAL[name](noisy, 0.1)
    assert (found.shape, found.dtype) == (noisy.shape, dtype)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert oes.psnr(found, clean) > oes.psnr(noisy, clean) + 2
    assert torch.equal(noisy, before)


def test_the_noise_level_is_estimated(clean):
    skip_without("pywt")
    noisy = oes.add_noise(clean, 0.1, seed=0)
    found = nlm(noisy)
    assert oes.psnr(found, clean) > oes.psnr(noisy, clean) + 2


@pytest.mark.parametrize(("missing", "message"), [("bm3d", r"oes_fast\[bm3d\]"), ("pywt", "PyWavelets")])
def test_what_is_missing_is_named(missing, message, clean, monkeypatch):
    def without(name, *rest, **more):
        if name.partition(".")[0] == missing:
            raise ImportError(f"No module named {name!r}")
        return load(name, *rest, **more)

    if missing == "bm3d":
        monkeypatch.setattr("oes_fast.comparison.classical.importlib.import_module", without)
        with pytest.raises(oes.OESError, match=message):
            check_classical("bm3d")
        return
    load = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(oes.InputError, match=message):
        tv(clean)


@pytest.mark.parametrize(
    ("image", "sigma", "name"),
    [(torch.rand(1, 2, 16, 16), 0.1, "noisy"), (torch.rand(3, 16, 16), 0.1, "noisy"), (None, 0.0, "sigma")],
)
def test_refusals_name_the_argument(image, sigma, name, clean):
    with pytest.raises(oes.InputError, match=f"^{name}: expected"):
        tv(clean if image is None else image, sigma)
