"""One node, from its configuration to its exit status: build, start in order, train, stop in reverse order.

Runs in the process's main thread, which becomes the learner. The first exception of any thread wins and decides the exit status (design
D17, D18).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import torch
import zmq

from zpala.config import Config
from zpala.console import FORMAT_VARIABLE, Console
from zpala.exit_codes import ExitCode
from zpala.gossip.hosts import HostList
from zpala.gossip.schema import Schema, TensorEntry
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import Topology, load_topology
from zpala.metrics import MetricsLog
from zpala.node.actor import Actor, ActorGroup, shards
from zpala.node.claim import Claim, Machine, claim_line
from zpala.node.connection import Connection
from zpala.node.errors import NodeError, UsageError
from zpala.node.learner import Outcome, train
from zpala.node.port import GossipPort, Interrupted, Progress
from zpala.node.report import Report
from zpala.node.specification import specification
from zpala.node.threads import prepare_process, share_of_cores
from zpala.node.weights import Weights
from zpala.node.worker import Supervisor, WorkerFailed
from zpala.rl.a2c import A2C, A2CSettings
from zpala.rl.environments import Environments, EnvironmentSpec, make_environments
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.rollout import Rollout
from zpala.rl.seeding import environment_seeds, torch_seed
from zpala.run_directory import NodeDirectory, RunDirectoryError, create_node_directory, default_run_directory

STOP_LIMIT_S = 3.0  # the actors have this long to end
EXIT_LIMIT_S = 6.0  # after that the process ends whoever is still there
ACTOR = "actor"  # worker names begin with it
STEP_LIMIT_S = 60.0  # one step of one group of environments
JOIN_MARGIN_S = 60.0  # beyond the start barrier's own limit, for an adoption over a slow link

_log = logging.getLogger(__name__)
Context = zmq.Context[zmq.Socket[bytes]]
Row = dict[str, float | int | str]


def run_node(config: Config, *, hosts: HostList, hosts_text: str, hosts_source: Path, name: str | None) -> int:
    """Runs one node to the end of the run, tells the person what happened, and returns the exit status (``zpala.exit_codes``).

    Args:
        config: resolved settings.
        hosts, hosts_text, hosts_source: every node of the run, and the file they were read from; this process claims its line (design D11).
        name: the line to claim by its name; None: the first line that is this machine's and free.
    Raises: ``TopologyError``, ``RunDirectoryError``: nothing was started.
    """
    topology = load_topology(config.gossip.topology, len(hosts))
    run = config.run.directory or default_run_directory(config.environment.id, config.preset, config.run.seed)
    with Console(json_lines=os.environ.get(FORMAT_VARIABLE) == "json") as console:
        try:
            return _run(config, hosts, hosts_text, hosts_source, name, topology, run, console)
        except RunDirectoryError:
            raise
        except Exception as error:
            _tell(error)
            return _exit_code(error)


def _exit_code(error: BaseException) -> int:
    """The exit status with which ``error`` ends the node (design D18)."""
    match error:
        case NodeError():
            return error.exit_code
        case WorkerFailed(__cause__=NodeError() as cause):
            return cause.exit_code
        case WorkerFailed() if error.name.startswith(ACTOR):
            return ExitCode.ACTORS
        case torch.OutOfMemoryError():
            return ExitCode.CUDA
        case RunDirectoryError():
            return ExitCode.USAGE
        case _:
            return ExitCode.UNEXPECTED


def _tell(error: Exception) -> None:
    """One paragraph for what a person can mend; a traceback where the fault lies in code, ours or the environment's."""
    match error:
        case NodeError():
            _log.error("%s", error.text)
        case WorkerFailed():
            cause = error.__cause__
            _log.error("%s", error, exc_info=None if isinstance(cause, NodeError) else cause)
        case torch.OutOfMemoryError():
            _log.error("CUDA out of memory: %s Use fewer --num-envs, or --device cpu.", error)
        case _:
            _log.error("the node failed unexpectedly: %s: %s", type(error).__name__, error, exc_info=error)


