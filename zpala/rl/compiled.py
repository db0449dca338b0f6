"""torch.compile: many small operations of an algorithm become few, compiled for the CPU when they are first met.

A network on vectors spends more time on the way from one operation to the next than on arithmetic. What the algorithm gives an
``Executor`` (``execution``) is compiled as it is met, forward and backward, for each shape of its inputs. That takes some seconds a
function, less when it has been compiled on this machine before. Numbers are those of plain execution but for rounding.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zpala.rl.execution import Eager, Fixed, Inputs, Outputs, rebuilt

SAID_MAX = 200  # characters of what torch.compile has to say when it fails

_log = logging.getLogger(__name__)


def missing_compiler() -> str | None:
    """The C++ compiler that torch.compile would call and that is not there; None: it is."""
    name = os.environ.get("CXX", "g++")
    return None if shutil.which(name) else name


class Compiled:
    """The ``Executor`` that compiles. A function is known by its name, so one of these serves one algorithm.

    Args:
        backend: of torch.compile.
    Attributes:
        refused: the functions that could not be compiled.
    """

    def __init__(self, device: torch.device, backend: str | Callable[..., Any] = "inductor") -> None:
        # torch.compile looks at the gradient of what has none in passing, and warns itself of it.
        warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf Tensor")
        self._eager = Eager(device)
        self._backend = backend
        self._options: dict[str, Any] | None = (
            {"compile_threads": 1} if backend == "inductor" else None
        )  # of its own it leaves threads behind
        self._functions: dict[str, Callable[..., Any]] = {}
        self.refused: set[str] = set()

    @property
    def compiled(self) -> frozenset[str]:
        """The functions that have been compiled."""
        return frozenset(self._functions)

    def run(self, function: Callable[[Inputs, Fixed], Outputs], inputs: Inputs, fixed: Fixed) -> Outputs:
        name = function.__qualname__
        if name in self.refused:
            return self._eager.run(function, inputs, fixed)
        if name not in self._functions:
            self._functions[name] = torch.compile(function, backend=self._backend, dynamic=False, options=self._options)
        moved = rebuilt(inputs, [None if each is None else self.hold("", each) for each in inputs])
        try:
            outputs: Outputs = self._functions[name](moved, fixed)
        except RuntimeError as error:  # also what torch.compile raises
            self.refused.add(name)
            del self._functions[name]
            _log.warning("%s is not compiled: %s", name, " ".join(str(error).split())[:SAID_MAX])
            return self._eager.run(function, inputs, fixed)
        return outputs

    def hold(self, name: str, tensor: Tensor) -> Tensor:
        return self._eager.hold(name, tensor)
