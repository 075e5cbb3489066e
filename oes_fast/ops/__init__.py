"""The operations: arguments are checked, the backend is chosen, derivatives are known to torch."""

from oes_fast.ops.gumbel_mask import gumbel_mask
from oes_fast.ops.mask_update import mask_update

__all__ = ["gumbel_mask", "mask_update"]
