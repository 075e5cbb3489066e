"""Networks of every make for the engine on a GPU, held to their rewriting in plain PyTorch."""

from __future__ import annotations

import functools
from typing import Any

import torch
from chains import Case, agree, differentiate, networks
from kernel_backends import device_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.rewrite import SparseGenerator
from oes_fast.rewrite.plan import Plan
from oes_fast.rewrite.run.chain_autograd import ChainFunction
from oes_fast.rewrite.run.chain_find import find_chains
from oes_fast.rewrite.run.chain_program import NativeChain
from oes_fast.rewrite.run.context import FusedLoss, unit_gradient

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}
CASES: tuple[Case, ...] = (
    ({"num_channels_down": (3, 4)}, (16, 20), 0.8),
    ({"num_channels_down": (4, 5, 3), "filter_size_down": 5}, (24, 33), 0.6),
    ({"num_channels_down": (5, 6), "pad": "zero"}, (20, 16), 0.8),
    ({"num_channels_down": (4, 4), "act_fun": "ELU", "need1x1_up": True}, (16, 24), 0.8),
    ({"num_channels_down": (4, 5), "act_fun": "SiLU", "downsample_mode": "stride"}, (13, 19), 0.8),
    ({"num_channels_down": (5, 3), "act_fun": "none", "need_bias": False}, (16, 16), 0.9),
    ({"num_channels_down": (18, 17), "need_sigmoid": False}, (8, 12), 0.3),
    ({"num_channels_down": (4,), "filter_size_down": 3}, (8, 150), 1.0),
    ({"num_channels_down": (3, 5), "num_channels_skip": 2}, (16, 16), 0.7),
    ({"num_channels_down": (5,), "outputs": 5}, (12, 12), 0.8),
    ({"num_channels_down": (6,), "outputs": 1, "filter_size_down": 1}, (40, 6), 1.0),
)


def held_to_pytorch(
    backend: str,
    net: nn.Module,
    mask: oes.Mask | None,
    z: Tensor,
    tolerance: float,
    *,
    chained: set[str] | None = None,
) -> Plan:
    """Steps of a network on a backend against its rewriting in plain PyTorch; its plan on the backend."""
    device = device_of(backend)
    net, z = net.to(device), z.to(device)
    plain, fast = (oes.sparsify(net, mask, backend=name, verify=False).train() for name in ("torch", backend))
    for _ in range(2):
        agree(differentiate(fast, z), differentiate(plain, z), tolerance)
    plan = fast.plan(z)
    if chained is not None:
        assert {type(node.stage).__name__ for node in plan.chained} >= chained
    return plan


def generator_held_to_pytorch(backend: str, case: Case, dtype: torch.dtype) -> None:
    """The same of a generator, in a dtype against float64."""
    plain, _, z = networks(case, torch.float64, backend="torch")
    _, ours, _ = networks(case, dtype, backend=backend)
    plain, z = plain.to(device_of(backend)), z.to(device_of(backend))
    with torch.no_grad():  # the same numbers, also after they were rounded
        plain.weights.copy_(ours.weights)
    z = z.to(dtype).double()
    for _ in range(2):
        found = differentiate(ours, z.to(dtype))
        agree(
            [t.double() if t.is_floating_point() else t for t in found],
            differentiate(plain, z),
            TOLERANCE[dtype],
        )


def between_others(
    kernel: int | tuple[int, int], stride: int, pooled: bool, mode: str, act: nn.Module
) -> nn.Module:
    """A convolution of every make between others, so that it reads what a norm gives; takes 3 channels."""
    rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = (rows // 2, columns // 2)
    conv = nn.Conv2d(3, 4, (rows, columns), stride, padding, padding_mode=mode)
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3),
        nn.LeakyReLU(0.1),
        conv,
        *([nn.AvgPool2d(2)] if pooled else []),
        nn.BatchNorm2d(4),
        act,
        nn.Conv2d(4, 2, 1),
    )


def kernels_of_two_widths() -> nn.Module:
    """With padding on one side; takes 3 channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.ZeroPad2d((2, 0, 1, 3)),
        nn.Conv2d(4, 3, (2, 4), 2),
        nn.BatchNorm2d(3),
        nn.ReflectionPad2d((0, 1, 2, 0)),
        nn.Conv2d(3, 4, (4, 2)),
    )


def norms_in_a_row() -> nn.Module:
    """Two norms behind each convolution, one of them the last layer; takes 3 channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ELU(0.7),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.BatchNorm2d(5, affine=False),
        nn.BatchNorm2d(5),
    )


def constant_channels(share: float) -> tuple[nn.Module, oes.Mask]:
    """A generator, in float64, and a mask that keeps a share of the gammas and most betas; takes 3 channels.

    The channels without gamma are numbers, whose statistics the dense network moves.
    """
    net = oes.models.skip(3, 2, num_channels_down=(4, 5), filter_size_down=3, seed=0).double()
    layout = FlatLayout.of(net)
    keep = torch.rand(layout.numel, generator=torch.Generator().manual_seed(2)) < 0.9
    generator = torch.Generator().manual_seed(3)
    for (name, parameter), view in zip(net.named_parameters(), layout.views(keep).values(), strict=True):
        if parameter.ndim == 1 and name.endswith("weight"):
            view[:] = torch.rand(view.shape, generator=generator) < share
        parameter.data += 0.1
    return net, oes.Mask.from_flat(net, keep)


