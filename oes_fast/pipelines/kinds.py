"""Which runs of a call have their rewritten network in common, but for its weights."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor, nn

from oes_fast.autotune_cache import known_choice, take_choices
from oes_fast.entry import Entry
from oes_fast.mask import Mask
from oes_fast.pipelines.checkpoint import digest, network_digest
from oes_fast.pipelines.functions import GeneratorFunction, RewrittenFunction, make_function

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def kind_of(net: nn.Module, mask: Mask | None, z: Tensor, entry: Entry | None = None) -> Hashable:
    """Equal for networks that are rewritten alike: of the same layers, mask and size of input.

    Networks of this package are known by their layers; another one, whose code may do anything, is like
    itself alone.
    """
    return (
        _layers(net) if _is_ours(net) else id(net),
        None if mask is None else digest(mask.flat),
        (tuple(z.shape), z.dtype, z.device, z.requires_grad),
        entry,
    )


def _is_ours(net: nn.Module) -> bool:
    """Whether all of a network is made of this package's and PyTorch's layers, without anything attached."""
    return all(
        type(module).__module__.startswith(("oes_fast.models.", "torch.nn.modules."))
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        for module in net.modules()
    )


def _layers(net: nn.Module) -> Hashable:
    others = [buffer for name, buffer in net.named_buffers() if name.rpartition(".")[2] not in _STATISTICS]
    modes = tuple(module.training for module in net.modules())
    return type(net), repr(getattr(net, "recipe", None)), network_digest(net), modes, digest(*others)


class SharedFunctions:
    """Makes generator functions as :func:`make_function` does; those of one kind are found out about once.

    The first of a kind is verified and planned. Others share that, as long as none of another kind comes in
    between: the plan, its lists, and the laid-out input where it is the same tensor.

    One is made at a time, whatever thread asks: what is measured for it is measured once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verified: set[Hashable] = set()
        self._latest: tuple[Hashable, RewrittenFunction, str] | None = None
        self._ahead: tuple[int, int, int, tuple[GeneratorFunction, str]] | None = None

    def make(
        self,
        net: nn.Module,
        z: Tensor,
        mask: Mask | None,
        backend: str,
        *,
        verify: bool = True,
        noisy: bool = False,
        entry: Entry | None = None,
        choices: Mapping[str, Any] | None = None,
    ) -> tuple[GeneratorFunction, str]:
        """See :func:`make_function`; ``choices`` are those of a run that is resumed, to plan it by."""
        options: dict[str, Any] = {"noisy": noisy, "entry": entry}
        with self._lock:
            if self._ahead is not None and self._ahead[:3] == (id(net), id(z), id(mask)):
                found, self._ahead = self._ahead[3], None
                return found
            if any(known_choice(key) not in (None, value) for key, value in (choices or {}).items()):
                self._latest = None  # planned by others
            take_choices(choices or {})
            kind = kind_of(net, mask, z, entry), backend, noisy
            if self._latest is not None and self._latest[0] == kind:
                _, template, name = self._latest
                return template.sibling(net, z), name
            known = kind in self._verified
            function, name = make_function(net, z, mask, backend, verify=verify and not known, **options)
            if isinstance(function, RewrittenFunction):
                if verify:
                    self._verified.add(kind)
                if function.in_one_chain:
                    # Without its buffers, which go when the run has ended.
                    self._latest = kind, function.sibling(net, z), name
            return function, name

    def ahead(
        self, net: nn.Module, z: Tensor, mask: Mask | None, backend: str, **options: Any
    ) -> tuple[GeneratorFunction, str]:
        """:meth:`make`, which gives the same once more when it is next asked for this network and input."""
        found = self.make(net, z, mask, backend, **options)
        self._ahead = id(net), id(z), id(mask), found
        return found

    def forget(self) -> None:
        """Keep nothing of what was made ahead."""
        self._ahead = None
