"""An algorithm that writes down what the learner's loop asks of it, and with which parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zpala.rl.a2c import A2C
from zpala.rl.algorithm import Statistics
from zpala.rl.rollout import Rollout


class Call(NamedTuple):
    """``parameters``: f32[numel] when the call began; of ``update``: when it ended."""

    name: str
    parameters: NDArray[np.float32]
    optimizer_steps: int


class Recorder(A2C):
    """A2C. After update number ``turned_at`` (from 1) its parameters are turned round: it has diverged from all others."""

    turned_at = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls: list[Call] = []

    def begin(self, rollout: Rollout, progress: float) -> None:
        self._record("begin")
        super().begin(rollout, progress)

    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        statistics = super().update(rollout, learning_rate, progress)
        if self.count("update") + 1 == self.turned_at:
            self.flat.parameters.neg_()
        self._record("update")
        return statistics

    def adopted(self) -> None:
        self._record("adopted")
        super().adopted()

    def count(self, name: str) -> int:
        return sum(call.name == name for call in self.calls)

    def _record(self, name: str) -> None:
        self.calls.append(Call(name, self.flat.parameters.numpy().copy(), self.optimizer.steps))
