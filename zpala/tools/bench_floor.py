"""What an env_step costs at least: how much of every part an algorithm needs for it, and the sum. Arithmetic alone; measures nothing.

How much of each part one env_step needs, with T steps of N environments in a rollout:

=======================  ==========================  =============  ===============  ==========================  =======================
algorithm                batch of a pass             forward        target           backward                    optimiser
=======================  ==========================  =============  ===============  ==========================  =======================
a2c, vtrace, nstep_q     T N                         1              -                1                           1 / (T N)
ppo, E epochs,           T N / M, near               E              -                E                           E M / (T N)
M minibatches            minibatch_size
dqn, batches of B,       B                           B / F          2 B / F, without B / F                       1 / F
one in F env_steps                                                  double B / F
of one's own             T N                         1              -                1                           1 / (T N), taken as a2c
=======================  ==========================  =============  ===============  ==========================  =======================

An update costs these. An env_step of a node costs one step of the simulator and one forward pass (to act) more, while the optimiser's step
and whatever else goes over the flat vector are left out: for a2c that is

    floor = 1 / (env_step + 2 forward + backward).

a2c, vtrace and nstep_q can do without the forward pass of the update where they keep what convolutions computed when they acted
(``algorithm.reuse_activations``); then an update has no ``forward``. The node's floor stays that of the algorithm as it is written down,
with two, and the one with a single pass is said beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from zpala.config import Config
from zpala.tools.bench_measurement import Part, readable
from zpala.tools.bench_timing import Timing, best

OWN, SIMULATOR, ONE_BY_ONE = "environments", "simulator", "one by one"  # see ``bench_stepping``
ACTING, FORWARD, BOTH, TARGET, OPTIMISER, SNAPSHOT = "acting", "forward", "forward+backward", "target", "optimiser", "snapshot"
UPDATE = "update"  # see ``bench_passes``
ENV_STEP, BACKWARD = "env_step", "backward"

HINTS: Mapping[str, str] = {
    "env_step": "see zpala bench env for the environments alone",
    "inference": "more num_envs make larger batches",
    "learn": "see zpala bench learn for its parts",
    "gossip": "the snapshot, and handing it over",
    "other": "metrics, the system, other processes",
}


@dataclass(frozen=True, slots=True)
class Learning:
    """What learning needs of the network for one env_step, see the table above.

    Attributes:
        batch: observations of one pass.
        sequence: observations that a network with a memory sees one after the other in a pass; 1 without a memory.
        forwards, targets, backwards: passes over one observation.
        optimiser_steps: of all flat vectors.
    """

    batch: int
    sequence: int
    forwards: float
    targets: float
    backwards: float
    optimiser_steps: float


@dataclass(frozen=True, slots=True)
class Floor:
    """``terms``: how much of each part one env_step needs."""

    terms: Mapping[str, float]

    def seconds(self, parts: Sequence[Part]) -> float:
        """Of one env_step, from parts whose names are the terms'."""
        seconds = {part.name: part.seconds for part in parts}
        return sum(count * seconds[name] for name, count in self.terms.items())

    @property
    def formula(self) -> str:
        """In the names of the parts: ``1 / (env_step + 2 forward + backward)``."""
        terms = (name if count == 1 else f"{count:.6g} {name}" for name, count in self.terms.items())
        return f"1 / ({' + '.join(terms)})"


def learning_of(config: Config) -> Learning:
    """The row of the table that a run file means."""
    steps, envs = config.algorithm.num_steps, config.environment.num_envs
    cells, memory = steps * envs, config.network.core != "none"
    name, ppo, dqn = config.algorithm.name, config.ppo, config.dqn
    sequence = steps if memory else 1
    if name == "ppo":
        minibatches = max(1, round(cells / ppo.minibatch_size))
        minibatches = min(minibatches, envs) if memory else minibatches
        batch = steps * math.ceil(envs / minibatches) if memory else math.ceil(cells / minibatches)
        return Learning(batch, sequence, ppo.epochs, 0.0, ppo.epochs, ppo.epochs * minibatches / cells)
    if name == "dqn":
        drawn = dqn.batch_size / dqn.train_frequency
        return Learning(dqn.batch_size, 1, drawn, (2.0 if dqn.double else 1.0) * drawn, drawn, 1.0 / dqn.train_frequency)
    return Learning(cells, sequence, 1.0, 0.0, 1.0, 1.0 / cells)


def without_forward(learning: Learning) -> Learning:
    """The same where what acting computed is used again."""
    return replace(learning, forwards=learning.forwards - 1.0)


def update_floor(learning: Learning) -> Floor:
    """Of an update, for one env_step of its rollout."""
    return _floor({FORWARD: learning.forwards, TARGET: learning.targets, BACKWARD: learning.backwards, OPTIMISER: learning.optimiser_steps})


def node_floor(learning: Learning) -> Floor:
    """Of a node without peers."""
    return _floor({ENV_STEP: 1.0, FORWARD: 1.0 + learning.forwards, TARGET: learning.targets, BACKWARD: learning.backwards})


def learner_parts(timings: Sequence[Timing]) -> list[Part]:
    """Every part of a learner at its best setting. ``backward``: what the best forward and backward pass takes beyond the best forward."""
    names = [name for name in (ACTING, FORWARD, BOTH, TARGET, OPTIMISER, SNAPSHOT) if any(timing.part == name for timing in timings)]
    chosen = {name: best(timings, name) for name in names}
    found = []
    for name, timing in chosen.items():
        if name == BOTH:
            seconds = max(0.0, timing.seconds - chosen[FORWARD].seconds)
            found.append(Part(BACKWARD, seconds, timing.per, f"{timing.how}: {readable(timing.seconds)} with the forward pass"))
        else:
            found.append(Part(name, timing.seconds, timing.per, timing.how))
    return found


def stage_bottleneck(stages_ms: Mapping[str, float], floors_ms: Mapping[str, float]) -> str:
    """The stage of an update that costs most, its share, what its parts alone would take, and what could be done about it.

    Args:
        floors_ms: by stage, of the stages that have one.
    """
    stage = max(stages_ms, key=lambda name: stages_ms[name])
    ms, total = stages_ms[stage], sum(stages_ms.values())
    alone = f" ({floors_ms[stage]:.2f} ms by its parts alone)" if stage in floors_ms else ""
    return f"{stage}, {100 * ms / total:.0f} % of an update, {ms:.2f} ms{alone}: {HINTS[stage]}"


def term_bottleneck(floor: Floor, parts: Sequence[Part], measured_s: float) -> str:
    """The term of ``floor`` that costs most of ``measured_s`` seconds, or what none of the parts accounts for where that is more."""
    seconds = {part.name: part.seconds for part in parts}
    costs = {name: count * seconds[name] for name, count in floor.terms.items()}
    rest = measured_s - sum(costs.values())
    name = max(costs, key=lambda each: costs[each])
    if rest > costs[name]:
        return f"what is none of the parts, {100 * rest / measured_s:.0f} % of an update: losses, returns, many small operations"
    return f"{name}, {100 * costs[name] / measured_s:.0f} % of an update; none of the parts: {100 * max(rest, 0.0) / measured_s:.0f} %"


def _floor(terms: Mapping[str, float]) -> Floor:
    return Floor({name: count for name, count in terms.items() if count})
