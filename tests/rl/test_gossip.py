"""Every learning algorithm under gossip: real protocols on a virtual network average its parameters while it learns, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from zpala.config import load_config
from zpala.gossip.settings import GossipSettings
from zpala.rl.algorithm import Algorithm
from zpala.rl.algorithms import ALGORITHMS, build_algorithm
from zpala.rl.environments import make_environments
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.rollout import Rollout
from zpala.sim.cluster import VirtualCluster
from zpala.sim.learner import Learner
from zpala.sim.node import SimulatedNode

NODES, STEPS, ENVS, UPDATES = 3, 16, 8, 15
ROUNDING = 2e-5  # of sums of hundreds of float32 deltas


class Agent:
    """One node's algorithm, its environments and its slab. All start from the same parameters; their games and random numbers differ."""

    def __init__(self, name: str, line: int, **overrides: object) -> None:
        config = load_config(None, {"algorithm.name": name, "network.hidden_sizes": [16], "ppo.epochs": 2, **overrides}, {})
        self.environments = make_environments("tests.rl.scripted:GuessEnv", ENVS, seeds=[100 * line + i for i in range(ENVS)])
        spec = self.environments.spec
        network = build_network(spec, channels_last=False, seed=1, heads=ALGORITHMS[name].HEADS, **config.network_values())
        self.flat = FlatParameters(network)
        optimizer = build_optimizer(OptimizerSettings(name="adam"), self.flat.numel)
        self.algorithm: Algorithm = build_algorithm(name, config.algorithm_values(), network, self.flat, optimizer, seed=line)
        self.rollout = Rollout(spec, STEPS, ENVS, extra=self.algorithm.per_step())
        self.environments.reset(self.rollout.observation(0, 0, ENVS))

    def learn(self) -> None:
        """One turn of the learner's loop, without gossip."""
        rollout = self.rollout
        self.algorithm.begin(rollout, 0.5)
        for t in range(STEPS):
            rollout.set_actions(t, 0, ENVS, self.algorithm.act(rollout, t, 0, ENVS))
            self.environments.step(rollout.action(t, 0, ENVS), rollout.row(t, 0, ENVS))
        assert self.algorithm.update(rollout, 3e-3, 0.5).finite
        rollout.carry()

    def digest(self) -> dict[str, int]:
        """A digest of everything that the algorithm keeps, but for the averaged vector and what is a view of it."""
        found: dict[str, int] = {"optimizer.steps": self.algorithm.optimizer.steps}
        averaged = self.flat.parameters.untyped_storage().data_ptr()
        seen: dict[int, Any] = {}  # the objects too: what is made on the way must not leave its number to something else

        def look(value: Any, path: str) -> None:
            if isinstance(value, int | float | bool):  # small ones are one object wherever they stand
                found[path] = hash(value)
                return
            if id(value) in seen:
                return
            seen[id(value)] = value
            if isinstance(value, torch.Tensor):
                if value.untyped_storage().data_ptr() != averaged or not value.numel():
                    found[path] = digest_of(value)
            elif isinstance(value, np.ndarray):
                found[path] = digest_of(torch.from_numpy(value))
            elif isinstance(value, torch.Generator):
                look(value.get_state(), path)
            elif isinstance(value, np.random.Generator):
                found[path] = hash(str(value.bit_generator.state))
            elif isinstance(value, dict):
                for key, each in value.items():
                    look(each, f"{path}[{key}]")
            elif isinstance(value, list | tuple):
                for index, each in enumerate(value):
                    look(each, f"{path}[{index}]")
            else:
                look({**getattr(value, "__dict__", {}), **{key: getattr(value, key) for key in slots(value)}}, path)

        look(vars(self.algorithm), "")
        for name, tensor in self.algorithm.local_state().items():
            found[f"local {name}"] = digest_of(tensor)
        return found


def digest_of(tensor: torch.Tensor) -> int:
    return xxhash.xxh3_64_intdigest(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def slots(value: object) -> list[str]:
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return [name for name in names if hasattr(value, name) and not name.startswith("__")]


class AgentLearner(Learner):
    """The simulation's learner with an agent in place of noise: its vector is the agent's, every step of it is booked in the ledger."""

    def __init__(self, node: SimulatedNode, agent: Agent) -> None:
        super().__init__(node, agent.flat.parameters.numpy(), 0.02, 0.0)
        self.vector = agent.flat.parameters.numpy()
        self.agent = agent
        self.moved = np.zeros(self.vector.size)

    def update(self) -> None:
        if self.state == "learning":
            before = self.vector.astype(np.float64)
            self.agent.learn()
            step = self.vector - before
            self.moved += step
            self.node.cluster.ledger.moved(step)
        super().update()

    def apply_and_publish(self, waiting: bool) -> None:
        before, expected = self.agent.digest(), self.vector.copy()
        for delta in self.deltas._pending:
            expected += self.node.buffers[delta.buffer]
        super().apply_and_publish(waiting)
        assert self.agent.digest() == before, "averaging changed what is local"
        assert np.array_equal(self.vector, expected), "the deltas are all that changed the parameters"
        self.agent.flat.check()


CASES: dict[str, tuple[str, dict[str, object]]] = {name: (name, {}) for name in ALGORITHMS}
CASES["ppo, statistics of observations"] = ("ppo", {"network.normalize_observations": True})
CASES["a2c, memory"] = ("a2c", {"network.core": "lstm", "network.core_size": 8})
CASES["vtrace, lag"] = ("vtrace", {"vtrace.lag": 2})


@pytest.mark.parametrize("case", CASES)
def test_the_mean_moves_by_what_the_learners_did_and_nothing_local_moves(case: str) -> None:
    name, overrides = CASES[case]
    agents = [Agent(name, line, **overrides) for line in range(NODES)]
    numel = agents[0].flat.numel
    cluster = VirtualCluster(NODES, 7, settings=GossipSettings(initial="own", max_distance=2.0), numel=numel, spread=0.0)
    for node, agent in zip(cluster.nodes, agents, strict=True):
        node.learner = AgentLearner(node, agent)
    start = agents[0].flat.parameters.double().numpy()
    local = [agent.digest() for agent in agents]
    assert all(np.array_equal(agent.flat.parameters.double().numpy(), start) for agent in agents)
    learners = [node.learner for node in cluster.nodes]
    assert cluster.run(60.0, lambda: all(learner.updates >= UPDATES for learner in learners))
    cluster.quiesce(30.0)

    assert not cluster.violations
    assert all(len(learner.applied) >= 5 for learner in learners), "each of them was averaged with others"
    moved = [learner.moved for learner in learners if isinstance(learner, AgentLearner)]
    ends = [agent.flat.parameters.double().numpy() for agent in agents]
    assert np.abs(sum(ends) - (NODES * start + sum(moved))).max() < ROUNDING
    assert cluster.drift_error() < ROUNDING
    for end, own in zip(ends, moved, strict=True):
        assert np.abs(own).max() > 0.01, "each of them learned"
        assert np.abs(end - (start + own)).max() > 100 * ROUNDING, "and moved by what the others learned"
    assert all(agent.digest() != before for agent, before in zip(agents, local, strict=True)), "what is local is seen to change"
