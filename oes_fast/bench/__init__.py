"""Speed of steps on this machine, beside the published way, and what has changed since another measurement.

:func:`bench` measures, :func:`changes` compares two results, :func:`plot` draws one; ``oes-fast bench`` calls
them. The benchmarks of the repository measure with the same contestants.
"""

from oes_fast.bench.compare import Change, changes
from oes_fast.bench.measure import CASES, Bench, BenchRow, bench
from oes_fast.bench.picture import plot

__all__ = ["CASES", "Bench", "BenchRow", "Change", "bench", "changes", "plot"]
