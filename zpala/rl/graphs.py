"""CUDA graphs: what an algorithm computes on its device is recorded once for each shape and replayed with a single launch ever after.

A network for games is small: of an update with some hundred kernels the host needs more time to launch them than the device to compute
them. Owned here: where the inputs of a recorded function lie, how often it ran before it was recorded, one memory pool for all graphs.

The life of a function for one shape of inputs:

==========  ===================================================================================================================
warming up  it runs ``WARM_UP`` times as ever, but on the stream that will record it: these runs count, they act and learn
recorded    once: nothing is computed by that
replayed    from then on: inputs are copied to where those of the recording lay
refused     what cannot be recorded runs eagerly for good, and one line of the log says why
==========  ===================================================================================================================

Graphs share their memory: what one gives holds only until the next one is replayed. Source: "CUDA semantics", section "CUDA Graphs", of the
documentation of PyTorch.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from zpala.rl.execution import Eager, Fixed, Inputs, Outputs, rebuilt

WARM_UP = 3  # runs; in them libraries choose their algorithms and get their workspaces, which a recording must not
MOST_SHAPES = 32  # of one function; further ones run eagerly: every graph keeps its kernels and inputs on the device

_log = logging.getLogger(__name__)

_Key = tuple[Any, ...]


class Recorder(Protocol):
    """What records and replays work on a device; ``CudaRecorder`` does, and tests have one for the CPU."""

    device: torch.device

    def warm_up(self, work: Callable[[], Outputs]) -> Outputs:
        """Does ``work``, where it will be recorded."""

    def record(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Records ``work`` without doing it; what is returned does it again and again, and gives the same tensors every time.

        Raises:
            RuntimeError: it cannot be recorded; nothing has been done.
        """


class CudaRecorder:
    """Records CUDA graphs on a stream of its own, all of them with one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], Outputs]) -> Outputs:
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = work()
        current.wait_stream(self._stream)
        return outputs

    def record(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        try:
            # "thread_local": what other threads do with the device meanwhile is their own affair.
            with _no_garbage(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = work()
        finally:
            torch.cuda.set_stream(current)  # a recording that fails leaves its own stream behind

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Collects it first, and none within: a graph of another algorithm that is freed in the middle of a recording makes it invalid."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Graphs:
    """The ``Executor`` that replays. A function is known by its name, so one of these serves one algorithm."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._eager = Eager(recorder.device)
        self._functions: dict[str, dict[_Key, _Recorded]] = {}
        self._refused: set[str] = set()
        self._held: dict[str, Tensor] = {}

    def run(self, function: Callable[[Inputs, Fixed], Outputs], inputs: Inputs, fixed: Fixed) -> Outputs:
        name = function.__qualname__
        recorded = None if name in self._refused else self._find(name, function, inputs, fixed)
        if recorded is None:
            return self._eager.run(function, inputs, fixed)
        recorded.take(inputs)
        if recorded.replay is None and recorded.runs < WARM_UP:
            recorded.runs += 1
            warm: Outputs = self._recorder.warm_up(recorded.work)
            return warm
        if recorded.replay is None:
            try:
                recorded.replay = self._recorder.record(recorded.work)
            except RuntimeError as error:
                self._refused.add(name)
                del self._functions[name]
                _log.warning("%s runs without a CUDA graph: %s", name, str(error).strip().split("\n")[0])
                return self._eager.run(function, inputs, fixed)
        replayed: Outputs = recorded.replay()
        return replayed

    def hold(self, name: str, tensor: Tensor) -> Tensor:
        held = self._held.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = self._held[name] = _empty_like(tensor, self._recorder.device)
        return held.copy_(tensor, non_blocking=True)

    @property
    def recorded(self) -> Mapping[str, int]:
        """How many shapes of each function are replayed."""
        return {
            name: count
            for name, shapes in self._functions.items()
            if (count := sum(each.replay is not None for each in shapes.values())) > 0
        }

    @property
    def refused(self) -> frozenset[str]:
        """The functions that could not be recorded."""
        return frozenset(self._refused)

    def _find(self, name: str, function: Callable[[Any, Fixed], Any], inputs: tuple[Tensor | None, ...], fixed: Fixed) -> _Recorded | None:
        """None: it has too many shapes already."""
        shapes = self._functions.setdefault(name, {})
        key = _key(inputs, fixed)
        if key not in shapes:
            if len(shapes) == MOST_SHAPES:
                shapes[()] = _Recorded(function, inputs, fixed, self._recorder.device)  # stands for all further ones
                _log.warning("%s runs without a CUDA graph where its inputs have further shapes: it has %d already", name, MOST_SHAPES)
            if len(shapes) > MOST_SHAPES:
                return None
            shapes[key] = _Recorded(function, inputs, fixed, self._recorder.device)
        return shapes[key]


class _Recorded:
    """One function for one shape of inputs."""

    def __init__(
        self, function: Callable[[Any, Fixed], Any], inputs: tuple[Tensor | None, ...], fixed: Fixed, device: torch.device
    ) -> None:
        self._function, self._fixed = function, dict(fixed)
        self._places = [None if each is None else _empty_like(each, device) for each in inputs]
        self._inputs = rebuilt(inputs, self._places)
        self.runs = 0
        self.replay: Callable[[], Any] | None = None

    def take(self, inputs: tuple[Tensor | None, ...]) -> None:
        """Copies ``inputs`` to their places."""
        for place, each in zip(self._places, inputs, strict=True):
            if place is not None and each is not None:
                place.copy_(each, non_blocking=True)

    def work(self) -> Any:
        return self._function(self._inputs, self._fixed)


def _key(inputs: tuple[Tensor | None, ...], fixed: Fixed) -> _Key:
    """Fixed tensors are known by their places: who moves one gets another graph, and never reads old memory."""
    return (
        *(None if each is None else (each.shape, each.dtype) for each in inputs),
        *((name, each.data_ptr(), each.shape, each.stride(), each.dtype) for name, each in fixed.items()),
    )


def _empty_like(tensor: Tensor, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is written in that mode and out of it, and may be saved for a gradient
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
