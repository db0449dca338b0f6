"""A recorder for the CPU: it writes down every operation of a piece of work and does the same operations again, on the same memory.

It is as strict as a CUDA device: work that reads a value, whose shapes depend on one, or that draws random numbers cannot be recorded, and
Python is not asked again in a replay. And it is as careless with memory: between two replays all that was computed is spoilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations in order, each with its arguments and what it gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.made: dict[int, Tensor] = {}  # new memory, by its address
        self._before: list[tuple[Tensor, Tensor]] = []  # what was overwritten, and what it was

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        _check(operation, arguments)
        self._keep(operation, arguments, options)
        given = {_address(each) for each in _tensors((arguments, options))}
        result = operation(*arguments, **options)
        results = list(_tensors(result))
        self.made |= {_address(each): each for each in results if _address(each) not in given}
        self.operations.append((operation, arguments, options, results))
        return result

    def undo(self) -> None:
        """Recording does nothing: whatever was overwritten is as it was."""
        for tensor, before in reversed(self._before):
            tensor.copy_(before)
        self._before.clear()

    def play(self) -> None:
        for operation, arguments, options, results in self.operations:
            for old, new in zip(results, _tensors(operation(*arguments, **options)), strict=True):
                if _address(old) != _address(new):
                    old.copy_(new)

    def spoil(self) -> None:
        for each in self.made.values():
            if each.is_floating_point():
                each.fill_(float("nan"))

    def _keep(self, operation: Any, arguments: Any, options: Any) -> None:
        names = [argument.name for argument in operation._schema.arguments]
        values = {**dict(zip(names, arguments, strict=False)), **options}
        for argument in operation._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(values.get(argument.name), Tensor):
                self._before.append((values[argument.name], values[argument.name].clone()))


class TapeRecorder:
    """See ``zpala.rl.graphs.Recorder``."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.warm_ups = self.replays = 0

    def warm_up(self, work: Callable[[], Result]) -> Result:
        self._spoil()
        self.warm_ups += 1
        return work()

    def record(self, work: Callable[[], Result]) -> Callable[[], Result]:
        tape = Tape()
        try:
            with tape:
                outputs = work()
        finally:
            with torch.no_grad():
                tape.undo()
        self.tapes.append(tape)

        def replay() -> Result:
            self._spoil()
            self.replays += 1
            with torch.no_grad():
                tape.play()
            return outputs

        return replay

    def _spoil(self) -> None:
        with torch.inference_mode():
            for tape in self.tapes:
                tape.spoil()


def _check(operation: Any, arguments: Any) -> None:
    indexing = operation in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
    if indexing and all(each.dtype is not torch.bool for each in _tensors(arguments[1])):
        return
    wrong = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
    if wrong & set(operation.tags):
        raise RuntimeError(f"{operation} cannot be recorded\nfor it depends on values")


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (each for each in tree_leaves(tree) if isinstance(each, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
