"""What a node is made of, built from its configuration: network, flat vectors, optimiser, algorithm, actors. Nothing here runs yet.

Also the one list of what all nodes of a run must have equal (design D8), since it names what was built.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from zpala.config import Config
from zpala.exit_codes import ExitCode
from zpala.gossip.fields import shortened
from zpala.gossip.hosts import HostList
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.topology import Topology
from zpala.node.actor import ACTOR, Actor, ActorGroup, shards
from zpala.node.errors import NodeError, UsageError
from zpala.node.memory import STOP_SHARE
from zpala.node.sockets import Context
from zpala.node.weights import Weights
from zpala.node.worker import Supervisor, WorkerFailed
from zpala.rl.algorithm import Algorithm
from zpala.rl.algorithms import ALGORITHMS, AlgorithmError, build_algorithm, build_settings, find_algorithm
from zpala.rl.combinations import Choice, UnsupportedCombination, refuse_combinations
from zpala.rl.compiled import Compiled, missing_compiler
from zpala.rl.environments import Environments, EnvironmentSpec, make_environments
from zpala.rl.flat import FlatParameters
from zpala.rl.graphs import CudaRecorder, Graphs
from zpala.rl.networks import Network, build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.precision import set_float32_arithmetic
from zpala.rl.rollout import Rollout
from zpala.rl.seeding import environment_seeds, torch_seed

STOP_LIMIT_S = 3.0  # the actors have this long to end
NODE_BYTES = 500_000_000  # of a node beside what its algorithm keeps: about what torch, a network for images and its rollout take
STEP_LIMIT_S = 60.0  # one step of one group of environments

_log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA when there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise NodeError(
            f"node.device: {name} was asked for and this machine shows {torch.cuda.device_count()} CUDA device(s). Use --device cpu.",
            ExitCode.CUDA,
        )
    if device.index is not None:
        torch.cuda.set_device(device)  # streams, graphs and pinned memory are the present device's
    return device


def check_device(config: Config, device: torch.device) -> None:
    """Refuses with a ``UsageError`` what ``device`` cannot do; the configuration may have left it open which one it is."""
    if device.type == "cuda":
        if config.node.compile:
            raise UsageError(f"node.compile: true is for CPUs, and this node computes on {device}, where node.cuda_graphs does as much.")
        return
    if config.node.compile and (compiler := missing_compiler()) is not None:
        raise UsageError(
            f"node.compile: true needs a C++ compiler, and there is no {compiler} here. Install it, name another in CXX, or leave it false."
        )
    if config.node.cuda_graphs is True:
        raise UsageError(f"node.cuda_graphs: true needs a CUDA device, and this node computes on the {device}. Leave it at auto.")
    if config.network.precision == "tf32":
        raise UsageError(
            f"network.precision: tf32 is arithmetic of CUDA devices, and this node computes on the {device}. Use float32 or bf16 here: "
            "nodes may differ in it."
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """What the learner of one node is made of."""

    algorithm: Algorithm
    flat: FlatParameters
    weights: Weights
    schema: Schema
    network: str


def build_parts(config: Config, spec: EnvironmentSpec, line: int, device: torch.device) -> Parts:
    """The network (equal initial parameters on every node), its flat vectors, the optimiser and the algorithm, on ``device``."""
    o = config.optimizer
    network = _network(config, spec, device)
    flat = FlatParameters(network, device)
    optimizer = build_optimizer(
        OptimizerSettings(
            name=o.name,
            alpha=o.alpha,
            epsilon=o.epsilon,
            epsilon_inside_root=o.epsilon_inside_root,
            initial_square_average=o.initial_square_average,
            beta1=o.beta1,
            beta2=o.beta2,
        ),
        flat.numel,
        device,
    )
    values = config.algorithm_values(on_cpu=device.type == "cpu")
    try:
        algorithm = build_algorithm(config.algorithm.name, values, network, flat, optimizer, seed=torch_seed(config.run.seed, line))
    except AlgorithmError as error:
        raise UsageError(f"algorithm: {error}.") from error
    if device.type == "cuda":
        set_float32_arithmetic(config.network.precision)
        if _with_graphs(config):
            algorithm.executor = Graphs(CudaRecorder(device))
    elif config.node.compile:
        algorithm.executor = Compiled(device)
    weights = Weights(flat.parameters, optimizer.state)
    schema = Schema(tuple(TensorEntry(e.name, e.shape, e.offset, e.size) for e in flat.entries), flat.numel, flat.learnt_from)
    return Parts(algorithm, flat, weights, schema, network.describe())


def check_parts(config: Config, spec: EnvironmentSpec) -> None:
    """Refuses with a ``UsageError`` what ``build_parts`` would. A person's own algorithm is made once: it alone knows what it refuses."""
    device = torch.device("cpu")
    if config.algorithm.name in ALGORITHMS:
        _network(config, spec, device)
    else:
        build_parts(config, spec, 0, device)


def _with_graphs(config: Config) -> bool:
    """``auto``: with algorithms that are known to compute nothing that a graph would freeze, unless they keep activations."""
    if config.node.cuda_graphs != "auto":
        return config.node.cuda_graphs
    return config.algorithm.name in ALGORITHMS and config.algorithm.reuse_activations is not True