def _run(
    config: Config,
    hosts: HostList,
    hosts_text: str,
    hosts_source: Path,
    name: str | None,
    topology: Topology,
    run: Path,
    console: Console,
) -> int:
    """The node's life in order; whatever was opened is closed in reverse order."""
    with ExitStack() as stack:
        stop = stack.enter_context(_stop_on_signals())
        ending = _Ending()
        watchdog = _watchdog(ending)
        stack.callback(watchdog.cancel)

        # Build everything first: whatever is wrong shows before anything is written and before a peer hears of this node.
        spec = specification(config.environment)
        device = _device(config.node.device)
        claim = _claim(config, hosts, hosts_source, name)
        stack.callback(claim.close)
        host = hosts.hosts[claim.line]
        threads = _threads(config, hosts, spec)
        prepare_process(threads)
        parts = _build(config, spec, claim.line, device)
        rollout = Rollout(spec, config.algorithm.num_steps, config.environment.num_envs, pinned=device.type == "cuda")
        directory = create_node_directory(run, host.name, config_toml=config.to_toml(), hosts_text=hosts_text)
        stack.callback(lambda: directory.finish(ending.exit_code))
        console.log_to(directory.log_path)
        metrics = stack.enter_context(MetricsLog(directory.path, tensorboard=True, hyperparameters=config.to_toml()))
        _log.info(
            "%s: line %d of %s, %s, %s, %d thread(s), in %s", host.name, host.source_line, hosts_source, spec.id, device, threads, run
        )

        # Then the threads, each by a handshake. Callbacks run in reverse order: first the exit status, then the limit on the end.
        context: Context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        supervisor = Supervisor(context)
        stack.callback(supervisor.close)
        groups = _actor_groups(config, spec, context, supervisor, rollout, claim.line, threads, device, lambda: stop.signal is not None)
        stack.callback(_stop_actors, groups)
        stack.callback(watchdog.start)
        stack.push(ending.take)
        for group in groups:
            for actor in group.actors:
                _start(actor)
        connection = Connection(
            context,
            supervisor,
            claim=claim,
            hosts=hosts,
            topology=topology,
            agreement=_agreement(config, spec, parts, hosts, topology),
            schema=parts.schema,
            settings=GossipSettings(**config.gossip.model_dump()),
            weights=parts.weights,
            budget=config.run.total_env_steps,
            target_return=config.run.target_return,
            interrupted=lambda: stop.signal is not None,
        )
        report = Report(spec.frame_skip, config.run.log_interval_s, time.monotonic())
        outcome: Outcome | None = None
        with connection as port:

            def log(row: Row) -> None:
                row = {"node": host.name, **row, **_gossip_row(port, report, int(row["env_steps"]))}
                metrics.log(row)
                console.row(row)

            try:
                port.join(config.gossip.start_timeout_s + JOIN_MARGIN_S)
                parts.algorithm.optimizer.steps = port.optimizer_steps
                report.start(time.monotonic())
                outcome = train(
                    algorithm=parts.algorithm,
                    rollout=rollout,
                    groups=groups,
                    port=port,
                    report=report,
                    log=log,
                    total_env_steps=config.run.total_env_steps,
                    lr=config.optimizer.lr,
                    anneal=config.optimizer.anneal == "linear",
                    faults=directory.faults_path,
                )
                port.drain(outcome.reason, outcome.progress, config.gossip.drain_s + 5.0)
            except Interrupted:
                _log.warning("%s: stopped by signal %s; leaving the run", host.name, stop.signal)
        progress = outcome.progress if outcome is not None else port.progress
        log(report.row(time.monotonic(), env_steps=progress.env_steps, updates=progress.updates))
        missed = config.run.target_return is not None and outcome is not None and outcome.reason == "budget"
        ending.exit_code = 128 + stop.signal if stop.signal is not None else int(ExitCode.TARGET_MISSED if missed else ExitCode.FINISHED)
        checkpoint = _save(directory, config, parts, port, report, outcome, progress)
        summary = _summary(host.name, ending.exit_code, port, report, outcome, progress)
        console.summary({**summary, "checkpoint": str(checkpoint)})
        return ending.exit_code


