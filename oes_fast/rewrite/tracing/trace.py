"""From a network to a graph of stages, by torch.fx with the shapes of one input.

torch.fx rather than torch.export: it keeps the modules, whose names, options and running statistics the
rewrites need, it takes milliseconds, and one trace serves training and evaluation. What it lacks, shapes that
the network's code may branch on, is added here: every value is also computed on the meta device.
"""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import torch.fx
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from oes_fast._checks import described
from oes_fast.copies import copy_network
from oes_fast.entry import Entry, EntryError, entry_of
from oes_fast.meta_device import QuickShapes
from oes_fast.nn import MaskedConv2d
from oes_fast.rewrite import ir
from oes_fast.rewrite.tracing.convert import Converter
from oes_fast.rewrite.tracing.dataflow import place_in_code
from oes_fast.rewrite.tracing.errors import TraceError
from oes_fast.rewrite.tracing.in_place import OPERATORS, SIGNS, changes, in_place_message
from oes_fast.rewrite.tracing.recorded import check_recorded
from oes_fast.rewrite.tracing.side_effects import isinstance_of_traced, random_left_alone, refuse_side_effects
from oes_fast.rewrite.tracing.state import seeds
from oes_fast.rewrite.tracing.statistics import attribute


def trace(net: nn.Module, z: Tensor, *, check: bool = True, entry: Entry | None = None) -> ir.Graph:
    """The graph of ``net`` for inputs of the shape of ``z``.

    Args:
        net: generator with one tensor argument.
        z: input [N, C, H, W]; only its shape, dtype and device count.
        check: compare what was recorded with what the network computes; only for one that was compared before
            is it left out.
        entry: which of several results is the image, see :func:`oes_fast.entry.entry_of`.

    Raises:
        InputError: the network gives no such entry.
        TraceError: the code branches on values, changes tensors in place, has side effects (see
            :mod:`oes_fast.rewrite.tracing.side_effects`), returns no single image, or does what the trace did
            not see (see :mod:`oes_fast.rewrite.tracing.recorded`).
    """
    # torch.func.grad and the like are for calls of the plan, not for making it.
    needs_gradient, plain = z.requires_grad, z
    while torch._C._functorch.is_functorch_wrapped_tensor(plain):
        plain = torch._C._functorch.get_unwrapped(plain)
    with temporarily_clear_interpreter_stack():
        if plain is not z:
            plain = plain.detach().requires_grad_(needs_gradient)
        return _trace(net, plain, check, entry)


def _trace(net: nn.Module, z: Tensor, check: bool, entry: Entry | None) -> ir.Graph:
    try:
        # A copy, since the code may change what it holds; of its own modules only, not of the weights.
        root = _Call(copy_network(net, {id(t): t for t in [*net.parameters(), *net.buffers()]}), entry)
        # torch.fx patches torch.nn.Module for all threads: one trace at a time.
        # Random generators belong to all threads too: they are set back only where the code may seed them.
        alone = random_left_alone(z.device) if seeds(net) else contextlib.nullcontext()
        with _LOCK, torch.enable_grad(), alone:
            with refuse_side_effects(root.net), isinstance_of_traced(root.net, _shown):
                tracer = _Tracer(root, z)
                fx_graph = tracer.trace(root)
                if tracer.refusals:
                    raise tracer.refusals[0]
            graph = Converter(root.net, root, fx_graph).convert()
            if check:
                check_recorded(net, z, root, fx_graph, entry)
        return graph
    except (TraceError, EntryError):
        raise
    except Exception as error:  # whatever the network's own code raises under tracing
        raise TraceError(f"{type(net).__name__} cannot be traced: {error}") from error


_LOCK = threading.RLock()