def _network(config: Config, spec: EnvironmentSpec, device: torch.device) -> Network:
    """The network that the algorithm needs, on the CPU, for activations on ``device``. Refuses what does not go together."""
    name = config.algorithm.name
    try:
        kind = find_algorithm(name)
        build_settings(name, config.algorithm_values())
        refuse_combinations(Choice(config.algorithm.label, kind, spec, config.network_values()))
    except AlgorithmError as error:
        raise UsageError(f"algorithm: {error}.") from error
    except UnsupportedCombination as error:
        raise UsageError(str(error)) from error
    channels_last = config.network.channels_last
    try:
        network = build_network(
            spec,
            channels_last=device.type == "cpu" if channels_last == "auto" else channels_last,
            seed=config.run.seed,
            heads=kind.HEADS,
            precision=config.network.precision,
            **config.network_values(),
        )
    except ValueError as error:
        raise UsageError(f"network: {error}") from error
    if config.node.compile and (network.activations.possible or config.network.core != "none"):
        raise UsageError(
            f"node.compile: true is for networks on vectors without a memory, and {spec.id} is played with {network.describe()}. Set it to "
            "false: with images it gains nothing."
        )
    return network


def check_memory(config: Config, spec: EnvironmentSpec, nodes_here: int, available: int | None) -> None:
    """Refuses with a ``UsageError`` what an algorithm would keep beyond this node's share of the memory.

    Args:
        nodes_here: nodes of the run on this machine.
        available: bytes that there are for all of them (``memory.available_bytes``); None: nobody knows, and nothing is refused.
    """
    limit_mb = config.node.max_memory_mb
    if isinstance(limit_mb, int):
        share = limit_mb * 1_000_000
    elif available is not None:
        share = int(STOP_SHARE * available / nodes_here)
    else:
        return
    name = config.algorithm.name
    try:
        kind, settings = find_algorithm(name), build_settings(name, config.algorithm_values())
    except AlgorithmError as error:
        raise UsageError(f"algorithm: {error}.") from error
    try:
        kind.check_memory(settings, spec, config.environment.num_envs, max(0, share - NODE_BYTES))
    except ValueError as error:
        raise UsageError(f"{error}.") from error


def build_actor_groups(
    config: Config,
    spec: EnvironmentSpec,
    context: Context,
    supervisor: Supervisor,
    rollout: Rollout,
    line: int,
    threads: int,
    device: torch.device,
    interrupted: Callable[[], bool],
) -> list[ActorGroup]:
    """One group on a CPU, where stepping and acting share the cores; two with an accelerator, so that they overlap."""
    e, atari = config.environment, config.environment.atari_settings()
    overlaps = device.type == "cuda" and e.num_envs >= 2 * config.node.actors
    groups = config.node.groups if isinstance(config.node.groups, int) else (2 if overlaps else 1)
    per_actor = max(1, threads // (groups * config.node.actors))
    built: list[ActorGroup] = []
    number = 0
    for shard_group in shards(e.num_envs, groups, config.node.actors):
        actors = []
        for shard in shard_group:
            seeds = environment_seeds(config.run.seed, line, number, shard.stop - shard.start)

            def make(seeds: list[int] = seeds) -> Environments:
                return make_environments(
                    e.id,
                    len(seeds),
                    seeds=seeds,
                    num_threads=per_actor,
                    args=e.args,
                    atari=atari,
                    max_episode_steps=e.max_episode_steps,
                )

            actors.append(Actor(context, supervisor, f"{ACTOR} {number}", make, rollout, shard))
            number += 1
        built.append(ActorGroup(actors, STEP_LIMIT_S, interrupted))
    return built


def start_actor(actor: Actor) -> None:
    """Whatever the environments raise before their first step is a failure of the actor."""
    try:
        actor.start()
    except (NodeError, WorkerFailed):
        raise
    except Exception as error:
        raise WorkerFailed(actor.name, f"{type(error).__name__}: {error}") from error


def stop_actors(groups: list[ActorGroup]) -> None:
    """All of them within ``STOP_LIMIT_S``. One that hangs in its environments is left behind: its thread ends with the process."""
    actors = [actor for group in groups for actor in group.actors]
    for actor in actors:
        actor.request_stop()
    deadline = time.monotonic() + STOP_LIMIT_S
    for actor in actors:
        try:
            actor.join(max(0.0, deadline - time.monotonic()))
        except WorkerFailed as failed:
            _log.warning("%s: the process ends without it", failed)


def agreement(config: Config, spec: EnvironmentSpec, parts: Parts, hosts: HostList, topology: Topology) -> Mapping[str, str]:
    """What every node of a run must have equal (design D8); lr, device, precision, num_envs and num_steps need not be."""
    g = config.gossip
    fields = {
        **spec.agreement(),
        "network": parts.network,
        "layout": parts.schema.fingerprint,
        "algorithm": config.algorithm.label,
        "optimizer": config.optimizer.name,
        "wire_dtype": "f32",
        "gossip": "on" if g.enabled else "off",
        "mixing_weight": repr(g.mixing_weight),
        "initial": g.initial,
        "on_diverged": g.on_diverged,
        "topology": Path(topology.name).name,
        "hosts": hosts.agreed(len(hosts)),
        "topology graph": topology.digest(),
        "total_env_steps": str(config.run.total_env_steps),
        "target_return": repr(config.run.target_return),
        "seed": str(config.run.seed),
    }
    return {field: shortened(value) for field, value in fields.items()}
