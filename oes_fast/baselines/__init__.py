"""What the paper compares masks with: the whole network trained, and its posterior sampled."""

from oes_fast.baselines.dense_dip import dense_dip
from oes_fast.baselines.fresh import fresh_deep_decoder
from oes_fast.baselines.sgld import SgldResult, sgld

__all__ = ["SgldResult", "dense_dip", "fresh_deep_decoder", "sgld"]
