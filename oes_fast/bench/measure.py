"""Times of whole steps: every contestant in turn, case by case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from time import monotonic
from typing import Any

import numpy as np
import torch

from oes_fast._checks import check_choice, check_integer, check_number
from oes_fast.backends import AUTO, NAMES, resolve
from oes_fast.bench.environment import environment
from oes_fast.bench.steps import COMPILED, PUBLISHED, Step, drawn_mask, search_steps, training_steps
from oes_fast.errors import InputError
from oes_fast.mask import Mask
from oes_fast.models import skip
from oes_fast.noise import noise_input
from oes_fast.pipelines.presets import PRESETS
from oes_fast.precision import DEFAULT, PRECISIONS
from oes_fast.precision import precision as products
from oes_fast.timing import times_in_turn, without_collections

CASES = ("training", "search")
PERCENTILES = (10, 25, 50, 75, 90)
_FEWEST = 3  # rounds, whatever the time
_WARM_UP = 2  # rounds that do not count
Watcher = Callable[[str, int, int], object]


@dataclass(frozen=True)
class BenchRow:
    """One case: a kind of step, at a size, on so many threads.

    Attributes:
        case: "training" or "search".
        size: side of the image in pixels.
        threads: of the CPU.
        precision: of all contestants, see :func:`oes_fast.precision`.
        density: share of the weights that the training's mask keeps.
        ms: milliseconds of each round by contestant; round r of one follows round r of the one before.
    """

    case: str
    size: int
    threads: int
    precision: str
    density: float
    ms: Mapping[str, Sequence[float]]

    @property
    def key(self) -> tuple[Any, ...]:
        """What another measurement has to agree in, so that both can be compared."""
        return self.case, self.size, self.threads, self.precision, round(self.density, 3)

    def percentile(self, contestant: str, percent: float) -> float:
        """Milliseconds that ``percent`` of the rounds took at most."""
        return float(np.percentile(self.ms[contestant], percent))

    def faster(self, contestant: str, percent: float = 50) -> float:
        """How many times faster than the published way, round by round: a percentile of the ratios."""
        ratios = np.divide(self.ms[PUBLISHED], self.ms[contestant])
        return float(np.percentile(ratios, percent))


@dataclass(frozen=True)
class Bench:
    """A measurement; :meth:`as_dict` and :meth:`from_dict` are its JSON.

    Attributes:
        environment: versions, processor, threads, GPU, backends.
        rows: the cases.
        absent: contestants that were asked for and cannot run here, with the reason.
    """

    environment: Mapping[str, Any]
    rows: Sequence[BenchRow]
    absent: Mapping[str, str] = field(default_factory=dict)

    def run_seconds(self, size: int, threads: int, contestant: str) -> dict[str, float]:
        """Seconds that a run of each preset takes by the median steps; {} if a case was not measured."""
        steps = {
            row.case: row.percentile(contestant, 50) / 1e3
            for row in self.rows
            if (row.size, row.threads) == (size, threads) and contestant in row.ms
        }
        if steps.keys() != set(CASES):
            return {}
        return {
            name: preset.search_steps * steps["search"] + preset.train_steps * steps["training"]
            for name, preset in PRESETS.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every row with percentiles of its times and how many times faster they are."""
        rows = []
        for row in self.rows:
            others = [name for name in row.ms if name != PUBLISHED]
            rows.append(
                asdict(row)
                | {
                    "percentiles": {
                        name: {str(p): round(row.percentile(name, p), 4) for p in PERCENTILES}
                        for name in row.ms
                    },
                    "times faster": {
                        name: {str(p): round(row.faster(name, p), 3) for p in PERCENTILES} for name in others
                    },
                }
            )
        return {"environment": dict(self.environment), "absent": dict(self.absent), "rows": rows}

    @classmethod
    def from_dict(cls, found: Any) -> Bench:
        """What :meth:`as_dict` gave, read from JSON.

        Raises:
            InputError: it is something else.
        """
        names = ("case", "size", "threads", "precision", "density", "ms")
        try:
            rows = [BenchRow(**{name: row[name] for name in names}) for row in found["rows"]]
            for row in rows:
                times = np.array(list(row.ms.values()), dtype=float)
                if PUBLISHED not in row.ms or times.ndim != 2 or not times.size or not (times > 0).all():
                    raise ValueError("a row without times of the published way")
                check_integer("size", row.size, minimum=1)
                check_integer("threads", row.threads, minimum=1)
                check_number("density", row.density, above=0.0, maximum=1.0)
            return cls(dict(found["environment"]), rows, dict(found.get("absent", {})))
        except (AttributeError, KeyError, TypeError, ValueError, InputError) as error:
            raise InputError(f"expected a result of `oes-fast bench`, got something else ({error})") from None


