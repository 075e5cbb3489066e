"""One step of each contestant: the published way, the same through torch.compile, and the backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.bench.published import PublishedSearch, PublishedTraining
from oes_fast.mask import Mask
from oes_fast.pipelines.cuda_graphs import graphed
from oes_fast.pipelines.functions import make_function
from oes_fast.pipelines.objective import SquaredError
from oes_fast.pipelines.search import SearchRun
from oes_fast.pipelines.train_run import TrainRun

PUBLISHED, COMPILED = "published", "compiled"
Step = Callable[[], object]


def training_steps(
    net: nn.Module,
    mask: Mask,
    z: Tensor,
    noisy: Tensor,
    backends: Sequence[str],
    *,
    recorded: bool = True,
) -> dict[str, Step]:
    """One training step of the published way and of each backend; on a GPU as the pipelines record them.

    Args:
        net: the generator.
        mask: which of its weights are trained.
        z: its input, shape [1, C, H, W].
        noisy: the image, shape [1, C', H, W].
        backends: names, and "compiled" for the published way through torch.compile.
        recorded: as the pipelines do on a GPU; kernels are launched one by one without.
    """
    kept = mask.flat.to(z.device)
    steps: dict[str, Step] = {PUBLISHED: PublishedTraining(net, kept, z, noisy).step}
    for backend in backends:
        if backend == COMPILED:
            compiled = PublishedTraining(net, kept, z, noisy)
            compiled.net.compile()
            steps[backend] = compiled.step
            continue
        function, chosen = make_function(net, z, mask, backend, verify=False)
        run = TrainRun(function, SquaredError(noisy), 1e-2, None, chosen)
        steps[backend] = stepper(graphed(run, chosen, z.device) if recorded else run)
    return steps


def search_steps(
    net: nn.Module, z: Tensor, noisy: Tensor, backends: Sequence[str], *, recorded: bool = True
) -> dict[str, Step]:
    """One search step of the published way and of each backend, as :func:`training_steps`.

    "compiled" is left out: every step draws its mask, which has no zeros, into a new copy of the network.
    """
    steps: dict[str, Step] = {PUBLISHED: PublishedSearch(net, z, noisy).step}
    for backend in backends:
        if backend == COMPILED:
            continue
        function, chosen = make_function(net, z, None, backend, verify=False)
        options: dict[str, Any] = {"density": 0.05, "lr": 1e-2, "kl": 1e-9, "temperature": 0.2, "seed": 0}
        run = SearchRun(function, SquaredError(noisy), chosen, **options)
        steps[backend] = stepper(graphed(run, chosen, z.device) if recorded else run)
    return steps


def stepper(run: Any) -> Step:
    """The next step of a run, each time it is called."""
    step = 0

    def call() -> None:
        nonlocal step
        run.evaluate(step, final=False)
        run.update(step)
        step += 1

    return call


def drawn_mask(net: nn.Module, density: float | None = None) -> Mask:
    """A drawn mask: like the published ones, it has dead channels, those without gamma.

    Args:
        net: a generator; 12 % of the weights of its 5 x 5 kernels are kept, 40 % of its 3 x 3 and 72 % of the
            others: 17 % in all of the published network, where published masks keep 5 %, so a step
            is rather slower than with one of those.
        density: that of :func:`likely_mask` instead.
    """
    if density is not None:
        return likely_mask(net, density)
    generator = torch.Generator().manual_seed(0)
    bits: list[Tensor] = []
    norms = {id(m.bias) for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    for parameter in net.parameters():
        kernel = parameter[0][0].numel() if parameter.ndim == 4 else 0
        share = {25: 0.12, 9: 0.4}.get(kernel, 0.72)
        drawn = torch.rand(parameter.numel(), generator=generator) < share
        bits.append(drawn & bits[-1] if id(parameter) in norms else drawn)  # no beta without its gamma
    bits[-2:] = [torch.ones_like(bit) for bit in bits[-2:]]  # the last layer, or colours would be missing
    return Mask.from_flat(net, torch.cat(bits))


def likely_mask(net: nn.Module, density: float) -> Mask:
    """A mask whose steps take about as long as those with a searched one of that density.

    A step is as long as there are channels alive, much more than as weights are kept. Searched masks keep the
    scales of most norms, all of them where layers are large, and no shift, which is 0 at the start: so does
    this one. A draw from all weights alike would leave hardly a channel alive.
    """
    named = [(name.rpartition(".")[2], each) for name, each in net.named_parameters()]
    scales = sum(each.numel() for name, each in named if each.ndim == 1 and name == "weight")
    kernels = sum(each.numel() for _, each in named if each.ndim > 1)
    wanted = density * sum(each.numel() for _, each in named)
    share = max(wanted - scales, 0.5 * wanted) / max(kernels, 1)
    generator = torch.Generator().manual_seed(0)
    bits = []
    for name, each in named:
        kept = share if each.ndim > 1 else float(name == "weight")
        bits.append(torch.rand(each.numel(), generator=generator) < kept)
    bits[-2:] = [torch.ones_like(bit) for bit in bits[-2:]]  # as in :func:`drawn_mask`
    return Mask.from_flat(net, torch.cat(bits))
