"""Convolutions with batch norms between them, run as one: the program of :mod:`specs` on the kernels.

A block is a convolution with the batch norm, the activation and possibly a second batch norm behind it.
Between two blocks only the convolution's own result is kept; the next block normalises and activates it as it
reads it, forward and backward. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton.language as tl
from oes_fast.kernels.chain import kinds
from oes_fast.kernels.chain.blocks import Block
from oes_fast.kernels.chain.build import ChainBuilder
from oes_fast.kernels.chain.norm_pass import (
    PASS_ACT_GRAD,
    PASS_FOLD,
    PASS_IMAGE,
    PASS_IMAGE_GRAD,
    PASS_SECOND_MOMENTS,
    PASS_SECOND_SUMS,
    Fold,
    norm_pass,
    pass_chunks,
)
from oes_fast.kernels.chain.reader import Image, gradient_image, plain_image
from oes_fast.kernels.chain.tap_sum import (
    ACT_GRAD,
    IMAGE,
    MOMENTS,
    NO_EPILOGUE,
    SECOND_SUMS,
    STORE,
    Epilogue,
    tap_sum,
)
from oes_fast.kernels.chain.tap_sum_plan import TapSumPlan
from oes_fast.kernels.chain.weight_grad import weight_grad
from torch import Tensor

Running = tuple[Tensor | None, Tensor | None]  # mean and variance


class Chain(ChainBuilder):
    """A chain of convolutions and norms for N networks at once; see :class:`ChainBuilder`."""

    def forward(
        self,
        weights: Tensor,
        source: Tensor,
        shared: bool,
        out: Tensor,
        running: Sequence[Tensor | None],
        target: Tensor | None,
        weight: Tensor | None,
        loss: Tensor | None,
    ) -> None:
        """Start an evaluation; all tensors are contiguous, of the chain's dtype and device.

        Args:
            weights: [N, weights], or [weights] of one network.
            source: [N, channels, rows, columns], or [1, ...] where it is ``shared``.
            shared: it is one image for all networks.
            out: [N, *shape], written.
            running: mean and variance of every norm, [N, channels], or [channels] of one network, updated;
                None where they stay. Empty: all stay.
            target: as ``out``, or None; a chain that ends in a norm takes none.
            weight: of each squared error, as ``out``, or None.
            loss: N elements, written where there is a target.
        """
        last = self._blocks[-1]
        self._target = None if last.norms else target
        self._weight = None if self._target is None else weight
        self._flat.pack(weights)
        pairs: list[Running] = list(zip(running[::2], running[1::2], strict=True))
        for number, block in enumerate(self._blocks):
            image = self._image_before(number, source, shared)
            if not block.norms:
                self._head(block, image, weights, out, loss)
                continue
            now = pairs.pop(0) if pairs else (None, None)
            self._sum(
                block.forward,
                image,
                block.y,
                block.packed,
                epilogue=MOMENTS,
                finalise=kinds.NORM_FORWARD,
                finish=block.norm_forward(0, block.forward.chunks, self._partials, weights, now),
                act_behind=block.act,
            )
            if block.two:
                now = pairs.pop(0) if pairs else (None, None)
                self._second_moments(block, weights, now)
        if last.norms:
            norm_pass(
                PASS_IMAGE,
                y=last.y,
                out=out,
                numbers=last.prologue,
                slope=last.slope,
                act=last.act,
                second=last.two,
            )

    def backward(
        self,
        weights: Tensor,
        source: Tensor,
        shared: bool,
        grad: Tensor | None,
        grad_weights: Tensor,
        grad_source: Tensor | None,
    ) -> None:
        """Start the derivative, after a forward with the same weights and source.

        Args:
            weights: as in the forward.
            source: the same.
            shared: the same.
            grad: of the image, as ``out``; None for that of the forward's loss.
            grad_weights: as ``weights``, written.
            grad_source: [N, channels, rows, columns], written, or None.

        Raises:
            ValueError: no gradient, and the last forward had no target.
        """
        if grad is None and not self.has_loss:
            raise ValueError("grad: expected one, since the last forward had no target")
        grad_weights.zero_()
        of_y, spare = self._grads
        self._begin_backward(weights, grad, grad_weights, of_y)
        for number in reversed(range(len(self._blocks))):
            block = self._blocks[number]
            image = self._image_before(number, source, shared)
            numbers = block.norms[0].grads if block.norms else None
            gradient = gradient_image(block.y, of_y, numbers)
            last = block.input_grad is None or (number == 0 and grad_source is None)
            # Every tap of the input gradient would take it through the norm again.
            written = None if last or numbers is None else self._read_grad
            weight_grad(block.weight_grad, image, gradient, self._flat.partials, block.partials, written)
            if last:
                break
            if written is not None:
                gradient = plain_image(written)
            if block.before is not None:
                of_y, spare = self._input_grad(block, gradient, of_y, spare, grad_weights)
            elif block.taps.folds:
                self._sum(block.input_grad, gradient, spare, block.packed_grad)
                norm_pass(PASS_FOLD, grad=spare, out=grad_source, fold=_fold(block))
            else:
                assert grad_source is not None
                self._sum(block.input_grad, gradient, grad_source, block.packed_grad)
        self._flat.unpack(grad_weights)

    # ---- parts of them

    def _image_before(self, number: int, source: Tensor, shared: bool) -> Image:
        before = self._blocks[number].before
        return plain_image(source, shared=shared) if before is None else before.image()

    def _sum(
        self,
        plan: TapSumPlan,
        image: Image,
        out: Tensor,
        begin: int,
        *,
        epilogue: tl.constexpr = STORE,
        of: Epilogue = NO_EPILOGUE,
        finalise: tl.constexpr = kinds.FINALISE_NONE,
        finish: Any = None,
        second: bool = False,
        act_behind: int = 0,
    ) -> None:
        tap_sum(
            plan,
            image,
            out,
            self._flat.packed,
            begin,
            epilogue=epilogue,
            of=of,
            finalise=finalise.value,
            finish=finish,
            second=second,
            act_behind=act_behind,
            tickets=self._tickets,
            workspace=self._workspace,
        )

    def _head(self, block: Block, image: Image, weights: Tensor, out: Tensor, loss: Tensor | None) -> None:
        """A last convolution without norm, with the image's activation and its error."""
        loss = None if self._target is None else loss
        self._sum(
            block.forward,
            image,
            block.y,
            block.packed,
            epilogue=IMAGE,
            of=Epilogue(None, None, self._slope, tl.constexpr(self._act), out, self._target, self._weight),
            finalise=kinds.FINALISE_NONE if loss is None else kinds.LOSS,
            finish=block.loss(block.forward.chunks, self._partials, weights, loss),
        )

    def _second_moments(self, block: Block, weights: Tensor, running: Running) -> None:
        norm_pass(
            PASS_SECOND_MOMENTS,
            y=block.y,
            numbers=block.prologue,
            slope=block.slope,
            act=block.act,
            finalise=kinds.NORM_FORWARD.value,
            finish=block.norm_forward(1, pass_chunks(block.pixels), self._partials, weights, running),
            act_behind=int(block.norms[1].spec.act),
            tickets=self._tickets,
        )

    def _begin_backward(
        self, weights: Tensor, grad: Tensor | None, grad_weights: Tensor, of_y: Tensor
    ) -> None:
        """From the gradient of the image, or the error to the target, that of the last block's result."""
        last = self._blocks[-1]
        if last.norms:
            assert grad is not None
            if last.two:
                self._second_sums(last, grad, None, None, grad_weights)
            self._activation_grad(last, grad, of_y, None, grad_weights)
            return
        norm_pass(
            PASS_IMAGE_GRAD,
            y=last.y,
            grad=grad,
            out=of_y,
            target=None if grad is not None else self._target,
            weight=None if grad is not None else self._weight,
            slope=self._slope,
            act=self._act,
            finalise=(kinds.SHIFT_BACKWARD if last.shifts else kinds.FINALISE_NONE).value,
            finish=last.shift_backward(pass_chunks(last.pixels), self._partials, weights, grad_weights),
            act_behind=last.read_act,
            tickets=self._tickets,
        )

    def _input_grad(
        self,
        block: Block,
        gradient: Image,
        of_y: Tensor,
        spare: Tensor,
        grad_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The gradient of the result of the block before, and a buffer that nobody reads any more."""
        plan, before = block.input_grad, block.before
        assert plan is not None
        assert before is not None
        if block.taps.folds:
            # Of the image with its border into the spare buffer, of the image into that of this block's.
            self._sum(plan, gradient, spare, block.packed_grad)
            grad, fold = spare, _fold(block)
            if before.two:
                self._second_sums(before, grad, of_y, fold, grad_weights)
                grad, fold = of_y, None
            self._activation_grad(before, grad, of_y, fold, grad_weights)
            return of_y, spare
        self._sum(
            plan,
            gradient,
            spare,
            block.packed_grad,
            epilogue=SECOND_SUMS if before.two else ACT_GRAD,
            of=Epilogue(before.y, before.prologue, before.slope, tl.constexpr(before.act), None, None),
            finalise=kinds.NORM_BACKWARD,
            finish=before.norm_backward(int(before.two), plan.chunks, self._partials, grad_weights),
            second=before.two,
        )
        if before.two:
            self._activation_grad(before, spare, spare, None, grad_weights)
        return spare, of_y

    def _second_sums(
        self,
        block: Block,
        grad: Tensor,
        out: Tensor | None,
        fold: Fold | None,
        grad_weights: Tensor,
    ) -> None:
        norm_pass(
            PASS_SECOND_SUMS,
            y=block.y,
            grad=grad,
            out=out,
            numbers=block.prologue,
            slope=block.slope,
            act=block.act,
            fold=fold,
            finalise=kinds.NORM_BACKWARD.value,
            finish=block.norm_backward(1, pass_chunks(block.pixels), self._partials, grad_weights),
            tickets=self._tickets,
        )

    def _activation_grad(
        self,
        block: Block,
        grad: Tensor,
        out: Tensor,
        fold: Fold | None,
        grad_weights: Tensor,
    ) -> None:
        """From the gradient of what the block gives that of what its first norm's activation takes."""
        norm_pass(
            PASS_ACT_GRAD,
            y=block.y,
            grad=grad,
            out=out,
            numbers=block.prologue,
            grad_numbers=block.norms[1].grads if block.two else None,
            slope=block.slope,
            act=block.act,
            fold=fold,
            finalise=kinds.NORM_BACKWARD.value,
            finish=block.norm_backward(0, pass_chunks(block.pixels), self._partials, grad_weights),
            tickets=self._tickets,
        )


def _fold(block: Block) -> Fold:
    taps = block.taps
    return Fold(taps.top, taps.left, taps.bottom, taps.right, taps.padding)
