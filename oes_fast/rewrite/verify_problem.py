"""What a rewritten network and the dense one are both given when they are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oes_fast._memory import available_memory
from oes_fast.copies import copy_network
from oes_fast.flat import FlatLayout

if TYPE_CHECKING:
    from oes_fast.rewrite.module import SparseGenerator

EPS = 1e-2  # of norms, at least
SEED = 20_240_721
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
# Values that a dense step in float64 holds at once for each value of a result: 4 to 7 were measured.
VALUES_HELD = 8


class DrawsNumbersError(Exception):
    """An operation is about to draw random numbers."""


class Watch(TorchDispatchMode):
    """Stops before random numbers are drawn, unless they may be, and sees results narrower than ``dtype``."""

    def __init__(self, dtype: torch.dtype, *, may_draw: bool = False) -> None:
        super().__init__()
        self._bits = torch.finfo(dtype).bits
        self._may_draw = may_draw
        self.narrower = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled inside, so that PyTorch need not import its compiler, which takes a second, to
        # leave it out.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not self._may_draw:
            raise DrawsNumbersError
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.narrower |= torch.finfo(tensor.dtype).bits < self._bits
        return result


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Inside, PyTorch draws the same numbers every time; afterwards it goes on as if none had been drawn."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for generator in generators:
            generator.manual_seed(SEED)
        yield


def drawn_weights(net: nn.Module, weights: Tensor, kept: Tensor) -> Tensor:
    """Weights about the present ones, zero where the mask drops.

    A beta that is 0, whose gamma the mask drops or is 0 too, makes a channel that is exactly 0, where
    activations have their kink: every second of them stays.
    """
    generator = torch.Generator(device="cpu").manual_seed(SEED)
    weights = weights.detach().cpu()
    noise = torch.randn(weights.numel(), generator=generator, dtype=torch.float32, device="cpu").to(weights)
    layout = FlatLayout.of(net)
    present, drawn = layout.views(weights * kept), (weights * kept).clone()
    views = layout.views(drawn)
    for name, of_noise in layout.views(noise).items():
        size = float(present[name].square().mean().sqrt()) if present[name].numel() else 0.0
        views[name] += (0.3 * size or 0.1) * of_noise
    for path, module in net.named_modules():
        scale, shift = (f"{path}.{name}".lstrip(".") for name in ("weight", "bias"))
        if isinstance(module, _NORMS) and scale in views and shift in views:
            zero = torch.nonzero((present[scale] == 0) & (present[shift] == 0))[::2]
            views[shift][tuple(zero.T)] = 0.0
    return drawn * kept


def an_ulp_away(weights: Tensor) -> Tensor:
    """The next number up or down of each of these weights, at random; 0 stays."""
    generator = torch.Generator(device="cpu").manual_seed(SEED)
    up = torch.randint(2, weights.shape, generator=generator, dtype=torch.bool, device="cpu")
    towards = torch.where(up, float("inf"), float("-inf")).to(weights)
    return torch.where(weights == 0, weights, torch.nextafter(weights, towards))


def with_raised_eps(net: nn.Module) -> nn.Module:
    """A copy whose norms have an eps of :data:`EPS` at least."""
    raised = copy_network(net)
    for module in raised.modules():
        if isinstance(module, _NORMS):
            module.eps = max(module.eps, EPS)
    return raised


def fits_in_float64(generator: SparseGenerator, net: nn.Module, z: Tensor) -> bool:
    """Whether a dense step in float64 leaves half of the free memory."""
    values = sum(torch.Size(node.shape).numel() for node in generator.plan(z).graph.nodes)
    parameters = sum(p.numel() for p in net.parameters())
    return 8 * (VALUES_HELD * values + 6 * parameters) < available_memory(z.device) / 2


def target_image(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An image to compare with, the same on both sides."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(like)


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Flat gradients of the leaves, zero where the loss does not depend on one."""
    if not loss.requires_grad:
        return [torch.zeros_like(leaf).flatten() for leaf in leaves]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [grad.flatten() for grad in grads]
