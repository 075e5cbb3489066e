"""Exact rewrites of a generator: compute only what is alive.

trace -> rules (one small module each) -> liveness -> plan. `sparsify` is the whole of it.
"""

from oes_fast.rewrite.sparsify import SparseGenerator, sparsify

__all__ = ["SparseGenerator", "sparsify"]
