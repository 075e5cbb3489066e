"""The timer of choices and benchmarks: whose turn it is, what counts, when it ends."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.report import report_bandwidth, report_rate
from benchmarks.timer import compared, device_time, fixture_time, interleave, ratios
from oes_fast.timing import times_in_turn


def test_calls_come_in_turn_and_the_first_rounds_do_not_count():
    said = []
    times = times_in_turn(
        [lambda: said.append("a"), lambda: said.append("b")],
        rounds=2,
        warmup=1,
        before=lambda: said.append("("),
        after=lambda: said.append(")"),
    )
    assert "".join(said) == "(a)(b)" * 3
    assert [len(taken) for taken in times] == [2, 2]


def test_what_comes_after_a_call_is_part_of_its_time_and_what_comes_before_is_not():
    def slow() -> None:
        time.sleep(0.02)

    ((before,),) = times_in_turn([lambda: None], rounds=1, before=slow)
    ((after,),) = times_in_turn([lambda: None], rounds=1, after=slow)
    assert before < 0.02 <= after


def test_rounds_end_when_it_is_enough():
    asked = []

    def enough(times):
        asked.append([len(taken) for taken in times])
        return len(times[0]) == 3

    times = times_in_turn([lambda: None] * 2, rounds=9, warmup=2, enough=enough)
    assert asked == [[1, 1], [2, 2], [3, 3]]
    assert [len(taken) for taken in times] == [3, 3]


def test_comparisons():
    contestants = {"slow": lambda: time.sleep(0.02), "fast": lambda: None}
    found = compared(contestants, "slow", rounds=2, warmup=0)
    assert found["times faster"]["slow"] == {"min": 1.0, "median": 1.0}
    assert found["times faster"]["fast"]["min"] > 2
    assert found["precision"] == {"slow": "float32", "fast": "float32"}
    for times in interleave(contestants, rounds=3).values():
        assert times["min"] <= times["median"] <= times["max"]
    assert ratios({"a": {"min": 2.0, "median": 3.0}, "b": {"min": 1.0, "median": 6.0}}, "a")["b"] == {
        "min": 2.0,
        "median": 0.5,
    }


def test_a_row_of_calls():
    times = device_time(lambda: time.sleep(0.002), device="cpu", calls=3, rounds=2)
    assert 2 <= times["min"] <= times["median"] < 20


class Fixture:
    """What pytest-benchmark's fixture does, as far as it is used."""

    def __init__(self):
        self.extra_info = {}
        self.stats = SimpleNamespace(stats=self)

    def pedantic(self, target, *, setup=None, rounds, warmup_rounds):
        times = self.data = []
        for turn in range(warmup_rounds + rounds):
            if setup is not None:
                setup()
            begin = time.perf_counter()
            target()
            if turn >= warmup_rounds:
                times.append(time.perf_counter() - begin)
        self.min, self.median, self.max = min(times), sorted(times)[len(times) // 2], max(times)


@pytest.mark.parametrize("in_turn", [True, False])
def test_the_fixture_is_told_of_rivals(in_turn):
    threads, said = torch.get_num_threads(), []
    benchmark = Fixture()
    found = fixture_time(
        benchmark,
        lambda: said.append(f"ours {torch.get_num_threads()}"),
        threads=2,
        rivals={"rival": lambda: said.append("rival")},
        in_turn=in_turn,
        rounds=4,
    )
    assert torch.get_num_threads() == threads
    assert said[:4] == (["rival", "ours 2"] * 2 if in_turn else ["ours 2"] * 4)
    assert list(found) == ["rival", "ours"]
    assert all(0 <= times["min"] <= times["median"] <= times["max"] for times in found.values())
    assert benchmark.extra_info == {"threads": 2, "precision": "float32"}


def test_reports_hold_an_operation_beside_the_machine():
    benchmark = Fixture()
    report_bandwidth(benchmark, lambda: time.sleep(0.001), moved_bytes=80_000, threads=1, device="cpu")
    assert 0 < benchmark.extra_info["GB/s"] <= 0.08
    assert benchmark.extra_info["50 % of rounds, ms"] >= 1
    assert 0 < benchmark.extra_info["share of copy, median"] < 1
    benchmark = Fixture()
    report_rate(benchmark, lambda: time.sleep(0.001), macs=10**6, threads=1, dense=lambda: time.sleep(0.004))
    info = benchmark.extra_info
    assert 0 < info["GMAC/s"] <= 1
    assert 0 < info["share of sgemm"] < 1
    assert info["dense ms"] >= 4
    assert info["times faster than dense"] > 1
