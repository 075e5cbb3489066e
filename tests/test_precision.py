"""One setting for float32 products: what it does to PyTorch's flags, and that it leaves no trace."""

from __future__ import annotations

import contextlib
import sys
import threading

import pytest
import torch
from cli_runs import result_of, run
from torch import nn

import oes_fast as oes
from oes_fast.precision import current

pytest_plugins = ("cli_fixtures",)

BACKENDS = torch.backends
FLAGS = {"float32": "ieee", "tf32": "tf32", "tf32x3": "ieee"}  # PyTorch has no products in three parts


def flags():
    kinds = (BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.cuda.matmul, BACKENDS.cudnn, BACKENDS)
    of_cpu = (BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul)
    return [kind.fp32_precision for kind in (*kinds, *of_cpu)]


def older():
    found = []
    for read in (
        lambda: BACKENDS.cudnn.allow_tf32,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:  # the two interfaces disagree
            found.append(None)
    return found


def asked(kind, value):
    def set_it():
        kind.fp32_precision = value

    return set_it


STATES = {
    "default": lambda: None,
    "older, convolutions": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "older, products": lambda: torch.set_float32_matmul_precision("high"),
    "older, least": lambda: torch.set_float32_matmul_precision("medium"),
    "newer, convolutions": asked(BACKENDS.cudnn.conv, "ieee"),
    "newer, products": asked(BACKENDS.cuda.matmul, "tf32"),
    "newer, all of the GPU": asked(BACKENDS.cudnn, "tf32"),
    "newer, all": asked(BACKENDS, "tf32"),
    "newer, all exact": asked(BACKENDS, "ieee"),
}


@pytest.fixture(autouse=True)
def usual_flags():
    """Flags as PyTorch has them at its start, but for what cannot be undone."""
    yield
    BACKENDS.fp32_precision = "none"
    BACKENDS.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    BACKENDS.cuda.matmul.fp32_precision = "none"
    BACKENDS.mkldnn.conv.fp32_precision = BACKENDS.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("setting", FLAGS)
@pytest.mark.parametrize("state", STATES)
def test_flags_are_set_inside_and_as_before_afterwards(state, setting):
    STATES[state]()
    before, before_older = flags(), older()
    with contextlib.suppress(ZeroDivisionError), oes.precision(setting):
        assert flags()[:3] == [FLAGS[setting]] * 3
        # A CPU never rounds; torch.compile reads the older interface, which may not raise then.
        assert {"tf32", "bf16"}.isdisjoint(flags()[5:])
        if before_older[2] is not None:
            assert BACKENDS.cuda.matmul.allow_tf32 == (setting == "tf32")
            torch.get_float32_matmul_precision()
        raise ZeroDivisionError  # flags are put back however it ends
    assert flags() == before
    assert older() == before_older


@pytest.mark.parametrize("setting", FLAGS)
def test_what_follows_the_setting_for_all_still_does(setting):
    with oes.precision(setting):
        pass
    followed = []
    for value in ("ieee", "tf32"):
        BACKENDS.fp32_precision = value
        followed.append(BACKENDS.cuda.matmul.fp32_precision)
    assert followed == ["ieee", "tf32"]


def test_settings_nest():
    before = flags()
    with oes.precision("tf32"):
        with oes.precision("float32"):
            assert flags()[0] == "ieee"
        assert flags()[0] == "tf32"
        with oes.precision("tf32"):
            assert flags()[0] == "tf32"
        assert flags()[0] == "tf32"
    assert flags() == before


def test_a_cpu_needs_no_flags_of_a_gpu():
    before = flags()
    with oes.precision("tf32", device="cpu"):
        assert flags()[:5] == before[:5]


def test_threads_share_a_setting_and_are_refused_another():
    before = flags()
    entered, leave = threading.Event(), threading.Event()

    def first():
        with oes.precision("float32", device="cuda"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    try:
        with oes.precision("float32"):
            assert flags()[0] == "ieee"
            leave.set()
            thread.join(10)
            assert flags()[0] == "ieee"  # the first one's end takes nothing away from the second
        assert flags() == before
        entered.clear()
        leave.clear()
        thread = threading.Thread(target=first)
        thread.start()
        entered.wait(10)
        with pytest.raises(oes.InputError, match="precision: expected 'float32', with which another thread"):
            oes.precision("tf32").__enter__()
        with oes.precision("tf32", device="cpu"):  # it would change nothing there
            pass
    finally:
        leave.set()
        thread.join(10)
    assert flags() == before


def test_kernels_ask_for_the_setting_that_holds():
    assert current() == "float32"  # whatever PyTorch's flags say
    seen = []

    def ask():
        seen.append(current())

    with oes.precision("tf32", device="cpu"):
        thread = threading.Thread(target=ask)  # what another thread computes on its CPU is its own
        thread.start()
        thread.join(10)
        assert current() == "tf32"
        with oes.precision("tf32x3", device="cpu"):
            assert current() == "tf32x3"
        assert current() == "tf32"
    with oes.precision("tf32x3"):
        thread = threading.Thread(target=ask)  # as backward passes have threads of their own
        thread.start()
        thread.join(10)
    assert seen == ["float32", "tf32x3"]
    assert current() == "float32"


def test_another_name_is_refused(make_problem):
    with pytest.raises(oes.InputError, match=r"precision: expected .*float32.*tf32.*got 'bf16'"):
        oes.precision("bf16").__enter__()
    p = make_problem()
    with pytest.raises(oes.InputError, match="precision: expected"):
        oes.train_sparse(p.net, p.mask, p.z, p.noisy, steps=1, precision="half")
    with pytest.raises(oes.InputError, match="precision: expected"):
        oes.search_mask(p.net, p.z, p.noisy, steps=1, precision="half")


class Spy(torch.autograd.Function):
    """Writes down the flag of convolutions in both directions."""

    seen: list[tuple[str, str]] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x):
        Spy.seen.append(("forward", BACKENDS.cudnn.conv.fp32_precision))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Spy.seen.append(("backward", BACKENDS.cudnn.conv.fp32_precision))
        return grad.clone()


class Watched(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return Spy.apply(self.body(x))


@pytest.mark.parametrize("setting", FLAGS)
@pytest.mark.parametrize("pipeline", ["train", "search"])
def test_both_directions_of_a_pipeline_are_inside(make_problem, monkeypatch, pipeline, setting):
    module = sys.modules["oes_fast.precision"]
    everywhere = module.precision
    monkeypatch.setattr(module, "precision", lambda setting, device=None: everywhere(setting))
    p = make_problem(dtype=torch.float32)
    before, Spy.seen = flags(), []
    net = Watched(p.net)
    mask = oes.Mask.from_flat(net, p.mask.flat)
    options = {"steps": 2, "backend": "reference", "precision": setting}
    if pipeline == "train":
        oes.train_sparse(net, mask, p.z, p.noisy, **options)
    else:
        oes.search_mask(net, p.z, p.noisy, density=0.5, **options)
    assert flags() == before
    assert {direction for direction, _ in Spy.seen} == {"forward", "backward"}
    assert {flag for _, flag in Spy.seen} == {FLAGS[setting]}


def test_float64_and_the_cpu_take_any(make_problem):
    p = make_problem()
    losses = [
        oes.train_sparse(p.net, p.mask, p.z, p.noisy, steps=3, record_every=1, precision=name).history.loss
        for name in FLAGS
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("pipeline", ["train", "search"])
def test_a_checkpoint_keeps_the_setting(make_problem, tmp_path, pipeline):
    p, file = make_problem(), tmp_path / "run.ckpt"

    def restore(setting, **more):
        options = {"steps": 2, "checkpoint": file, "checkpoint_seconds": 0, "precision": setting} | more
        if pipeline == "train":
            return oes.train_sparse(p.net, p.mask, p.z, p.noisy, **options)
        return oes.search_mask(p.net, p.z, p.noisy, density=0.5, **options)

    restore("tf32")
    with pytest.raises(oes.CheckpointError, match="precision = tf32, this run has float32"):
        restore("float32", resume=True)
    assert restore("tf32", resume=True, steps=3).steps == 3


def test_a_mask_tells_a_setting_that_is_not_the_default(make_problem):
    p = make_problem()
    settings = [
        oes.search_mask(p.net, p.z, p.noisy, density=0.5, steps=1, precision=name).mask.settings
        for name in FLAGS
    ]
    assert "precision" not in settings[0]
    assert [each["precision"] for each in settings[1:]] == ["tf32", "tf32x3"]


def test_transfer_passes_it_on(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "oes_fast.pipelines.transfer.train_sparse", lambda *_, **options: seen.update(options)
    )
    noisy = torch.rand(1, 3, 64, 64)
    net, _ = oes.fresh_generator(noisy)
    keep = torch.ones(sum(p.numel() for p in net.parameters()), dtype=torch.bool)
    oes.transfer_mask(oes.Mask.from_flat(net, keep), noisy, precision="tf32", steps=1)
    assert seen["precision"] == "tf32"


@pytest.mark.parametrize("command", ["denoise", "search", "train", "transfer"])
def test_the_command_line_passes_it_on(command, cli_images, cli_mask, tmp_path, monkeypatch):
    seen = {}

    def enough(*_, **options):
        seen.update(options)
        raise oes.OESError("that was enough")

    for place in ("restore.search_mask", "restore.train_sparse", "search.search_mask"):
        module, name = place.split(".")
        monkeypatch.setattr(sys.modules[f"oes_fast.cli.{module}"], name, enough)
    out = tmp_path / ("out.safetensors" if command == "search" else "out.png")
    image = cli_images / "rgb.png"
    given = {"train": [image, cli_mask], "transfer": [cli_mask, image]}.get(command, [image])
    args = [command, *given, "-o", out, "--no-plots"]
    for setting in FLAGS:
        run(*args, "--precision", setting)
        assert seen["precision"] == setting
        seen.clear()
    assert run(*args, "--precision", "fp16") == 2
    assert not seen


def test_the_command_line_has_float32_by_default(cli_denoised):
    result = result_of(cli_denoised)
    assert result["precision"] == result["settings"]["precision"] == "float32"
