"""The choice of kernel configurations: measured on purpose only, kept on disk, never a crash."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from oes_fast.kernels import tuning
from oes_fast.kernels.tuning import Config, measuring, run
from triton.runtime.errors import OutOfResources

CONFIGS = (Config(64), Config(128), Config(256))


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """No choices in memory, a folder of its own on disk, and a clock by which large blocks are fast."""
    monkeypatch.setenv("OES_FAST_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "_time", lambda config, launch: 1 / config.block)
    tuning._stored.cache_clear()
    yield
    tuning._stored.cache_clear()


@pytest.fixture
def measured(monkeypatch):
    """As on a GPU, inside measuring()."""
    monkeypatch.setattr(tuning, "_measuring", True)


def launches(configs=CONFIGS, fails=(), problem=(1, 2)):
    seen = []

    def launch(config):
        if config in fails:
            raise OutOfResources(1 << 20, 1 << 16, "shared memory")
        seen.append(config)

    run("kernel", problem, configs, launch)
    return seen


def test_nothing_is_measured_in_a_loop(tmp_path):
    for _ in range(3):
        assert launches() == [CONFIGS[0]]
    assert not (tmp_path / "cache").exists()


def test_nothing_is_measured_without_a_gpu():
    if tuning.torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with measuring():
        assert launches() == [CONFIGS[0]]


def test_the_fastest_is_remembered_and_kept(measured, monkeypatch, tmp_path):
    assert launches()[-1] == Config(256)
    assert launches() == [Config(256)]
    (file,) = (tmp_path / "cache").iterdir()  # and no temporary file
    assert file == tuning.cache_file()
    assert json.loads(file.read_text()) == {"kernel 1 2": list(Config(256))}
    # Another process, which measures nothing.
    monkeypatch.setattr(tuning, "_measuring", False)
    monkeypatch.setattr(tuning, "_chosen", {})
    tuning._stored.cache_clear()
    assert launches() == [Config(256)]
    assert launches(problem=(3,)) == [CONFIGS[0]]


def test_what_another_process_stored_stays(measured):
    launches()
    file = tuning.cache_file()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"other 1": list(Config(32))}))
    launches(problem=(9,))
    assert set(json.loads(file.read_text())) == {"kernel 1 2", "other 1", "kernel 9"}


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"kernel 1 2": "x"}', '{"kernel 1 2": [1, 2, 3, 4, 5, 6, 7]}']
)
def test_a_broken_file_is_as_none(content, measured):
    file = tuning.cache_file()
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert launches()[-1] == Config(256)


def test_a_choice_of_another_version_is_not_taken(monkeypatch):
    file = tuning.cache_file()
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"kernel 1 2": list(Config(1024))}))
    assert launches() == [CONFIGS[0]]


def test_a_disk_that_refuses_is_no_error(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OES_FAST_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert launches()[-1] == Config(256)


def test_too_little_shared_memory_takes_the_next(measured):
    assert launches(fails=CONFIGS[2:])[-1] == Config(128)


def test_too_little_shared_memory_takes_the_next_without_measuring():
    assert launches(fails=CONFIGS[:1]) == [Config(128)]
    assert launches(fails=CONFIGS[:1]) == [Config(128)]
    with pytest.raises(OutOfResources):
        launches(fails=CONFIGS, problem=(4,))
