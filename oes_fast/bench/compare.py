"""What has changed from one measurement to another, with the noise of both taken into account."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oes_fast.bench.measure import Bench, BenchRow
from oes_fast.bench.steps import PUBLISHED

SMALLEST = 0.03  # changes below are not worth a word, however sure
FEWEST = 5  # rounds that tell a change: of three, one comparison in ten saw one where there was none
RESAMPLES = 2_000  # of the rounds: percentile bootstrap (Efron 1979)


@dataclass(frozen=True)
class Change:
    """Of one contestant in one case.

    Attributes:
        row: the case, as measured later.
        contestant: its name.
        ratio: its time beside the published way's, later over earlier: below 1 is faster. What the machine as
            a whole did meanwhile, in frequency or load, is in both times and cancels.
        low, high: between which the ratio lies with 95 % by the spread of the rounds.
        time_ratio: of the times themselves, later over earlier.
        rounds: of the measurement that has fewer.
    """

    row: BenchRow
    contestant: str
    ratio: float
    low: float
    high: float
    time_ratio: float
    rounds: int

    @property
    def verdict(self) -> str:
        """ "faster", "slower" or "no change seen", which is all that fewer than five rounds can show."""
        if self.rounds < FEWEST:
            return "no change seen"
        if self.high < 1 and self.ratio <= 1 - SMALLEST:
            return "faster"
        if self.low > 1 and self.ratio >= 1 + SMALLEST:
            return "slower"
        return "no change seen"


def changes(before: Bench, after: Bench) -> tuple[list[Change], list[str]]:
    """Compare two measurements, case by case.

    Args:
        before: the earlier one.
        after: the later one.

    Returns:
        (a change for every contestant and case that both have, what stands in the way of a comparison: cases
        that only one has, and differences of the machines).
    """
    earlier = {row.key: row for row in before.rows}
    found: list[Change] = []
    notes = [
        f"{name}: {before.environment[name]} before, {now} now"
        for name, now in after.environment.items()
        if name in before.environment and before.environment[name] != now
    ]
    for row in after.rows:
        old = earlier.pop(row.key, None)
        if old is None:
            notes.append(f"{row.case}, {row.size} px, {row.threads} threads: only measured now")
            continue
        found += [_change(old, row, name) for name in row.ms if name != PUBLISHED and name in old.ms]
    notes += [
        f"{row.case}, {row.size} px, {row.threads} threads: only measured before" for row in earlier.values()
    ]
    return found, notes


def _change(old: BenchRow, new: BenchRow, contestant: str) -> Change:
    generator = np.random.default_rng(0)
    ratio = _share(new, contestant) / _share(old, contestant)
    drawn = _shares(new, contestant, generator) / _shares(old, contestant, generator)
    low, high = np.percentile(drawn, [2.5, 97.5])
    time_ratio = np.median(new.ms[contestant]) / np.median(old.ms[contestant])
    rounds = min(len(row.ms[contestant]) for row in (old, new))
    return Change(new, contestant, float(ratio), float(low), float(high), float(time_ratio), rounds)


def _share(row: BenchRow, contestant: str) -> float:
    """Of the published way's time: the median over the rounds, in each of which both were measured."""
    return float(np.median(np.divide(row.ms[contestant], row.ms[PUBLISHED])))


def _shares(row: BenchRow, contestant: str, generator: np.random.Generator) -> NDArray[np.float64]:
    shares = np.divide(row.ms[contestant], row.ms[PUBLISHED])
    drawn = generator.choice(shares, size=(RESAMPLES, len(shares)))
    medians: NDArray[np.float64] = np.median(drawn, axis=1)
    return medians