def bench(
    *,
    sizes: Sequence[int] = (256, 512),
    threads: Sequence[int] | None = None,
    cases: Sequence[str] = CASES,
    backends: Sequence[str] = (AUTO,),
    compiled: bool = False,
    mask: Mask | None = None,
    density: float | None = None,
    rounds: int = 15,
    seconds: float = 30.0,
    precision: str = DEFAULT,
    device: str | torch.device = "cpu",
    watch: Watcher | None = None,
) -> Bench:
    """Time steps of the published network beside the published way, contestant by contestant in turn.

    A busy machine hits all contestants alike, so ratios say more than times.

    Args:
        sizes: sides of the image in pixels.
        threads: of the CPU, one measurement for each; None for those in use.
        cases: of "training" and "search".
        backends: contestants beside the published way.
        compiled: the published training through torch.compile as well.
        mask: of :func:`oes_fast.models.skip` for RGB images; None for a drawn one.
        density: of the drawn mask, in (0, 1]; None for shares near the published masks'.
        rounds: of every case at most, after two that do not count.
        seconds: after which no further round of a case begins, counted from the end of the first, but for the
            third.
        precision: of all contestants, see :func:`oes_fast.precision`.
        device: where.
        watch: told after each case its name, how many are done and of how many.

    Raises:
        InputError: an argument is out of range.
        BackendError: a backend cannot run here.

    Example:
        >>> found = oes_fast.bench.bench(sizes=[128], rounds=3)
        >>> found.rows[0].faster("auto")
    """
    sizes = [check_integer("sizes", size, minimum=32, below=2**14) for size in sizes]
    counts = [torch.get_num_threads()] if threads is None else list(threads)
    counts = [check_integer("threads", count, minimum=1, below=2**12) for count in counts]
    cases = [check_choice("cases", case, CASES) for case in cases]
    names = [check_choice("backends", name, (AUTO, *NAMES)) for name in backends]
    rounds = check_integer("rounds", rounds, minimum=_FEWEST, below=10**6)
    seconds = check_number("seconds", seconds, minimum=0.0)
    check_choice("precision", precision, PRECISIONS)
    if density is not None:
        check_number("density", density, above=0.0, maximum=1.0)
        if mask is not None:
            raise InputError(f"density: expected None beside a mask, got {density}")
    if not (sizes and counts and cases and names):
        raise InputError("sizes, threads, cases, backends: expected at least one of each")
    place = torch.device(device)
    for name in names:
        resolve(name, place, NAMES)  # says what it lacks
    net = skip(seed=0).to(place)
    kept = drawn_mask(net, density) if mask is None else mask
    plan = list(product(sizes, counts, cases))
    rows: list[BenchRow] = []
    absent: dict[str, str] = {}
    for done, (size, count, case) in enumerate(plan):
        z = noise_input(32, (size, size), seed=0, device=place)
        noisy = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(place)
        with _threads(count), products(precision):
            if case == "training":
                steps = training_steps(net, kept, z, noisy, [*names, *([COMPILED] if compiled else [])])
                if compiled and (reason := _refusal(steps[COMPILED])):
                    absent[COMPILED] = reason
                    del steps[COMPILED]
            else:
                steps = search_steps(net, z, noisy, names)
            times = _timed(steps, rounds, seconds, place)
        rows.append(BenchRow(case, size, count, precision, kept.density, times))
        del steps
        if watch is not None:
            watch(f"{case}, {size} x {size}, {count} threads", done + 1, len(plan))
    return Bench(environment(), rows, absent)


def _refusal(step: Step) -> str:
    """Why a step of torch.compile cannot be made here, "" if it can: it asks for a compiler, among others."""
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return ""


def _timed(
    steps: Mapping[str, Step], rounds: int, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    end = None

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def enough(times: list[list[float]]) -> bool:
        nonlocal end
        end = monotonic() + seconds if end is None else end
        return len(times[0]) >= _FEWEST and monotonic() > end

    with without_collections():
        found = times_in_turn(
            list(steps.values()), rounds=rounds, warmup=_WARM_UP, before=wait, after=wait, enough=enough
        )
    return {name: [round(1e3 * t, 4) for t in taken] for name, taken in zip(steps, found, strict=True)}


@contextmanager
def _threads(count: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
