"""The operations as functions: shapes, dtypes and devices are checked, the backend is chosen."""

from oes_fast.ops.batch_norm_act import batch_norm_act
from oes_fast.ops.gumbel_mask import gumbel_mask
from oes_fast.ops.mask_kl import mask_kl
from oes_fast.ops.mask_update import mask_update
from oes_fast.ops.masked_adam import masked_adam
from oes_fast.ops.masked_conv2d import masked_conv2d
from oes_fast.ops.output_head import output_head
from oes_fast.ops.running_stats import running_stats
from oes_fast.ops.sparse_conv2d import PhaseSplit, SparsePattern, phase_split, sparse_conv2d
from oes_fast.ops.sparse_up_conv2d import sparse_up_conv2d
from oes_fast.ops.total_variation import total_variation

__all__ = [
    "PhaseSplit",
    "SparsePattern",
    "batch_norm_act",
    "gumbel_mask",
    "mask_kl",
    "mask_update",
    "masked_adam",
    "masked_conv2d",
    "output_head",
    "phase_split",
    "running_stats",
    "sparse_conv2d",
    "sparse_up_conv2d",
    "total_variation",
]
