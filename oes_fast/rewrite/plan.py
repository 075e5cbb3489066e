"""An executable plan: the stages of a graph bound to the weights that are alive."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oes_fast import _cuda_extension
from oes_fast.backends import triton_interprets
from oes_fast.flat import FlatLayout
from oes_fast.ops.running_stats import running_stats_of_layers
from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import alive_channels
from oes_fast.rewrite.run.chain_autograd import ChainFunction, ConstantRead
from oes_fast.rewrite.run.chain_cpu import CpuChain
from oes_fast.rewrite.run.chain_cuda import CudaChain
from oes_fast.rewrite.run.chain_find import Chain, find_chains
from oes_fast.rewrite.run.chain_program import NativeChain
from oes_fast.rewrite.run.context import Context, FusedLoss, StageFunction, Value, activate
from oes_fast.rewrite.run.norm_ops import count_batches
from oes_fast.rewrite.run.torch_ops import Builder
from oes_fast.rewrite.run.triton_ops import TritonBuilder
from oes_fast.rewrite.weights import CompactWeights


@dataclass(frozen=True)
class _Step:
    """One call of a run: the node whose result it makes, and the nodes whose results it takes."""

    node: ir.Node
    inputs: list[ir.Node]
    run: StageFunction


# Stages without parameters or randomness: where all their inputs are fixed, so is their result.
_REPEATABLE = (
    ir.Input,
    ir.Constant,
    ir.Pad,
    ir.Box,
    ir.Pool,
    ir.Upsample,
    ir.Crop,
    ir.Channels,
    ir.PixelShuffle,
    ir.Cat,
    ir.Add,
    ir.Act,
)


class Plan:
    """A graph for one shape of input and one mode of its layers, with only what is alive.

    Args:
        graph: rewritten graph.
        net: the traced network, for modules that run as they are.
        mask: flat bool mask of its parameters, or None.
        device: of the weights.
        kernels: "torch", or "cpu", "cuda" or "triton" for kernels where they are the better choice.
        fixed_input: the same input comes again and again, so what depends on it alone is made once.
        networks: how many networks of the mask :meth:`run` evaluates at once, N; see
            :class:`ChainFunction`. More than one where one chain computes all, see :meth:`in_one_chain`.

    Attributes:
        kernels: as asked for; "torch" where a network has been moved away from its kernels' device.
        sparse: convolutions that run on their kept weights alone, outside chains.
        chained: nodes that chains run.
        kernel_names: what runs a stage and why, by node, where that is a Triton kernel.
    """

    def __init__(
        self,
        graph: ir.Graph,
        net: nn.Module,
        mask: Tensor | None,
        *,
        device: torch.device,
        kernels: str = "torch",
        fixed_input: bool = True,
        networks: int = 1,
    ) -> None:
        self._networks = networks
        layout = FlatLayout.of(net)
        kept = None if mask is None else layout.views(mask.cpu())
        self.graph = graph
        self.alive = alive_channels(graph, kept)
        self.weights = CompactWeights(layout, mask)
        self.input_only = self._input_only_nodes(fixed_input=fixed_input)
        self._device = device
        engine = _engine(kernels, device)
        if engine is None and not (kernels == "triton" and _triton_runs_on(device)):
            kernels = "torch"
        self.kernels = kernels
        chains = (
            []
            if engine is None
            else find_chains(graph, self.alive, self.input_only, engine.takes, joins=engine.joins)
        )
        chains = [chain for chain in chains if _pays(chain, kept)]
        self._chains: list[ChainFunction] = []
        self.chained = {node for chain in chains for node in chain.nodes}
        make = TritonBuilder if kernels == "triton" else Builder
        builder = make(
            graph,
            net,
            self.alive,
            self.weights,
            device,
            input_only=self.input_only,
            chained=self.chained,
            kernels=kernels,
        )
        ends = {chain.end: chain for chain in chains}
        self._steps: list[_Step] = []
        for node in graph.nodes:
            if node in ends:
                chain = ends[node]
                assert engine is not None
                run = ChainFunction(
                    chain, self.alive, self.weights, engine, input_only=self.input_only, networks=networks
                )
                self._chains.append(run)
                self._steps.append(_Step(node, chain.sources, self._result_of(run)))
            elif node not in self.chained:
                self._steps.append(_Step(node, node.inputs, builder.build(node)))
        self._finish = builder.output()
        self.sparse = builder.sparse
        self.kernel_names = builder.kernel_names if isinstance(builder, TritonBuilder) else {}
        self.weights.finish(device)
        self._last = self._last_readers()

    def prepare(self, z: Tensor) -> dict[ir.Node, Value]:
        """Results of the stages that depend on the input alone: made once for a fixed input."""
        context = Context(z, z.new_empty(0), [], {}, update_stats=False)
        values: dict[ir.Node, Value] = {}
        for step in self._steps:
            if step.node in self.input_only:
                values[step.node] = step.run(context, [values[i] for i in step.inputs])
        read = {i for step in self._steps if step.node not in self.input_only for i in step.inputs}
        read.add(self.graph.output)
        # Code that is run as it is sees the layout of the dense network, in whose order dropout draws.
        seen = {i for step in self._steps if isinstance(step.node.stage, ir.Opaque) for i in step.inputs}
        return {k: v if k in seen else _laid_out(v) for k, v in values.items() if k in read}

    def run(
        self,
        weights: Tensor,
        buffers: Mapping[str, Tensor],
        z: Tensor,
        prepared: dict[ir.Node, Value],
        *,
        update_stats: bool,
        fused_loss: FusedLoss | None = None,
        observe: Callable[[ir.Node, Value], None] | None = None,
    ) -> Tensor:
        """The image.

        Args:
            weights: kept weights, flat.
            buffers: running statistics by name, updated in place if ``update_stats``.
            z: input [N, C, H, W].
            prepared: what :meth:`prepare` gave for ``z``.
            update_stats: update the running statistics (in training only).
            fused_loss: a loss that the last layer may take along.
            observe: called with every stage's result, in order.

        Returns:
            Tensor [N, C', H', W'], differentiable in ``weights``.
        """
        context = Context(z, weights, self.weights.blocks(weights), buffers, update_stats, fused_loss)
        values = dict(prepared)
        for step in self._steps:
            if step.node in self.input_only:
                continue
            values[step.node] = step.run(context, [values[i] for i in step.inputs])
            if observe is not None:
                observe(step.node, values[step.node])
            for key in self._last[step.node]:
                del values[key]
        count_batches(context.counted, buffers)
        running_stats_of_layers(context.moved)
        output = self._finish(context, [values[self.graph.output]]).x
        if weights.requires_grad and torch.is_grad_enabled() and not output.requires_grad:
            output = output + 0 * weights.sum()  # nothing is alive: the gradient is zero, not missing
        return output

    def in_one_chain(self, dtype: torch.dtype) -> bool:
        """Whether one chain computes all that depends on the weights, and takes a squared error along."""
        if len(self._chains) != 1:
            return False
        (run,) = self._chains
        inside = self.chained | self._input_only_nodes(fixed_input=True)
        return (
            run.chain.end is self.graph.output
            and len(self.alive[run.chain.end].varying) == self.graph.output.shape[1]
            and all(node in inside for node in self.graph.nodes)
            and run.takes_target(dtype, self._device)
        )

    def memory(self, dtype: torch.dtype) -> int:
        """Bytes of the buffers of the chains, as far as their engines tell."""
        return sum(run.memory(dtype, self._device) for run in self._chains)

    @property
    def chains(self) -> list[Chain]:
        """The chains."""
        return [run.chain for run in self._chains]

    def constant_reads(self, values: Mapping[ir.Node, Value]) -> list[ConstantRead]:
        """How chains read what :meth:`prepare` gave, laid out now if need be."""
        return [read for chain in self._chains for read in chain.constant_reads(values)]

    def only_chains_read(self, node: ir.Node) -> bool:
        """Whether nothing else does, of what is made in each run."""
        ends = {chain.chain.end for chain in self._chains}
        readers = [step.node for step in self._steps if node in step.inputs]
        return node is not self.graph.output and ends.issuperset(
            n for n in readers if n not in self.input_only
        )

    def explain_chains(self, dtype: torch.dtype) -> dict[ir.Node, str]:
        """What runs the stages of chains in this dtype, by node."""
        return {
            node: name for chain in self._chains for node, name in chain.explain(dtype, self._device).items()
        }

    def sibling(self) -> Plan:
        """The same for another network of the same layers and mask, which may run at the same time.

        All that was found out is shared, and so is the input as it is laid out for chains, until a plan comes
        to run with another one. There must be nothing but chains that depends on weights.
        """
        other = copy.copy(self)
        other._chains = [chain.sibling() for chain in self._chains]
        ends = {chain.chain.end: chain for chain in other._chains}
        other._steps = [
            _Step(step.node, step.inputs, other._result_of(ends[step.node])) if step.node in ends else step
            for step in self._steps
        ]
        return other

    def _result_of(self, run: ChainFunction) -> StageFunction:
        chain = run.chain
        target_shape = self._networks * chain.end.shape[0], *chain.end.shape[1:]
        # The kernels compare the channels that they compute: all of them, or the target's are others.
        whole = len(self.alive[chain.end].varying) == self.graph.output.shape[1]
        takes_loss = whole and chain.end is self.graph.output
        varying = len(self.alive[chain.end].varying)

        # It holds the chain and not the plan, so that both go, and their memory, when nobody needs them.
        def result(context: Context, values: list[Value]) -> Value:
            fused_loss = context.fused_loss if takes_loss else None
            if fused_loss is not None and fused_loss.target.shape != target_shape:
                fused_loss = None
            x, loss = run(
                context.weights,
                [value.x for value in values],
                context.buffers,
                update_stats=context.update_stats,
                counted=context.counted,
                target=None if fused_loss is None else fused_loss.target,
                weight=None if fused_loss is None else fused_loss.weight,
            )
            if fused_loss is not None:
                fused_loss.loss = loss
            if x.shape[1] > varying:  # each pixel of the planes is the constant
                return Value(x[:, :varying], x[0, varying:, 0, 0])
            return Value(x, run.constants(context.blocks, activate))

        return result

    def _input_only_nodes(self, *, fixed_input: bool) -> set[ir.Node]:
        """What is made once for an input; without a fixed one, what depends on constants alone."""
        found: set[ir.Node] = set()
        for node in self.graph.nodes:
            if isinstance(node.stage, ir.Input) and not fixed_input:
                continue
            repeatable = isinstance(node.stage, ir.Opaque) and node.stage.target == "index_select"
            if (isinstance(node.stage, _REPEATABLE) or repeatable) and all(i in found for i in node.inputs):
                found.add(node)
        return found

    def _last_readers(self) -> dict[ir.Node, list[ir.Node]]:
        """For each node, the results that nothing reads after it."""
        last: dict[ir.Node, ir.Node] = {}
        for step in self._steps:
            if step.node not in self.input_only:
                last[step.node] = step.node  # nothing reads what runs for running statistics alone
                last.update(dict.fromkeys(step.inputs, step.node))
        last.pop(self.graph.output, None)
        readers: dict[ir.Node, list[ir.Node]] = {node: [] for node in self.graph.nodes}
        for key, reader in last.items():
            readers[reader].append(key)
        return readers


def _engine(kernels: str, device: torch.device) -> type[NativeChain] | None:
    """What runs chains, None where nothing does: the module may have been moved to another device."""
    if kernels == "cpu" and device.type == "cpu":
        return CpuChain
    if kernels == "cuda" and device.type == _cuda_extension.device_type():
        return CudaChain
    return None


def _triton_runs_on(device: torch.device) -> bool:
    """Whether Triton's kernels take tensors of this device."""
    return device.type == "cuda" or (device.type == "cpu" and triton_interprets())


def _pays(chain: Chain, kept: Mapping[str, Tensor] | None) -> bool:
    """Whether the kernels of a chain are faster than PyTorch's operations.

    Not where all its convolutions are transposed ones with all their weights: the image is shuffled and
    cropped between them, which PyTorch's do on the way (a DCGAN generator took 1.2 times as long in a chain).
    """
    convs = [block.conv.stage for block in chain.convolutions]
    transposed = [conv for conv in convs if isinstance(conv, ir.Conv) and conv.transposed]
    if len(transposed) < len(convs):
        return True
    return kept is not None and any(not bool(kept[conv.weight].all()) for conv in transposed)


def _laid_out(value: Value) -> Value:
    """Channels last on a CPU, where a convolution that reads a fixed image takes half the time for it."""
    x = value.x
    if x.ndim != 4 or x.device.type != "cpu":
        return value
    return Value(x.contiguous(memory_format=torch.channels_last), value.constant)
