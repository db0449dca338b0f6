"""``zpala`` with a learner that fails at its 20th update: the algorithm is replaced before the command line runs."""

from __future__ import annotations

from zpala import cli
from zpala.rl.a2c import A2C, UpdateStatistics
from zpala.rl.rollout import Rollout

FAILS_AT = 20


class Broken(A2C):
    updates = 0

    def update(self, rollout: Rollout, learning_rate: float) -> UpdateStatistics:
        self.updates += 1
        if self.updates == FAILS_AT:
            raise ArithmeticError("the learner lost its way")
        return super().update(rollout, learning_rate)


if __name__ == "__main__":
    import zpala.node.node

    zpala.node.node.A2C = Broken  # type: ignore[misc]
    cli.main()
