"""Running statistics of a batch norm over some of its channels."""

from __future__ import annotations

from torch import Tensor


def running_stats(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    channels: Tensor | None = None,
    offset: Tensor | None = None,
    momentum: float = 0.1,
    correction: float = 1.0,
) -> None:
    """r[channels] = (1 - momentum) r[channels] + momentum v, in place, for both statistics.

    Args:
        running_mean: shape [M], updated; v = mean + offset.
        running_var: shape [M], updated; v = var * correction.
        mean: of the batch, shape [C].
        var: of the batch, biased, shape [C].
        channels: which of the M channels the C are, int64 [C], none twice; None where they are the same.
        offset: added to ``mean``, shape [C], or None.
        momentum: weight of the new statistics.
        correction: n / (n - 1) for n values a channel.
    """
    mean = mean if offset is None else mean + offset
    for running, new in ((running_mean, mean), (running_var, var * correction)):
        if channels is None:
            running.lerp_(new, momentum)
        else:
            running.index_copy_(0, channels, running[channels].lerp(new, momentum))
