"""What the tests share: small problems, snapshots of state, the published masks."""

from __future__ import annotations

import oes_fast as oes  # isort: skip  # before torch, so that waiting threads leave the cores to the other worker
import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oes_fast import autotune_cache
from oes_fast.backends import resolve

REPO = Path(__file__).resolve().parents[1]

if not torch.cuda.is_available():  # the CUDA kernels run all the same, on tensors of the CPU
    os.environ.setdefault("OES_FAST_EMULATE_CUDA", "1")

# Tests send it to programs, which inherit it ignored where a shell runs the tests in the background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """What is imported stays to the end: collections of garbage need not look through it, a second each."""
    gc.collect()
    gc.freeze()


class Problem(NamedTuple):
    """A small image to restore, with a network and a random mask for it."""

    net: nn.Module
    mask: oes.Mask
    z: Tensor
    noisy: Tensor
    clean: Tensor


def build_problem(
    *,
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    dtype: torch.dtype = torch.float64,
    density: float = 0.9,
    seed: int = 0,
    **options: object,
) -> Problem:
    """A :class:`Problem` of any size; options go to the generator."""
    settings = {"num_channels_down": (4, 6), "filter_size_down": 3, "seed": seed} | options
    net = oes.models.skip(4, channels, **settings).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    numel = sum(p.numel() for p in net.parameters())
    mask = oes.Mask.from_flat(net, torch.rand(numel, generator=generator) < density)
    rows, columns = (torch.linspace(0, 1, side, dtype=dtype) for side in size)
    clean = torch.stack([rows[:, None] * columns.pow(c) for c in range(channels)])[None]
    noise = torch.randn(clean.shape, generator=generator, dtype=dtype)
    noisy = (clean + 0.1 * noise).clamp(0, 1)
    return Problem(net, mask, oes.noise_input(4, size, seed=seed, dtype=dtype), noisy, clean)


@pytest.fixture(autouse=True)
def whole_products() -> Iterator[None]:
    """On a GPU PyTorch's convolutions, which kernels are held to, would round their operands to TF32."""
    with oes.precision("float32") if torch.cuda.is_available() else nullcontext():
        yield


@pytest.fixture(autouse=True)
def new_memory_is_nan() -> Iterator[None]:
    """Under Triton's interpreter, so that it shows where kernels leave it as it is."""
    from kernel_backends import INTERPRETED  # which looks for the emulation, decided on above

    if INTERPRETED:
        torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    if (
        torch.are_deterministic_algorithms_enabled()
    ):  # to say so imports torch's compiler, which takes a second
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def choices_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what is measured here out of the user's files, and theirs out of here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OES_FAST_CACHE_DIR", str(tmp_path_factory.mktemp("choices")))
        yield


@pytest.fixture(scope="session", autouse=True)
def missing_kernels_are_known() -> None:
    """Where the C++ kernels are missing, what says so once has said it before the first test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oes.OESWarning)
        resolve("auto", "cpu", ("cpu", "reference"))


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    """:func:`build_problem`."""
    return build_problem


@pytest.fixture(scope="session")
def problem(make_problem: Callable[..., Problem]) -> Problem:
    """The usual one: float64, RGB, 32 x 32."""
    return make_problem()


@pytest.fixture(scope="session")
def published() -> dict[str, Tensor]:
    """The masks published for images, flat booleans by the image's name."""
    files = sorted((REPO.parent / "shared" / "published").glob("*_mask.npz"))
    if not files:
        pytest.skip("the published masks do not lie beside this repository")
    masks = {}
    for file in files:
        with np.load(file) as data:
            bits = np.unpackbits(data["bits"], count=int(data["count"]))
        masks[file.name.removesuffix("_mask.npz")] = torch.from_numpy(bits).bool()
    return masks


@contextmanager
def unchanged(*values: nn.Module | Tensor) -> Iterator[None]:
    """Fail if one of the networks or tensors, or the global random state, is another one afterwards."""

    def state() -> list[tuple[object, Tensor]]:
        found: list[tuple[object, Tensor]] = [("random state", torch.get_rng_state())]
        for value in values:
            if isinstance(value, nn.Module):
                flags = tuple(module.training for module in value.modules())
                for name, tensor in [*value.named_parameters(), *value.named_buffers()]:
                    label = (name, tensor.requires_grad, tensor.grad is None, flags, id(tensor))
                    found.append((label, tensor.detach().clone()))
            else:
                found.append(((id(value), value.requires_grad), value.detach().clone()))
        return found

    before = state()
    yield
    for (label, old), (label_after, new) in zip(before, state(), strict=True):
        assert label == label_after
        assert torch.equal(old, new), f"{label} changed"


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-12) -> None:
    """Equal up to ``rtol`` of the largest element expected, so that a zero has no tolerance of its own."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert torch.isfinite(actual).all()
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=rtol * scale)


def skip_unless_available(backend: str) -> None:
    """Skip the test where the backend cannot run, such as "cpu" without a compiler.

    A stale extension fails it: who has edited csrc wants to know that it is not what is tested.
    """
    status = oes.backends()[backend]
    if "is stale" in status.reason:
        pytest.fail(f"{backend}: {status}", pytrace=False)
    if not status:
        pytest.skip(f"{backend}: {status}")


def forget_choices() -> None:
    """Leave no choice between forms of a convolution known but those on the disk, as to a new process."""
    autotune_cache._on_disk.cache_clear()
    autotune_cache._in_use.clear()


@pytest.fixture
def no_known_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own for choices between forms of a convolution, none of which is known."""
    monkeypatch.setenv("OES_FAST_CACHE_DIR", str(tmp_path / "choices"))
    forget_choices()
    yield
    forget_choices()


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewritten networks run unverified: for tests of runs, most of whose time verification would take."""
    monkeypatch.setattr("oes_fast.rewrite.module.verify", lambda *_, **__: None)
