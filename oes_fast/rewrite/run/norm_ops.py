"""How norms run on the channels that are alive, running statistics included."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive
from oes_fast.rewrite.run.context import index_among, select
from oes_fast.rewrite.weights import CompactWeights


class NormFunction:
    """A batch norm bound to its channels.

    Args:
        norm: the stage.
        source: channels of its input.
        alive: channels of its result.
        weights: where blocks of weights are asked for.
        device: of the weights.
    """

    def __init__(
        self,
        norm: ir.Norm,
        source: Alive,
        alive: Alive,
        weights: CompactWeights,
        device: torch.device,
    ) -> None:
        self._norm = norm
        varying, constant, tracked = (
            index + norm.first for index in (alive.varying, alive.constant, alive.tracked)
        )
        self._varying, self._constant, self._tracked = (
            varying.to(device),
            constant.to(device),
            tracked.to(device),
        )
        self._gamma = None if norm.weight is None else weights.request(norm.weight, varying)
        self._beta = None if norm.bias is None else weights.request(norm.bias, varying)
        self._constant_gamma = None if norm.weight is None else weights.request(norm.weight, constant)
        self._constant_beta = None if norm.bias is None else weights.request(norm.bias, constant)
        # Index of constant and tracked channels among the input's constants; -1 for an input of zero.
        self._constant_from = _index_among(source.constant, alive.constant, device)
        self._tracked_from = _index_among(source.constant, alive.tracked, device)

    def __call__(
        self,
        x: Tensor,
        shift: Tensor | None,
        constants: Tensor | None,
        blocks: list[Tensor],
        buffers: Mapping[str, Tensor],
        update_stats: bool,
        counted: list[str],
    ) -> tuple[Tensor, Tensor | None]:
        """(normalised channels [N, varying, H, W], constants [constant] or None).

        Args:
            x: varying channels of the input.
            shift: [varying], what the convolution before it left out: training subtracts it with the mean.
            constants: of the input.
            blocks: weights.
            buffers: running statistics by name.
            update_stats: update them.
            counted: batch counts to add one to after the pass, by name; see :func:`count_batches`.
        """
        gamma = None if self._gamma is None else blocks[self._gamma]
        beta = None if self._beta is None else blocks[self._beta]
        if self._norm.of_batch:
            mean = var = None
            if update_stats and self._norm.tracks:
                momentum = self._momentum(buffers, counted)
                self._track_constants(constants, buffers, momentum)
                mean, var = self._running(buffers)
                before = var.clone()
                x = self._batch_norm(x, mean, var, gamma, beta, momentum)
                self._store(buffers, mean, var, before, x, shift, momentum)
            else:
                x = self._batch_norm(x, None, None, gamma, beta, 0.0)
            return x, self._constants_in_training(x, blocks)
        mean, var = self._running(buffers)
        x = F.batch_norm(x, mean, var, gamma, beta, False, 0.0, self._norm.eps) if x.shape[1] else x
        return x, self._normalised_constants(constants, blocks, buffers)

    def _batch_norm(
        self,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        momentum: float,
    ) -> Tensor:
        if x.shape[1] == 0:
            return x
        return F.batch_norm(x, mean, var, gamma, beta, True, momentum, self._norm.eps)

    def _constants_in_training(self, x: Tensor, blocks: list[Tensor]) -> Tensor | None:
        if len(self._constant) == 0:
            return None
        return (
            x.new_zeros(len(self._constant)) if self._constant_beta is None else blocks[self._constant_beta]
        )

    def _normalised_constants(
        self, constants: Tensor | None, blocks: list[Tensor], buffers: Mapping[str, Tensor]
    ) -> Tensor | None:
        if len(self._constant) == 0:
            return None
        norm = self._norm
        assert norm.mean is not None
        assert norm.var is not None
        mean, var = buffers[norm.mean][self._constant], buffers[norm.var][self._constant]
        k = (_spread(constants, self._constant_from, mean) - mean) * torch.rsqrt(var + norm.eps)
        if self._constant_gamma is not None:
            k = k * blocks[self._constant_gamma]
        return k if self._constant_beta is None else k + blocks[self._constant_beta]

    def _running(self, buffers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Copies of the running statistics of the varying channels."""
        assert self._norm.mean is not None
        assert self._norm.var is not None
        return (
            buffers[self._norm.mean].index_select(0, self._varying),
            buffers[self._norm.var].index_select(0, self._varying),
        )

    def _momentum(self, buffers: Mapping[str, Tensor], counted: list[str]) -> float:
        """Weight of the new statistics; counts the batch, after the pass where it does not need the count."""
        counts = self._norm.count is not None and self._norm.counts
        if self._norm.momentum is not None:
            if counts and self._norm.count is not None:
                counted.append(self._norm.count)
            return self._norm.momentum
        assert self._norm.count is not None
        if counts:
            buffers[self._norm.count].add_(1)
        return 1.0 / float(buffers[self._norm.count])

    def _store(
        self,
        buffers: Mapping[str, Tensor],
        mean: Tensor,
        var: Tensor,
        before: Tensor,
        x: Tensor,
        shift: Tensor | None,
        momentum: float,
    ) -> None:
        """Write the statistics back as the dense network would have them.

        Nothing here is in place on ``mean`` and ``var``: batch norm's backward pass holds on to them.
        """
        norm = self._norm
        assert norm.mean is not None
        assert norm.var is not None
        with torch.no_grad():
            if shift is not None:
                mean = mean + momentum * shift.detach()
            if norm.copies > 1 and x.shape[1]:
                seen = x.numel() // x.shape[1]
                pixels = seen * norm.copies
                ratio = pixels / (pixels - 1) * (seen - 1) / seen
                var = var * ratio + before * ((1 - momentum) * (1 - ratio))
            buffers[norm.mean].index_copy_(0, self._varying, mean)
            buffers[norm.var].index_copy_(0, self._varying, var)

    def _track_constants(
        self, constants: Tensor | None, buffers: Mapping[str, Tensor], momentum: float
    ) -> None:
        """Running statistics of channels whose input is constant: mean k, variance 0."""
        if len(self._tracked) == 0:
            return
        assert self._norm.mean is not None
        assert self._norm.var is not None
        with torch.no_grad():
            mean, var = buffers[self._norm.mean], buffers[self._norm.var]
            k = _spread(constants, self._tracked_from, mean)
            mean.index_copy_(0, self._tracked, mean[self._tracked].lerp(k, momentum))
            var.index_copy_(0, self._tracked, var[self._tracked] * (1 - momentum))