class _Call(nn.Module):
    """Calls the network as its user does: with one argument, defaults for the others, and its hooks."""

    def __init__(self, net: nn.Module, entry: Entry | None) -> None:
        super().__init__()
        self.net = net
        self.entry = entry

    def forward(self, z: Tensor) -> Any:
        output = self.net(z)
        if isinstance(output, _Proxy):
            entry_of(output.node.meta["value"], self.entry, of=type(self.net).__name__)  # refuses
            output = output if self.entry is None else operator.getitem(output, self.entry)
        else:
            output = entry_of(output, self.entry, of=type(self.net).__name__)
        if isinstance(output, Tensor):
            raise TraceError("the network's output does not depend on its parameters or on z")
        if not isinstance(output, _Proxy):
            raise TraceError(f"expected a network that returns one tensor, got {described(output)}")
        return output


class _Proxy(torch.fx.Proxy):
    """A proxy that knows its shape, dtype and device."""

    @property
    def shape(self) -> torch.Size:
        return self._meta().shape

    @property
    def dtype(self) -> torch.dtype:
        return self._meta().dtype

    @property
    def device(self) -> torch.device:
        return self.tracer.input_device  # type: ignore[attr-defined]

    @property
    def ndim(self) -> int:
        return self._meta().ndim

    @property
    def requires_grad(self) -> bool:
        return self._meta().requires_grad

    @property
    def is_leaf(self) -> bool:
        return self._meta().is_leaf

    @property
    def grad_fn(self) -> Any:
        return self._meta().grad_fn

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def is_meta(self) -> bool:
        return self.device.type == "meta"

    @property
    def layout(self) -> torch.layout:
        return self._meta().layout

    @property
    def is_sparse(self) -> bool:
        return self._meta().is_sparse

    @property
    def is_quantized(self) -> bool:
        return self._meta().is_quantized

    def is_contiguous(self, *args: Any, **kwargs: Any) -> bool:
        return self._meta().is_contiguous(*args, **kwargs)

    def stride(self, *args: Any, **kwargs: Any) -> Any:
        return self._meta().stride(*args, **kwargs)

    def is_floating_point(self) -> bool:
        return self._meta().is_floating_point()

    def is_complex(self) -> bool:
        return self._meta().is_complex()

    def is_inference(self) -> bool:
        return self._meta().is_inference()

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self._meta().ndim

    ndimension = dim

    def numel(self) -> int:
        return self._meta().numel()

    nelement = numel

    def __len__(self) -> int:
        return len(self.node.meta["value"])

    def __iter__(self) -> Iterator[Any]:
        parts: Any = self.unbind(0) if isinstance(self.node.meta["value"], Tensor) else self
        return iter([parts[index] for index in range(len(self))])

    def __getattr__(self, name: str) -> Any:
        value = self.node.meta.get("value")
        if value is not None and not hasattr(value, name):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        return _Attribute(self, name)

    def register_hook(self, *_: Any) -> Any:
        self._refuse(f"{self.node.name} has a hook on its gradient")

    def _ask(self, *_: Any, **__: Any) -> Any:
        name = type(self.tracer.root.net).__name__  # type: ignore[attr-defined]
        self._refuse(
            f"{name} cannot be traced: its code asks for values of {self.node.name} or for their memory"
        )

    item = tolist = numpy = data_ptr = untyped_storage = __bool__ = __int__ = __float__ = __array__ = _ask

    def _in_place(self, operation: str) -> NoReturn:
        self._refuse(in_place_message(operation, self.node, place_in_code()))

    def _changed(self, target: Any, other: Any) -> Any:
        """Recorded as what it is; :class:`Converter` refuses it where it is not harmless."""
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    def _refuse(self, reason: str) -> NoReturn:
        error = TraceError(reason)
        self.tracer.refusals.append(error)  # type: ignore[attr-defined]
        raise error  # which the network's own code may catch

    def _meta(self) -> Tensor:
        value = self.node.meta["value"]
        if not isinstance(value, Tensor):
            raise TraceError(f"{self.node.name}: expected a tensor, got {type(value).__name__}")
        return value


class _Attribute(torch.fx.proxy.Attribute):
    """A method, or a tensor such as ``data``, which nothing may change."""

    root: _Proxy


