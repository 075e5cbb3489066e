"""Steps recorded once as CUDA graphs and replayed: one launch for the output, one for the update.

A step of a small network is hundreds of kernels of microseconds each, which a processor cannot launch as fast
as the GPU runs them. Recording needs the same memory and the same numbers in every step: the step itself is
read from memory (:class:`oes_fast.ops._clock.Clock`), outputs and losses lie where the recording put them.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from oes_fast.errors import OESWarning, warn_caller
from oes_fast.ops import _library
from oes_fast.ops._clock import Clock
from oes_fast.pipelines.run_state import RunState

WARM_UP = 3  # steps before a recording: libraries choose and allocate what they need in all but the last


class Recordable(RunState, Protocol):
    """A run whose step can be recorded."""

    def forward(self, step: int | Clock, *, final: bool) -> Tensor:
        """:meth:`RunState.evaluate` but for what it adds up over the steps."""

    def accumulate(self, output: Tensor) -> None:
        """Add up what is added up over the steps."""

    def update(self, step: int | Clock) -> None:
        """See :class:`RunState`."""

    def clock(self) -> Clock:
        """A clock with the run's learning rate."""


_recording = threading.RLock()
Recorder = Callable[[Callable[[], Any]], Callable[[], Any]]


class CudaRecorder:
    """Records calls on one stream, in one pool of memory.

    Args:
        device: whose launches they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """A function that repeats what ``call`` launches and returns what it returned, in the same memory.

        Where recording fails, the caller is on the stream it came from, memory comes from where it came from
        before and random numbers go on; what is raised is the cause, not the end of the recording it spoilt.
        """
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self._device)
        random = torch.cuda.default_generators[self._device.index or 0].clone_state()
        cause: BaseException | None = None
        gc.collect()  # garbage that frees memory of a device would spoil the recording
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                try:
                    result = call()
                except BaseException as error:
                    cause = error
                    raise
        except BaseException:
            self._give_up(graph, stream, random)
            if cause is not None:
                raise cause from None
            raise

        def replay() -> Any:
            graph.replay()
            return result

        return replay

    def _give_up(
        self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, random: torch.Generator
    ) -> None:
        """What torch leaves undone where the end of a recording raises."""
        index = self._device.index or 0
        torch.cuda.set_stream(stream)
        # Each may be done already, or have nothing to do: torch 2.12 and newer end the allocations.
        for undo in (
            lambda: torch._C._cuda_endAllocateToPool(index, self._pool),
            graph.reset,
            lambda: torch.cuda.default_generators[index].graphsafe_set_state(random),
        ):
            with contextlib.suppress(RuntimeError, AttributeError):
                undo()

    def warm_up(self, call: Callable[[], Any]) -> None:
        """Make a call on the stream of the recordings."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._stream):
                    call()
            finally:
                torch.cuda.current_stream().wait_stream(self._stream)

    def rehearse(self, call: Callable[[], Any]) -> None:
        """Warm up once more, and raise where the call waits for the device, which a recording cannot.

        Raises:
            RuntimeError: it waited, with the operation's name.
        """
        before = torch.cuda.get_sync_debug_mode()

        def strictly() -> None:
            with warnings.catch_warnings():  # that the mode is a prototype is no matter of the caller's
                warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
                torch.cuda.set_sync_debug_mode("error")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode(before)

        self.warm_up(strictly)


class GraphedRun:
    """A run that replays its steps.

    Nothing is recorded before the first step is asked for, and that step and all after it are replayed. The
    last evaluation, which needs no gradient, is not. Where recording fails, a warning says why, and the steps
    are launched one kernel at a time.

    Args:
        run: the steps; anything else is asked of it.
        recorder: records calls, as :class:`CudaRecorder` does.
    """

    def __init__(self, run: Recordable, recorder: CudaRecorder) -> None:
        self._run = run
        self._recorder = recorder
        self._clock = run.clock()
        self._forward: Callable[[], Any] | None = None
        self._update: Callable[[], Any] | None = None
        self._tried = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed."""
        return self._forward is not None

    def evaluate(self, step: int, *, final: bool) -> Tensor:
        """See :class:`RunState`; the output lies in memory that the next step writes again."""
        if not final and not self._tried:
            self._tried = True
            self._record(step)
        if final or self._forward is None:
            return self._run.evaluate(step, final=final)
        self._clock.show(step)
        output: Tensor = self._forward()
        self._run.accumulate(output)
        return output

    def objective(self) -> Tensor:
        """See :class:`RunState`; a copy, since the next step writes its memory again."""
        return self._run.objective().clone()

    def update(self, step: int) -> None:
        """See :class:`RunState`."""
        if self._update is None:
            self._run.update(step)
            return
        self._update()
        self._clock.ticked()

    def _record(self, step: int) -> None:
        before = {name: tensor.detach().clone() for name, tensor in self._run.state().items()}
        try:
            with _trying_algorithms():
                with _library.measuring():
                    for _ in range(WARM_UP - 1):
                        self._recorder.warm_up(lambda: self._step(step))
                self._recorder.rehearse(lambda: self._step(step))
                self._run.load_state(before)
                forward = self._recorder(lambda: self._run.forward(self._clock, final=False))
                update = self._recorder(self._clocked_update)
        except Exception as error:  # Triton's are of kinds of their own; what is wrong in a step shows again
            warn_caller(
                f"{self._run.phase}: the step cannot be recorded as a CUDA graph "
                f"({_first_line(error)}); its kernels are launched one by one, which is slower",
                OESWarning,
            )
        else:
            self._forward, self._update = forward, update
        self._run.load_state(before)

    def _step(self, step: int) -> None:
        self._clock.show(step)
        self._run.forward(self._clock, final=False)
        self._run.update(self._clock)

    def _clocked_update(self) -> None:
        self._run.update(self._clock)
        self._clock.tick()


@contextlib.contextmanager
def _trying_algorithms() -> Iterator[None]:
    """Inside, cuDNN tries its algorithms on each shape that is new to it; as it is where they must not vary.

    A search convolves with all weights, which "triton" leaves to cuDNN.
    """
    cudnn = torch.backends.cudnn
    with _recording:  # one at a time: the flag is the process's
        before = cudnn.benchmark
        wanted = before or not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
        frozen = contextlib.suppress(RuntimeError)  # the application may have frozen PyTorch's flags
        with frozen:
            cudnn.benchmark = wanted
        try:
            yield
        finally:
            with frozen:
                cudnn.benchmark = before


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def graphed(run: Recordable, backend: str, device: torch.device) -> RunState:
    """``run`` with its steps recorded where the backend and the device have recordings, else as it is."""
    if backend not in ("triton", "cuda") or device.type != "cuda":
        return run
    return GraphedRun(run, CudaRecorder(device))