class GroupNormFunction:
    """A group norm bound to its channels.

    Args:
        norm: the stage.
        alive: channels of its result.
        weights: where blocks of weights are asked for.
        device: of the weights.

    Attributes:
        read: channels of the input that it reads: all of every group of which a channel varies.
    """

    def __init__(
        self, norm: ir.GroupNorm, alive: Alive, weights: CompactWeights, device: torch.device
    ) -> None:
        size = norm.channels // norm.groups
        groups = (alive.varying // size).unique()
        self.read = (groups[:, None] * size + torch.arange(size, device="cpu")).flatten()
        self._groups, self._eps = len(groups), norm.eps
        self._index = index_among(self.read, alive.varying, device)
        self._gamma = None if norm.weight is None else weights.request(norm.weight, alive.varying)
        self._beta = None if norm.bias is None else weights.request(norm.bias, alive.varying)
        self._constants = len(alive.constant)
        self._constant_beta = None if norm.bias is None else weights.request(norm.bias, alive.constant)

    def __call__(self, x: Tensor, blocks: list[Tensor]) -> Tensor:
        """The varying channels of the result [N, varying, H, W] from the channels ``read``."""
        gamma = None if self._gamma is None else blocks[self._gamma]
        beta = None if self._beta is None else blocks[self._beta]
        if x.shape[1] == 0:
            return x
        # PyTorch's backward pass needs gamma and beta or none of them, and crashes on an image that lies
        # channels last and has no gradient itself.
        x = x if x.requires_grad else x.contiguous()
        if self._index is None and gamma is not None and beta is not None:
            return F.group_norm(x, self._groups, gamma, beta, self._eps)
        x = select(F.group_norm(x, self._groups, eps=self._eps), self._index, 1)
        x = x if gamma is None else x * gamma.view(-1, 1, 1)
        return x if beta is None else x + beta.view(-1, 1, 1)

    def constants(self, blocks: list[Tensor], like: Tensor) -> Tensor | None:
        """The constant channels of the result: their beta."""
        if self._constants == 0:
            return None
        beta = self._constant_beta
        return like.new_zeros(self._constants) if beta is None else blocks[beta]


def count_batches(counted: list[str], buffers: Mapping[str, Tensor]) -> None:
    """Add one to the batch count of each layer, by all layers' names: one launch where each ran once."""
    while counted:
        once = list(dict.fromkeys(counted))
        torch._foreach_add_([buffers[name] for name in once], 1)
        for name in once:
            counted.remove(name)


def _index_among(have: Tensor, wanted: Tensor, device: torch.device) -> Tensor:
    """Index of each wanted channel among ``have``, -1 where it is not there."""
    if len(have) == 0:
        return torch.full_like(wanted, -1).to(device)
    at = torch.searchsorted(have, wanted).clamp(max=len(have) - 1)
    return torch.where(have[at] == wanted, at, -1).to(device)


def _spread(constants: Tensor | None, index: Tensor, like: Tensor) -> Tensor:
    """The constants at ``index``, zero where it is -1."""
    if constants is None:
        return like.new_zeros(len(index))
    return torch.cat([constants, constants.new_zeros(1)])[index]