@dataclass(slots=True)
class _Ending:
    """The exit status as known so far."""

    exit_code: int = int(ExitCode.UNEXPECTED)

    def take(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What the node ends with, if it is an exception."""
        if error is not None:
            self.exit_code = int(_exit_code(error))


@dataclass(slots=True)
class _Stop:
    """The first signal that asked this process to end."""

    signal: int | None = None


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM set the flag that every wait polls; a second one ends the process at once."""
    stop = _Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None:
            os._exit(128 + number)
        stop.signal = number

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _watchdog(ending: _Ending) -> threading.Timer:
    """Once started, the process has ``EXIT_LIMIT_S`` seconds to end in order: a thread that hangs must not keep it."""
    watchdog = threading.Timer(EXIT_LIMIT_S, lambda: os._exit(ending.exit_code))
    watchdog.daemon = True
    return watchdog


def _claim(config: Config, hosts: HostList, source: Path, name: str | None) -> Claim:
    try:
        return claim_line(hosts, name=name, listen=config.node.listen, insecure=config.node.insecure)
    except NodeError as error:
        raise NodeError(f"{source}: {error.text}", error.exit_code) from error


def _device(name: str) -> torch.device:
    """``auto``: CUDA when there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise NodeError(
            f"node.device: {name} was asked for and this machine shows {torch.cuda.device_count()} CUDA device(s). Use --device cpu.", 9
        )
    return device


def _threads(config: Config, hosts: HostList, spec: EnvironmentSpec) -> int:
    """Threads of torch and ALE: this node's share of the cores (design D14).

    A network for vectors gets one: its matrices are so small that handing them to a second core costs more than it computes.
    """
    if isinstance(config.node.threads, int):
        return config.node.threads
    return share_of_cores(_nodes_here(hosts)) if len(spec.observation_shape) > 1 else 1


def _nodes_here(hosts: HostList) -> int:
    """How many lines of the file are this machine's; at least 1."""
    machine = Machine()
    addresses = machine.look_up([host.address for host in hosts])
    return max(1, sum(any(map(machine.is_own, addresses.get(host.address, ()))) for host in hosts))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the learner of one node is made of."""

    algorithm: A2C
    flat: FlatParameters
    weights: Weights
    schema: Schema
    network: str


def _build(config: Config, spec: EnvironmentSpec, line: int, device: torch.device) -> _Parts:
    """The network (equal initial parameters on every node), its flat vectors, the optimiser and the algorithm, on ``device``."""
    n, a, o = config.network, config.algorithm, config.optimizer
    is_image = len(spec.observation_shape) == 3
    channels_last = device.type == "cpu" if n.channels_last == "auto" else n.channels_last
    try:
        network = build_network(spec, n.name, n.hidden_sizes, n.activation, channels_last, config.run.seed)
    except ValueError as error:
        raise UsageError(f"network: {error}") from error
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
    settings = A2CSettings(
        gamma=a.gamma,
        entropy_coefficient=a.entropy_coefficient,
        value_coefficient=a.value_coefficient,
        max_grad_norm=a.max_grad_norm,
        clip_rewards=a.clip_rewards,
        reuse_graph=device.type == "cpu" and is_image if a.reuse_graph == "auto" else a.reuse_graph,
    )
    algorithm = A2C(network, flat, optimizer, settings, seed=torch_seed(config.run.seed, line))
    weights = Weights(flat.parameters, optimizer.state)
    schema = Schema(tuple(TensorEntry(e.name, e.shape, e.offset, e.size) for e in flat.entries), flat.numel)
    return _Parts(algorithm, flat, weights, schema, network.describe())


def _actor_groups(
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
    groups = config.node.groups if isinstance(config.node.groups, int) else (2 if device.type == "cuda" and e.num_envs >= 2 else 1)
    per_actor = max(1, threads // (groups * config.node.actors))
    built: list[ActorGroup] = []
    number = 0
    for shard_group in shards(e.num_envs, groups, config.node.actors):
        actors = []
        for shard in shard_group:
            seeds = environment_seeds(config.run.seed, line, number, shard.stop - shard.start)

            def make(seeds: list[int] = seeds) -> Environments:
                return make_environments(e.id, len(seeds), seeds=seeds, num_threads=per_actor, args=e.args, atari=atari)

            actors.append(Actor(context, supervisor, f"{ACTOR} {number}", make, rollout, shard))
            number += 1
        built.append(ActorGroup(actors, STEP_LIMIT_S, interrupted))
    return built


def _start(actor: Actor) -> None:
    """Whatever the environments raise before their first step is a failure of the actor."""
    try:
        actor.start()
    except (NodeError, WorkerFailed):
        raise
    except Exception as error:
        raise WorkerFailed(actor.name, f"{type(error).__name__}: {error}") from error


def _stop_actors(groups: list[ActorGroup]) -> None:
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


def _agreement(config: Config, spec: EnvironmentSpec, parts: _Parts, hosts: HostList, topology: Topology) -> Mapping[str, str]:
    """What every node of a run must have equal (design D8); lr, device, num_envs and num_steps need not be."""
    g = config.gossip
    return {
        **spec.agreement(),
        "network": parts.network,
        "layout": parts.schema.fingerprint,
        "algorithm": config.algorithm.name,
        "optimizer": config.optimizer.name,
        "wire_dtype": "f32",
        "gossip": "on" if g.enabled else "off",
        "mixing_weight": repr(g.mixing_weight),
        "initial": g.initial,
        "topology": f"{topology.name} {topology.digest()}",
        "hosts": f"{len(hosts)} lines {hosts.digest}",
        "total_env_steps": str(config.run.total_env_steps),
        "target_return": repr(config.run.target_return),
        "seed": str(config.run.seed),
    }


def _gossip_row(port: GossipPort, report: Report, env_steps: int) -> Row:
    """The cluster's side of a row of metrics of a node that has made ``env_steps``."""
    view = port.view
    return {
        "cluster_env_steps": view.other_env_steps + env_steps,
        "charts/cluster_SPS": round(view.cluster_rate, 1),
        "gossip/exchanges": view.exchanges,
        "gossip/aborted": view.aborted,
        "gossip/busy": view.busy,
        "gossip/doubts": view.doubts,
        "gossip/defects": view.defects,
        "gossip/rejected": view.rejected,
        "gossip/averaged": view.averaged,
        "gossip/live": view.neighbours_live,
        "gossip/consensus_distance": view.distance,
        "gossip/exchange_ms_p50": round(1000 * view.exchange_p50_s, 3),
        "gossip/bytes_sent": view.bytes_sent,
        "gossip/bytes_received": view.bytes_received,
        "gossip/gate_wait_s": round(port.gate.waited_s, 3),
        "gossip/gate_wait_fraction": round(port.gate.waited_s / max(report.elapsed_s(time.monotonic()), 1e-9), 5),
        "gossip/gate_forced": port.gate.forced,
        "gossip/gate_holder": ", ".join(str(line) for line in port.gate.holders),
        "gossip/deltas_applied": port.deltas_applied,
        "phase": view.phase,
    }


def _save(
    directory: NodeDirectory, config: Config, parts: _Parts, port: GossipPort, report: Report, outcome: Outcome | None, progress: Progress
) -> Path:
    """Writes the final checkpoint; returns its folder."""
    state = {
        "env_steps": progress.env_steps,
        "cluster_env_steps": port.view.other_env_steps + progress.env_steps,
        "updates": progress.updates,
        "version": port.version,
        "optimizer_steps": port.optimizer_steps,
        "finish_reason": outcome.reason if outcome is not None else "signal",
        "drained": port.drained or "",
        "return_mean": report.return_mean,
        "return_count": report.return_count,
        "config": config.to_toml(),
    }
    model = {name: view.cpu().numpy() for name, view in parts.flat.named_parameters().items()}
    optimizer = {slot: vector.detach().cpu().numpy() for slot, vector in parts.weights.optimizer_state.items()}
    return directory.save_final(model, optimizer, state)


def _summary(name: str, exit_code: int, port: GossipPort, report: Report, outcome: Outcome | None, progress: Progress) -> Row:
    """How the run ended for this node: the keys of a row of metrics, and exit status, reason and wall time."""
    return {
        "node": name,
        "exit_code": exit_code,
        "reason": outcome.reason if outcome is not None else "signal",
        "drained": port.drained or "",
        "env_steps": progress.env_steps,
        "updates": progress.updates,
        "charts/episodic_return": round(report.return_mean, 3),
        "charts/episodic_return_count": report.return_count,
        "wall_s": round(report.elapsed_s(time.monotonic()), 3),
        **_gossip_row(port, report, progress.env_steps),
    }
