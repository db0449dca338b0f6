"""What the learner loop asks of a learning algorithm. ``algorithms.ALGORITHMS`` has those that zpala brings along.

One turn of the loop (``node/learner.py``, which knows no algorithm by name) is one update:

    algorithm.begin(rollout, progress)
    for every step t, for every group of environments [start, stop):
        rollout.set_actions(t, start, stop, algorithm.act(rollout, t, start, stop))
    statistics = algorithm.update(rollout, learning_rate, progress)
    gossip averages the parameters, or replaces them by another node's: then algorithm.adopted()

An algorithm is used by one thread and knows of no other: the environments step, and gossip averages, between these calls. Whose state is
whose:

=============================  =====================================================================================================
``flat.parameters``            averaged with the neighbours, between ``update`` and ``begin``: nothing else ever is
``optimizer.state``, ``steps`` local; travels with the parameters to a node that joins
``local_state()``              local: a target network, a random stream; a checkpoint has it beside the two above. ``adopted`` says that
                               the parameters it belongs to are gone
``per_step()``                 one rollout long: what acting computed and the update needs again, in the slab
=============================  =====================================================================================================

What outlives an update (a replay memory, the state of a recurrent network) is the algorithm's own. What differs between environments (an
exploration rate) is known by their numbers: ``act`` is told which columns of the slab it acts for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zpala.rl.environments import EnvironmentSpec
from zpala.rl.execution import Eager, Executor
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import Heads, Network
from zpala.rl.optimizers import Optimizer
from zpala.rl.rollout import PerStep, Rollout


@dataclass(frozen=True, slots=True)
class Statistics:
    """One update in numbers.

    Attributes:
        finite: False when a loss or a gradient was not: that step was not made, and the node stops (design D17).
        named: shown and logged as ``losses/<name>``.
    """

    finite: bool
    named: Mapping[str, float]


class Algorithm(ABC):
    """Acts for, and learns from, one rollout slab.

    Args:
        network: its parameters are ``flat``'s views, on ``flat``'s device.
        flat: what gossip averages.
        optimizer: over ``flat``'s vectors.
        settings: a ``Settings`` of the class.
        seed: of the algorithm's random numbers, another one on every node (``seeding.torch_seed``).
    Attributes:
        executor: runs what it computes on its device; whoever made it may put another one there before the first rollout.
    """

    HEADS: ClassVar[Heads] = "actor_critic"  # what kind of network it needs
    Settings: ClassVar[type[Any]]  # a frozen dataclass; its fields are filled from those of the run file that have the same names

    def __init__(self, network: Network, flat: FlatParameters, optimizer: Optimizer, settings: Any, *, seed: int) -> None:
        self.network = network
        self.flat = flat
        self.optimizer = optimizer
        self.device = flat.parameters.device
        self.executor: Executor = Eager(self.device)

    @classmethod  # noqa: B027 - few keep much
    def check_memory(cls, settings: Any, spec: EnvironmentSpec, num_envs: int, available_bytes: int) -> None:
        """Raises ValueError where it would keep more than ``available_bytes``; the text names the field and a number that fits."""

    def per_step(self) -> Mapping[str, PerStep]:
        """Tensors that the slab must have beside its own, by name; ``rollout.extra`` holds them. Only the algorithm touches them."""
        return {}

    def begin(self, rollout: Rollout, progress: float) -> None:  # noqa: B027 - many have nothing to do here
        """A new rollout begins; the parameters may be others since the last one. ``progress``: of the cluster, in [0, 1]."""

    def adopted(self) -> None:  # noqa: B027 - many keep nothing that belongs to their parameters
        """The parameters, and the optimiser's state if there was one to take, have been replaced by another node's.

        Called before ``begin``: when the run starts from another node's parameters, when this node comes late, and when it has diverged and
        begins anew. Averaging does not call it.
        """

    @abstractmethod
    def act(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        """Chooses actions [stop - start, ...] for observation ``t`` in [0, T) of the environments [start, stop), on any device.

        The caller stores them in the rollout. Within one rollout every (t, environment) is asked once, t in rising order.
        """

    @abstractmethod
    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        """Learns from a full rollout: any number of optimiser steps, none of them with a gradient that is not finite.

        Steps with ``rollout.valid`` False are resets of an environment and must teach nothing.
        """

    @abstractmethod
    def choose(self, observations: Tensor, begins: Tensor, sampler: torch.Generator | None) -> Tensor:
        """How it acts in evaluation: observations [B, ...] of the CPU -> actions [B, ...] on the CPU.

        Args:
            begins: bool[B] of the CPU, where a game begins and a network with a memory forgets; otherwise row b goes on with its game.
            sampler: of the CPU, to draw from the policy; None: the best action.
        """

    def local_state(self) -> Mapping[str, Tensor]:
        """What stays on this node and is needed to go on as if nothing had happened, by name: views or copies."""
        return {}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what ``local_state`` once gave."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state of its own, but was given {', '.join(sorted(state))}")
