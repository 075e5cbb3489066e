"""The choice of kernel configurations: measured on purpose only, kept on disk, never a crash."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from oes_fast.kernels import tuning
from oes_fast.kernels.tuning import Config, measuring, run
from triton.runtime.errors import OutOfResources

from oes_fast import autotune_cache

REAL_TIME = tuning._time
CONFIGS = (Config(64), Config(128), Config(256))


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """No choices in memory, a folder of its own on disk, and a clock by which large blocks are fast."""
    monkeypatch.setenv("OES_FAST_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "_time", lambda config, launch: 1 / config.block)
    tuning._stored.cache_clear()
    autotune_cache._in_use.clear()
    yield
    tuning._stored.cache_clear()
    autotune_cache._in_use.clear()


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
    autotune_cache._in_use.clear()
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


class Device:
    """A device that works off a queue while a processor, whose launches cost time, fills it; microseconds."""

    def __init__(self, monkeypatch, launching=15.0, busy=True):
        self.now = self.free = 0.0
        self.launching, self.kept_busy = launching, []
        monkeypatch.setattr(tuning, "_time", REAL_TIME)
        monkeypatch.setattr(tuning, "_keep_busy", self.keep_busy if busy else lambda cycles: None)
        monkeypatch.setattr(tuning, "_mark", lambda: Mark(self))
        monkeypatch.setattr(tuning, "_busy_cycles", tuning._busy_cycles)

    def keep_busy(self, cycles):
        self.kept_busy.append(cycles)
        self.launch(cycles / 2000)  # at 2 GHz

    def launch(self, duration):
        self.now += self.launching
        self.free = max(self.free, self.now) + duration


class Mark:
    """An event of a :class:`Device`."""

    def __init__(self, device):
        self.device, self.reached = device, max(device.free, device.now)

    def query(self):
        return self.reached <= self.device.now

    def synchronize(self):
        self.device.now = max(self.device.now, self.reached)

    def elapsed_time(self, end):
        return (end.reached - self.reached) / 1e3


SLOW_FIRST = {Config(64): 6.0, Config(128): 3.0}  # microseconds of a kernel


@pytest.mark.parametrize("launching", [1.0, 15.0, 200.0])
def test_a_kernel_of_3_us_is_told_from_one_of_6(measured, monkeypatch, launching):
    device = Device(monkeypatch, launching)
    times = {config: REAL_TIME(config, lambda c: device.launch(SLOW_FIRST[c])) for config in SLOW_FIRST}
    assert times[Config(64)] == pytest.approx(2 * times[Config(128)], rel=0.01)
    run("kernel", (1,), tuple(SLOW_FIRST), lambda c: device.launch(SLOW_FIRST[c]))
    assert json.loads(tuning.cache_file().read_text()) == {"kernel 1": list(Config(128))}


def test_without_a_full_queue_launches_are_measured(monkeypatch):
    device = Device(monkeypatch, busy=False)
    times = [REAL_TIME(config, lambda c: device.launch(SLOW_FIRST[c])) for config in SLOW_FIRST]
    assert times[0] == pytest.approx(times[1], rel=0.05)  # what the test above is about


def test_a_slow_processor_is_given_more_time_once(monkeypatch):
    device = Device(monkeypatch, launching=100.0)
    for config in SLOW_FIRST:
        REAL_TIME(config, lambda c: device.launch(SLOW_FIRST[c]))
    assert len(device.kept_busy) == 3
    first, second, third = device.kept_busy
    assert first < 0.9 * second == third


def test_pauses_of_the_processor_do_not_add_up(monkeypatch):
    device = Device(monkeypatch)
    launched = 0

    def launch(config):
        nonlocal launched
        launched += 1
        if launched % 800 == 0:  # every 40th row
            device.now += 50e3
        device.launch(6.0)

    for _ in range(400):
        REAL_TIME(Config(64), launch)
    assert sum(device.kept_busy) < 2 * 400 * tuning._LEAST_BUSY  # twice what it takes where nothing pauses


def test_a_processor_too_slow_for_any_queue_is_no_endless_loop(monkeypatch):
    device = Device(monkeypatch, launching=1e6)
    for _ in range(20):
        assert REAL_TIME(Config(64), lambda c: device.launch(6.0)) > 0
    assert len(device.kept_busy) == 4 * 20
    assert max(device.kept_busy) == tuning._MOST_BUSY


def test_choices_belong_to_a_device_and_versions(measured, monkeypatch):
    current = [0]
    cuda = tuning.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(cuda, "get_device_name", lambda device: ["Card", "Card", "Other"][device])
    monkeypatch.setattr(cuda, "get_device_capability", lambda device: [(8, 0), (9, 0), (9, 0)][device])
    tuning._file_of.cache_clear()
    files = []
    for current[0] in range(3):
        assert len(launches()) > 1  # measured on each of them
        assert launches() == [Config(256)]
        files.append(tuning.cache_file())
    tuning._file_of.cache_clear()
    assert len(set(files)) == 3
    assert "sm90" in files[1].name
    assert all(version in files[0].name for version in (tuning.triton.__version__, "torch"))


def test_every_launch_says_whether_multiply_adds_are_fused():
    assert Config(64).options["enable_fp_fusion"] is True
    said = 0
    for file in Path(tuning.__file__).parent.glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            is_launch = isinstance(call, ast.Call) and isinstance(call.func, ast.Subscript)
            if not is_launch or not ast.unparse(call.func.value).endswith("_kernel"):
                continue
            given = {word.arg or ast.unparse(word.value) for word in call.keywords}
            assert given & {
                "enable_fp_fusion", "LAUNCH", "config.options", "by_sum.options",
                "_options(config, precision)",
            }, f"{file.name}: {ast.unparse(call.func)}"  # fmt: skip
            said += 1
    assert said > 15
