"""``oes-fast inspect``: what it shows of masks, and of an image under them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import fails, run
from conftest import unchanged
from PIL import Image as PillowImage

import oes_fast as oes
from oes_fast.cli import figures, masks

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")

OPTIONS = {"num_channels_down": (4, 4), "filter_size_down": 3}
QUICK = ["--probes", 2, "--iterations", 3, "--eigenvalues", 2, "--lanczos-steps", 4, "--spectrum-probes", 2]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published network is a small one."""

    def network(name: str, shape: tuple[int, ...], **more: object):
        return oes.models.registry.network(name, shape, **OPTIONS, **more)

    def fresh(noisy: torch.Tensor, *, seed: int, model: str, options: dict[str, object]):
        return oes.models.generator(model, noisy.shape[1:], seed=seed, **OPTIONS)

    monkeypatch.setattr(masks, "network", network)
    monkeypatch.setattr(figures, "fresh_generator", fresh)


def write_mask(path: Path, *, channels: int = 3, seed: int = 0, **settings: object) -> Path:
    """A random mask of the small network."""
    net = oes.models.skip(32, channels, **OPTIONS, device="meta")
    count = sum(p.numel() for p in net.parameters())
    kept = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.7
    oes.Mask.from_flat(net, kept, **settings).save(path)
    return path


