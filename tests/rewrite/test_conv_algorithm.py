"""The choice between the sparse and the dense form: timed once, kept on disk, never a crash."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import require

from oes_fast import autotune_cache
from oes_fast.autotune_cache import read_choices
from oes_fast.rewrite import conv_algorithm

pytestmark = pytest.mark.usefixtures("no_known_choices")


def spec(share, kind="direct", stride=1):
    """A convolution of 6 outputs and 4 inputs that keeps a share of its weights."""
    from oes_fast import _C

    side = 3 if kind == "upsample" else 1 if kind == "pointwise" else 5
    made = _C.ConvSpec()
    made.kind = getattr(_C.ConvKind, kind.upper())
    made.outputs, made.kernel_rows, made.kernel_columns = 6, side, side
    made.padding, made.stride = _C.Padding.REPLICATE, stride
    made.border = [side // 2] * 4
    keep = torch.rand(6, 4, side, side, generator=torch.Generator().manual_seed(0)) < share
    made.taps = torch.nonzero(keep).flatten().tolist()
    made.weights, made.bias = list(range(int(keep.sum()))), [-1] * 6
    return made


def choose(made, constant_input=False, image=(4, 40, 44)):
    from oes_fast import _C

    return conv_algorithm.dense_is_faster(_C, torch.float32, made, image, constant_input=constant_input)


def test_clear_cases_are_not_timed(monkeypatch, tmp_path):
    require("cpu")
    monkeypatch.setattr(conv_algorithm, "_time", None)
    assert not choose(spec(0.1))
    assert choose(spec(1.0))
    assert not (tmp_path / "choices").exists()


def test_the_faster_form_is_kept(monkeypatch, tmp_path):
    require("cpu")
    monkeypatch.setattr(conv_algorithm, "_time", lambda *args: 1.0 if args[4] else 2.0)
    assert choose(spec(0.5))
    (file,) = (tmp_path / "choices").iterdir()
    assert list(read_choices(file).values()) == [True]
    autotune_cache._on_disk.cache_clear()  # as another process
    autotune_cache._in_use.clear()
    monkeypatch.setattr(conv_algorithm, "_time", None)
    assert choose(spec(0.5))
    file.write_text("not JSON")
    autotune_cache._on_disk.cache_clear()
    autotune_cache._in_use.clear()
    monkeypatch.setattr(conv_algorithm, "_time", lambda *args: 2.0 if args[4] else 1.0)
    assert not choose(spec(0.5))


def test_checkpoints_and_caches_of_older_versions_hold(monkeypatch, tmp_path):
    """What a choice is called is part of their format."""
    require("cpu")
    monkeypatch.setattr(conv_algorithm, "_time", lambda *args: 1.0)
    for kind, name in (("direct", "direct 5 5 1"), ("upsample", "up 3 3 1")):
        choose(spec(0.5, kind))
        (key,) = (
            k for k in autotune_cache.choices_in_use() if f"torch.float32 {name} 6 4 40 44 free 0." in k
        )
        assert key.startswith("form ")
    (file,) = (tmp_path / "choices").iterdir()
    assert file.name.startswith("forms-")


@pytest.mark.parametrize("kind", ["direct", "pointwise", "upsample"])
@pytest.mark.parametrize("stride", [1, 2])
def test_both_are_timed(kind, stride):
    require("cpu")
    from oes_fast import _C

    if kind != "direct" and stride == 2:
        pytest.skip("only direct ones have a stride")
    for dense in (False, True):
        for fixed in (False, True) if kind == "direct" else (False,):
            made = spec(0.5, kind, stride)
            if fixed:  # its border is there already
                made.border = [0] * 4
            for dtype in (torch.float32, torch.float64):
                assert conv_algorithm._time(_C, dtype, made, (4, 41, 44), dense, fixed) > 0
