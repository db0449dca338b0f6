"""``zpala`` with a learner that fails at its 20th update: one method is replaced before the command line runs."""

from __future__ import annotations

import itertools

from zpala import cli
from zpala.rl.a2c import A2C
from zpala.rl.algorithm import Statistics
from zpala.rl.rollout import Rollout

FAILS_AT = 20


def main() -> None:
    update, calls = A2C.update, itertools.count(1)

    def fail_at_last(self: A2C, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        if next(calls) == FAILS_AT:
            raise ArithmeticError("the learner lost its way")
        return update(self, rollout, learning_rate, progress)

    A2C.update = fail_at_last  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