@pytest.mark.usefixtures("small")
class TestMasks:
    def test_one_mask_is_shown(self, tmp_path, capsys):
        path = write_mask(tmp_path / "a.safetensors", network_seed=4, density=0.7, source="made up")
        with unchanged():
            assert run("inspect", path) == 0
        text = capsys.readouterr().out
        mask = oes.Mask.load(path)
        assert f"network {mask.fingerprint}" in text
        assert "  network_seed 4\n  density 0.7\n  source made up\n" in text
        assert "conv 1: 3x3, 32 > 4" in text
        assert f"{100 * mask.density:.2f}" in text
        assert f"{mask.kept:,}" in text
        assert "Channels alive" in text
        assert "Overlap" not in text
        assert list(tmp_path.iterdir()) == [path]

    def test_json_and_picture_hold_what_was_found(self, tmp_path, capsys):
        paths = [write_mask(tmp_path / f"{name}.safetensors", seed=i) for i, name in enumerate("abc")]
        assert run("inspect", *paths, "--dense", "-o", tmp_path / "p.png", "--json", tmp_path / "r.json") == 0
        text = capsys.readouterr().out
        assert "a and b" in text
        assert "b and c" in text
        assert "dense" in text
        assert text.index("Written") > text.index("Overlap")
        result = json.loads((tmp_path / "r.json").read_text())
        assert (result["command"], result["image"]) == ("inspect", None)
        net = oes.models.skip(32, 3, **OPTIONS)
        loaded = [oes.Mask.load(path, net) for path in paths]
        assert [each["label"] for each in result["masks"]] == ["a", "b", "c", "dense"]
        for each, mask in zip(result["masks"], loaded, strict=False):
            assert each["mask"]["kept"] == mask.kept
            layers = oes.analysis.layer_densities(net, mask)
            assert [layer["kept"] for layer in each["layers"]] == [layer.kept for layer in layers]
            channels = oes.analysis.dead_channels(net, mask)
            assert [c["alive"] for c in each["channels"]] == [c.alive for c in channels]
            assert [c["dead"] for c in each["channels"]] == [c.dead for c in channels]
        assert [pair["masks"] for pair in result["overlaps"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
        assert result["overlaps"][1]["shared"] == oes.analysis.overlap(loaded[0], loaded[2]).shared
        assert set(result["files"]) == {"layers", "json"}
        with PillowImage.open(tmp_path / "p.png") as picture:
            assert picture.width > 500

    def test_published_masks_are_recognised_by_their_size(self, tmp_path, capsys):
        for channels in (3, 1):
            net = oes.models.skip(32, channels, **OPTIONS, device="meta")
            count = sum(p.numel() for p in net.parameters())
            kept = np.arange(count) % 3 == 0
            packed = tmp_path / "same.npz"
            np.savez(packed, bits=np.packbits(kept), count=count)
            pickled = tmp_path / "same.pkl"
            pickled.write_bytes(pickle.dumps(torch.from_numpy(kept)))
            assert run("inspect", packed, pickled) == 0
            text = capsys.readouterr().out
            assert f"network {oes.fingerprint(net)}" in text
            assert f"{packed} and {pickled}" in text
            assert "100.0 %" in text

    def test_other_channels_are_told(self, tmp_path, capsys):
        path = write_mask(tmp_path / "four.safetensors", channels=4)
        assert run("inspect", path) == 0
        text = capsys.readouterr().out
        assert "which is not known: no layers are shown" in text
        assert "conv 1" not in text
        assert run("inspect", path, "--channels", 4) == 0
        assert "conv 1: 3x3, 32 > 4" in capsys.readouterr().out

    def test_masks_of_other_networks_are_compared_with_their_own_kind(self, tmp_path, capsys):
        ours = write_mask(tmp_path / "ours.safetensors")
        net = torch.nn.Conv2d(3, 3, 3)
        for i in range(2):
            kept = torch.arange(84) % (i + 2) == 0
            oes.Mask.from_flat(net, kept).save(tmp_path / f"own{i}.safetensors")
        assert run("inspect", ours, tmp_path / "own0.safetensors", tmp_path / "own1.safetensors") == 0
        text = capsys.readouterr().out
        assert "own0 and own1" in text
        assert "ours and" not in text

    def test_nothing_is_printed_where_that_is_asked_for(self, tmp_path, capsys):
        path = write_mask(tmp_path / "a.safetensors")
        assert run("inspect", path, "--quiet", "--json", tmp_path / "r.json") == 0
        assert capsys.readouterr() == ("", "")
        assert (tmp_path / "r.json").exists()

    def test_bad_input_gives_one_sentence(self, tmp_path, cli_images, capsys):
        path = write_mask(tmp_path / "a.safetensors")
        grey = write_mask(tmp_path / "grey.safetensors", channels=1)
        own = tmp_path / "own.safetensors"
        oes.Mask.from_flat(torch.nn.Conv2d(3, 3, 3), torch.ones(84)).save(own)
        image = cli_images / "rgb.png"
        broken = tmp_path / "broken.npz"
        broken.write_bytes(b"no mask")
        odd = tmp_path / "odd.npz"
        np.savez(odd, bits=np.packbits(np.ones(16, dtype=bool)), count=16)
        for arguments, words in [
            ([tmp_path / "none.safetensors"], "it does not exist"),
            ([image], "expected a mask file: .safetensors of oes-fast"),
            ([broken], "cannot read it as a file of the published code"),
            ([odd], "--channels says which images it is for"),
            ([grey, "--channels", 3], "expected a mask of the network"),
            ([grey, "--image", image], "expected a mask of the network"),
            ([own, "--dense"], "--dense: expected a mask whose network is known"),
            ([own, "-o", tmp_path / "p.png"], "--output: expected a mask whose network is known"),
            ([path, "-o", tmp_path / "p.txt"], "expected a name that ends in .png"),
            ([path, "-o", tmp_path / "none" / "p.png"], "does not exist"),
            ([path, "--json", path], "expected a name of its own, got the name of an input"),
            ([path, "--sigma", 0.1], "--sigma: expected --image beside it"),
            ([path, "--image", image, "--channels", 1], "--channels: expected 3 as --image has, got 1"),
            ([path, "--image", image, "--backend", "cpu"], "--backend: expected one of torch, reference"),
            ([path, "--probes", 0], "--probes: expected an integer >= 1"),
            ([path, "--rho", 0], "--rho: expected a finite number > 0"),
            ([path, "--channels", 0], "--channels: expected an integer >= 1"),
            ([path, "--seed", -1], "--seed: expected an integer >= 0"),
            ([path, "--threads", 0], "--threads: expected an integer >= 1"),
        ]:
            assert words in fails(capsys, "inspect", *arguments), arguments


@pytest.mark.usefixtures("small")
class TestImage:
    def test_figures_are_those_of_the_library(self, tmp_path, cli_images, capsys):
        paths = [
            write_mask(tmp_path / "a.safetensors", network_seed=5),
            write_mask(tmp_path / "b.safetensors", seed=1),
        ]
        command = [
            "inspect",
            *paths,
            "--image",
            cli_images / "rgb.png",
            "--sigma",
            0.1,
            "--no-verify",
            *QUICK,
        ]
        out = ["-o", tmp_path / "p.png", "--json", tmp_path / "r.json"]
        assert run(*command, "--threads", 1, *out) == 0
        captured = capsys.readouterr()
        assert "Hessian, eigenvalue 2" in captured.out
        assert "a: spectrum of the Hessian" in captured.err
        result = json.loads((tmp_path / "r.json").read_text())
        assert result["image"]["noise_seed"] == 5
        assert [each["figures"]["seed"] for each in result["masks"]] == [5, 0]
        assert set(result["files"]) == {"layers", "spectrum", "json"}
        assert (tmp_path / "p_spectrum.png").exists()
        clean = oes.load_image(cli_images / "rgb.png").pixels
        noisy = oes.add_noise(clean, 0.1, 5)
        net, z = oes.models.skip(32, 3, **OPTIONS, seed=5), oes.noise_input(32, clean.shape[-2:], seed=5)
        mask = oes.Mask.load(paths[0], net)
        found = result["masks"][0]["figures"]
        norm = oes.analysis.jacobian_norm(net, mask, z, probes=2, iterations=3, seed=5, verify=False)
        assert found["jacobian"]["frobenius"] == pytest.approx(norm.frobenius, rel=1e-5)
        assert found["jacobian"]["spectral"] == pytest.approx(norm.spectral, rel=1e-5)
        values = oes.analysis.hessian_eigenvalues(net, mask, z, noisy, k=2, seed=5, verify=False).values
        assert found["eigenvalues"]["values"] == pytest.approx(values.tolist(), rel=1e-3)
        spectrum = oes.analysis.hessian_spectrum(net, mask, z, noisy, probes=2, steps=4, seed=5, verify=False)
        assert found["spectrum"]["trace"] == pytest.approx(spectrum.trace, rel=1e-3)
        sharp = oes.analysis.sharpness(net, mask, z, noisy, probes=2, seed=5, verify=False)
        assert found["sharpness"]["largest"] == pytest.approx(sharp.largest, rel=1e-3)

        first = {k: v for k, v in result["masks"][0]["figures"].items() if k != "seconds"}
        assert run(*command, "--threads", 1, "--json", tmp_path / "again.json", "--quiet") == 0
        again = json.loads((tmp_path / "again.json").read_text())["masks"][0]["figures"]
        assert {k: v for k, v in again.items() if k != "seconds"} == first

    def test_parts_can_be_left_out(self, tmp_path, cli_images, capsys):
        path = write_mask(tmp_path / "a.safetensors", channels=1, rewind_step=7)
        less = ["--probes", 1, "--iterations", 0, "--eigenvalues", 0, "--lanczos-steps", 0]
        image = ["--image", cli_images / "grey.png", "--adaptive", "--rho", 0.5, "--seed", 2]
        assert run("inspect", path, *image, *less, "--dense", "-o", tmp_path / "p.png") == 0
        text, said = capsys.readouterr()
        assert "a: the mask was found for the weights of step 7, and these figures are at those" in said
        assert "|e/w| <= 0.5" in text
        assert "Hessian" not in text
        assert "nan" not in text
        assert not (tmp_path / "p_spectrum.png").exists()
        assert "dense" in text


def test_the_network_is_the_one_that_search_used(cli_mask, tmp_path):
    assert run("inspect", cli_mask, "--json", tmp_path / "r.json", "--quiet") == 0
    (found,) = json.loads((tmp_path / "r.json").read_text())["masks"]
    searched = json.loads(cli_mask.with_suffix(".json").read_text())
    assert found["layers"] == searched["layers"]
    assert found["mask"]["settings"]["network_seed"] == 3
    assert len(found["channels"]) == 7  # of a network of two levels
