"""Exact rewrites of a generator: compute only what is alive.

trace -> rules (one small module each) -> liveness -> plan. `sparsify` is the whole of it.
"""

from oes_fast.rewrite.module import SparseGenerator, sparsify
from oes_fast.rewrite.tracing.trace import TraceError
from oes_fast.rewrite.verify import VerificationError

__all__ = ["SparseGenerator", "TraceError", "VerificationError", "sparsify"]