def loss_held_to_pytorch(backend: str, last: nn.Module, outputs: int) -> None:
    """A network that ends in ``last``, and the error that its last convolution takes along."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, outputs, 3), last)
    z, device = torch.rand(1, 3, 10, 12, dtype=torch.float64), device_of(backend)
    held_to_pytorch(backend, net.double(), None, z, 1e-10, chained={"Conv", "Norm"})
    target = torch.rand(1, outputs, 8, 10, dtype=torch.float64).to(device)
    found = []
    for name in ("torch", backend):
        fast = oes.sparsify(net, backend=name, verify=False).train()
        loss = FusedLoss(target)
        image = fast.evaluate(
            fast.weights, z.to(device), dict(fast.dense_buffers()), update_stats=False, fused_loss=loss
        )
        error = ((image - target) ** 2).mean() if loss.loss is None else loss.loss
        assert (loss.loss is None) == (name == "torch")
        found.append([image.detach(), error.detach(), *torch.autograd.grad(3 * error, fast.weights)])
    agree(found[1], found[0], 1e-10)


def chain_of(
    fast: SparseGenerator, z: Tensor, engine: type[NativeChain], count: int
) -> tuple[ChainFunction, Tensor]:
    """The chain of a generator for so many networks, and its source."""
    plan = fast.plan(z)
    (chain,) = find_chains(plan.graph, plan.alive, plan.input_only, engine.takes)
    function = ChainFunction(
        chain, plan.alive, plan.weights, engine, input_only=plan.input_only, networks=count
    )
    return function, plan.prepare(z)[chain.source].x


def networks_are_each_alone(
    backend: str,
    engine: type[NativeChain],
    case: Case,
    *,
    count: int,
    shared: bool,
    with_loss: bool,
) -> None:
    """Networks of one mask at once against one after the other, bit for bit."""
    _, fast, z = networks(case, torch.float64, backend=backend)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(z.device)

    together, source = chain_of(fast, z, engine, count)
    sources = source if shared else source + drawn(count, *source.shape[1:])
    weights = fast.weights.detach() + 0.1 * drawn(count, fast.weights.numel())
    shape = together.chain.end.shape
    targets, directions = drawn(count, *shape[1:]), drawn(count, *shape[1:])
    factors = torch.tensor([1.0, 2.0, -0.5][:count], dtype=torch.float64, device=z.device)

    def run(
        function: ChainFunction,
        weights: Tensor,
        source: Tensor,
        target: Tensor,
        direction: Tensor,
        factor: Tensor,
        buffers: dict[str, Tensor],
    ) -> list[Tensor]:
        weights = weights.clone().requires_grad_()
        source = source.clone().requires_grad_()
        image, loss = function(
            weights,
            [source],
            buffers,
            update_stats=True,
            counted=[],
            target=target if with_loss else None,
        )
        value = (image * direction).sum() if loss is None else (loss * factor).sum()
        return [image.detach(), *torch.autograd.grad(value, (weights, source))]

    single = [{name: b.clone() for name, b in fast.dense_buffers()} for _ in range(count)]
    many = {
        name: torch.stack([buffers[name] for buffers in single]) for name in single[0] if "num" not in name
    }
    ours = run(together, weights, sources, targets, directions, factors, many)
    alone, _ = chain_of(fast, z, engine, 1)
    found = [
        run(
            alone,
            weights[i],
            source if shared else sources[i : i + 1],
            targets[i : i + 1],
            directions[i : i + 1],
            factors[i],
            single[i],
        )
        for i in range(count)
    ]
    same = functools.partial(torch.testing.assert_close, rtol=0, atol=0)
    same(ours[0], torch.cat([each[0] for each in found]))
    same(ours[1], torch.stack([each[1] for each in found]))
    grads = torch.cat([each[2] for each in found])
    torch.testing.assert_close(ours[2], grads.sum(0, keepdim=True) if shared else grads)
    for name, statistics in many.items():
        same(statistics, torch.stack([buffers[name] for buffers in single]))


def torch_operations_of_a_step(fast: SparseGenerator, z: Tensor) -> list[str]:
    """Names of what a step with a loss asks torch to run, once everything is made, but for views and memory.

    A recording of it could not read anything back.
    """
    target = torch.zeros(fast.plan(z).graph.output.shape, device=z.device)
    buffers, weights = dict(fast.dense_buffers()), fast.weights.detach().clone().requires_grad_()
    unit = None
    for _ in range(2):
        with _Operations() as seen:
            loss = FusedLoss(target)
            fast.evaluate(weights, z, buffers, update_stats=True, fused_loss=loss)
            assert loss.loss is not None
            unit = unit_gradient(loss.loss) if unit is None else unit
            torch.autograd.grad(loss.loss, weights, unit)
    return seen.names


class _Operations(TorchDispatchMode):
    FREE = ("empty", "new_empty", "detach", "view", "alias", "unsqueeze", "expand", "_unsafe_view", "slice")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__.split(".")[0]
        if not name.startswith(self.FREE):
            self.names.append(name)
        return func(*args, **(kwargs or {}))
