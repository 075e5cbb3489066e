"""Networks and images that no memory holds: refused in one line before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import SMALL, fails

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")

CHANNELS = "num_channels_down"


NETWORKS = [
    ("skip", f"{CHANNELS}=100000,100000", "--model-option: 930,082,500,003 weights need 17,3"),
    (
        "skip",
        f"{CHANNELS}={10**9},{10**9}",
        "--model-option: expected a network that fits in memory, got",
    ),
    ("skip", f"{CHANNELS}={10**20}", f"--model-option {CHANNELS}: expected an integer >= -2147483648"),
    ("skip", "filter_size_down=100001", "--model-option: 985,619,712,643,427 weights need"),
    ("skip", f"num_input_channels={10**9}", "weights need"),
    ("deep_decoder", "k=50", "24 x 24 pixels: expected a network deep_decoder that fits in memory"),
    ("unet", "more_layers=50", "24 x 24 pixels: expected a network unet that fits in memory"),
    ("dcgan", "num_ups=20", "24 x 24 pixels need 36,864.0 GiB of memory for one layer of dcgan"),
]


# One by its weights and one by its layers for every command; what refuses them is one function.
@pytest.mark.parametrize(
    ("command", "model", "option", "says"),
    [
        *(("denoise", *network) for network in NETWORKS),
        *((command, *NETWORKS[i]) for command in ("search", "prune", "compare") for i in (0, -1)),
    ],
)
def test_options_of_the_network(
    command: str,
    model: str,
    option: str,
    says: str,
    cli_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = {"denoise": "o.png", "compare": "o"}.get(command, "o.safetensors")
    args = [command, cli_images / "rgb.png", "-o", tmp_path / out, "--model", model, "--model-option", option]
    assert says in fails(capsys, *args, *(["--method", "snip"] if command == "prune" else []))
    assert list(tmp_path.iterdir()) == []


def test_an_image_whose_layers_do_not_fit(
    cli_images: Path,
    cli_mask: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    largest = SMALL[CHANNELS][0] * 24 * 24 * 4 * 2  # bytes of a layer and its gradient
    args = ["train", cli_images / "rgb.png", cli_mask, "-o", tmp_path / "o.png", "--steps", "1"]
    monkeypatch.setattr("oes_fast.cli.model.available_memory", lambda _: float(largest))
    said = fails(capsys, *args)
    assert "IN: 24 x 24 pixels need 0.0 GiB of memory for one layer of skip and its gradient" in said