# torch.fx would record these as if they made new tensors.
_IN_PLACE = {
    "__ifloordiv__": "//=", "__imod__": "%=", "__imatmul__": "@=", "__iand__": "&=", "__ior__": "|=",
    "__ixor__": "^=", "__ilshift__": "<<=", "__irshift__": ">>=", "__setitem__": "[...] =",
}  # fmt: skip


def _refusal(operation: str) -> Callable[..., Any]:
    return lambda proxy, *_: proxy._in_place(operation)


def _change(target: Any) -> Callable[..., Any]:
    return lambda proxy, other: proxy._changed(target, other)


for _method, _operation in _IN_PLACE.items():
    setattr(_Proxy, _method, _refusal(_operation))
    setattr(_Attribute, _method, lambda attribute, *_, sign=_operation: attribute.root._in_place(sign))
for _method, _target in OPERATORS.items():
    setattr(_Proxy, _method, _change(_target))
    setattr(_Attribute, _method, lambda attribute, *_, sign=SIGNS[_target]: attribute.root._in_place(sign))


def _on_meta(argument: Any) -> Any:
    return torch.device("meta") if isinstance(argument, torch.device) else argument


def _shown(value: Any) -> Any:
    """What the network's code takes ``value`` for."""
    return value.node.meta["value"] if isinstance(value, _Proxy) else value


class _Tracer(torch.fx.Tracer):
    """Records calls and computes each on the meta device as it is recorded."""

    # Buffers are read anew in every call; values taken from them would be frozen.
    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, z: Tensor) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self.input_device = z.device
        # In evaluation mode, where no layer looks at a value to know the shape of its result.
        self._shadow = copy_network(root).to("meta", z.dtype).eval()
        self._input = torch.empty_like(z, device="meta").requires_grad_(z.requires_grad)
        self._on_meta = False
        self.refusals: list[TraceError] = []

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # torch.fx patches every module's call: those on the meta device and of other threads are not for it.
        if self._on_meta or threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        if not any(m is module for module in self.root.modules()):
            if any(True for _ in (*m.parameters(), *m.buffers())):
                raise TraceError(
                    f"the network's own code makes a {type(m).__name__} with parameters in each call"
                )
            return forward(
                *args, **kwargs
            )  # a layer made in forward: recorded as the functions that it calls
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._on_meta or threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, MaskedConv2d) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, kind: str, *args: Any, **kwargs: Any) -> torch.fx.Proxy:
        if not torch.is_grad_enabled():
            raise TraceError("the network's own code switches gradients off")
        proxy = super().create_proxy(kind, *args, **kwargs)
        if changes(proxy.node, self.root):
            proxy.node.meta["place"] = place_in_code()
        self._on_meta = True
        try:
            with QuickShapes():
                proxy.node.meta["value"] = self._value(proxy.node)
        finally:
            self._on_meta = False
        return proxy

    def _computed(self, node: torch.fx.Node) -> Any:
        if "value" not in node.meta:  # a constant tensor: torch.fx makes a node for it on its own
            node.meta["value"] = self._value(node)
        return node.meta["value"]

    def _value(self, node: torch.fx.Node) -> Any:
        args = torch.fx.map_arg(node.args, self._computed)
        kwargs = torch.fx.map_arg(node.kwargs, self._computed)
        if node.op == "placeholder":
            return self._input
        if node.op == "get_attr":
            with contextlib.suppress(AttributeError, StopIteration):
                return attribute(self._shadow, str(node.target)).to("meta")
            return attribute(self.root, str(node.target)).to("meta")
        if node.op == "call_module":
            return self._shadow.get_submodule(str(node.target))(*args, **kwargs)
        args = torch.fx.node.map_aggregate(args, _on_meta)
        kwargs = torch.fx.node.map_aggregate(kwargs, _on_meta)
        if node.op == "call_method":
            if node.target == "to":  # a device may be given by its name
                args = (args[0], *(torch.device("meta") if isinstance(a, str) else a for a in args[1:]))
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        return None
