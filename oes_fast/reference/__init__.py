"""The definition of every operation in plain PyTorch: any device, float32 and float64, short and readable.

Each kernel in csrc/ and kernels/ is tested against the function of the same name here.
"""

from oes_fast.reference.batch_norm_act import ACTIVATIONS, batch_norm_act
from oes_fast.reference.gumbel_mask import gumbel_mask, gumbel_mask_backward, relaxed_mask
from oes_fast.reference.level_mask import (
    drawn_mask,
    expected_level,
    initial_logit,
    level_mask_backward,
    level_probabilities,
    level_values,
    likeliest_level,
    relaxed_levels,
)
from oes_fast.reference.mask_kl import mask_kl, mask_kl_backward
from oes_fast.reference.mask_update import mask_update
from oes_fast.reference.masked_adam import masked_adam
from oes_fast.reference.masked_conv2d import PADDING_MODES, masked_conv2d
from oes_fast.reference.output_head import output_head
from oes_fast.reference.philox import (
    gumbel_from_bits,
    level_noise,
    logistic_from_bits,
    logistic_noise,
    normal_from_bits,
    philox4x32,
    random_bits,
)
from oes_fast.reference.running_stats import running_stats
from oes_fast.reference.sparse_conv2d import phase_merge, phase_split, sparse_conv2d
from oes_fast.reference.sparse_up_conv2d import sparse_up_conv2d
from oes_fast.reference.total_variation import total_variation

__all__ = [
    "ACTIVATIONS",
    "PADDING_MODES",
    "batch_norm_act",
    "drawn_mask",
    "expected_level",
    "gumbel_from_bits",
    "gumbel_mask",
    "gumbel_mask_backward",
    "initial_logit",
    "level_mask_backward",
    "level_noise",
    "level_probabilities",
    "level_values",
    "likeliest_level",
    "logistic_from_bits",
    "logistic_noise",
    "mask_kl",
    "mask_kl_backward",
    "mask_update",
    "masked_adam",
    "masked_conv2d",
    "normal_from_bits",
    "output_head",
    "phase_merge",
    "phase_split",
    "philox4x32",
    "random_bits",
    "relaxed_levels",
    "relaxed_mask",
    "running_stats",
    "sparse_conv2d",
    "sparse_up_conv2d",
    "total_variation",
]
