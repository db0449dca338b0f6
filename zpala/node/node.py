"""One node, from its configuration to its exit status: build, start in order, train, stop in reverse order.

Runs in the process's main thread, which becomes the learner. The first exception of any thread wins and decides the exit status (design
D17, D18).
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from pathlib import Path

from zpala.config import Config
from zpala.console import FORMAT_VARIABLE, Console
from zpala.exit_codes import ExitCode
from zpala.gossip.hosts import HostList
from zpala.gossip.topology import Topology, load_topology
from zpala.metrics import MetricsLog
from zpala.node.build import agreement, build_actor_groups, build_parts, check_device, check_memory, choose_device, start_actor, stop_actors
from zpala.node.claim import Claim, Machine, claim_line
from zpala.node.connection import Connection
from zpala.node.door import raise_descriptor_limit
from zpala.node.ending import Ending, exit_code_of, exit_watchdog, stop_on_signals, tell
from zpala.node.errors import NodeError
from zpala.node.keys import secret_keys
from zpala.node.learner import Outcome, Row, train
from zpala.node.memory import Memory, available_bytes
from zpala.node.port import Interrupted
from zpala.node.records import gossip_row, save_checkpoint, summary_row
from zpala.node.report import Report
from zpala.node.sockets import Context, node_context
from zpala.node.specification import specification
from zpala.node.threads import prepare_process, share_of_cores
from zpala.node.worker import Supervisor
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.rollout import Rollout
from zpala.run_directory import RunDirectoryError, create_node_directory, default_run_directory

JOIN_MARGIN_S = 60.0  # beyond the start barrier's own limit, for an adoption over a slow link

_log = logging.getLogger(__name__)


def run_node(config: Config, *, hosts: HostList, hosts_text: str, hosts_source: Path, hosts_file: Path | None, name: str | None) -> int:
    """Runs one node to the end of the run, tells the person what happened, and returns the exit status (``zpala.exit_codes``).

    Args:
        config: resolved settings.
        hosts, hosts_text, hosts_source: every node of the run, and the file they were read from; this process claims its line (design D11).
        hosts_file: looked at for new nodes while the run lives; None: the list is not from a file.
        name: the line to claim by its name; None: the first line that is this machine's and free.
    Raises: ``TopologyError``, ``RunDirectoryError``: nothing was started.
    """
    topology = load_topology(config.gossip.topology, len(hosts))
    run = config.run.directory or default_run_directory(config.environment.label, config.preset, config.run.seed)
    with Console(json_lines=os.environ.get(FORMAT_VARIABLE) == "json") as console:
        try:
            return _run(config, hosts, hosts_text, hosts_source, hosts_file, name, topology, run, console)
        except RunDirectoryError:
            raise
        except Exception as error:
            tell(error)
            return exit_code_of(error)


def _run(
    config: Config,
    hosts: HostList,
    hosts_text: str,
    hosts_source: Path,
    hosts_file: Path | None,
    name: str | None,
    topology: Topology,
    run: Path,
    console: Console,
) -> int:
    """The node's life in order; whatever was opened is closed in reverse order."""
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        raise_descriptor_limit()
        memory = Memory(_max_memory_mb(config), available=available_bytes())
        stack.callback(memory.close)
        ending = Ending()
        watchdog = exit_watchdog(ending)
        stack.callback(watchdog.cancel)

        # Build everything first: whatever is wrong shows before anything is written and before a peer hears of this node.
        spec = specification(config.environment)
        device = choose_device(config.node.device)
        check_device(config, device)
        claim = _claim(config, hosts, hosts_source, name)
        stack.callback(claim.close)
        host = hosts.hosts[claim.line]
        threads = _threads(config, hosts, spec)
        check_memory(config, spec, _nodes_here(hosts), available_bytes())
        prepare_process(threads)
        parts = build_parts(config, spec, claim.line, device)
        rollout = Rollout(
            spec,
            config.algorithm.num_steps,
            config.environment.num_envs,
            pinned=device.type == "cuda",
            extra=parts.algorithm.per_step(),
            device=device,
        )
        directory = create_node_directory(run, host.name, config_toml=config.to_toml(), hosts_text=hosts_text)
        stack.callback(lambda: directory.finish(ending.exit_code))
        console.log_to(directory.log_path)
        metrics = stack.enter_context(MetricsLog(directory.path, tensorboard=True, hyperparameters=config.to_toml()))
        _log.info(
            "%s: line %d of %s, %s, %s, %d thread(s), in %s", host.name, host.source_line, hosts_source, spec.id, device, threads, run
        )

        _tell_security(config, claim)

        def interrupted() -> bool:
            return stop.signal is not None or memory.exceeded(time.monotonic())

        # Then the threads, each by a handshake. Callbacks run in reverse order: first the exit status, then the limit on the end.
        context: Context = node_context(encrypted=hosts.keyed)
        stack.callback(context.destroy, linger=0)
        supervisor = Supervisor(context)
        stack.callback(supervisor.close)
        groups = build_actor_groups(config, spec, context, supervisor, rollout, claim.line, threads, device, interrupted)
        stack.callback(stop_actors, groups)
        stack.callback(watchdog.start)
        stack.push(ending.take)
        for group in groups:
            for actor in group.actors:
                start_actor(actor)
        connection = Connection(
            context,
            supervisor,
            claim=claim,
            hosts=hosts,
            topology=topology,
            agreement=agreement(config, spec, parts, hosts, topology),
            schema=parts.schema,
            settings=config.gossip.settings(),
            weights=parts.weights,
            budget=config.run.total_env_steps,
            target_return=config.run.target_return,
            hosts_file=hosts_file,
            interrupted=interrupted,
        )
        report = Report(spec.frame_skip, config.run.log_interval_s, time.monotonic())
        outcome: Outcome | None = None
        trained_until: float | None = None
        with connection as port:

            def log(row: Row) -> None:
                row = {"node": host.name, **row, **gossip_row(port, report, int(row["env_steps"]))}
                metrics.log(row)
                console.row(row)

            try:
                port.join(config.gossip.start_timeout_s + JOIN_MARGIN_S)
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
                trained_until = time.monotonic()
                port.drain(outcome.reason, outcome.progress, config.gossip.drain_s + 5.0)
            except Interrupted:
                why = memory.too_much or f"stopped by signal {stop.signal}"
                _log.warning("%s: %s; leaving the run", host.name, why)
        progress = outcome.progress if outcome is not None else port.progress
        # The speed of the last row is that of training, not of the drain.
        log(report.row(trained_until or time.monotonic(), env_steps=progress.env_steps, updates=progress.updates))
        missed = config.run.target_return is not None and outcome is not None and outcome.reason == "budget"
        status = ExitCode.MEMORY if memory.too_much else ExitCode.TARGET_MISSED if missed else ExitCode.FINISHED
        ending.exit_code = 128 + stop.signal if stop.signal is not None else int(status)
        reason = outcome.reason if outcome is not None else "memory" if memory.too_much else "signal"
        checkpoint = save_checkpoint(directory, config, parts, port, report, reason, progress)
        summary = summary_row(host.name, ending.exit_code, port, report, reason, progress)
        console.summary({**summary, "checkpoint": str(checkpoint)})
        return ending.exit_code


def _claim(config: Config, hosts: HostList, source: Path, name: str | None) -> Claim:
    keys = secret_keys(config.node.key) if hosts.keyed else ()
    try:
        return claim_line(hosts, name=name, listen=config.node.listen, insecure=config.node.insecure, keys=keys)
    except NodeError as error:
        raise NodeError(f"{source}: {error.text}", error.exit_code) from error


def _tell_security(config: Config, claim: Claim) -> None:
    """What protects this node's connections, and which of the options about it do nothing."""
    if claim.key is not None:
        _log.info("every connection is encrypted and authenticated; this node's secret key is %s", claim.key.path)
        if config.node.insecure:
            _log.warning("--insecure does nothing here: the hosts file has keys, and only their holders are let in")
    elif config.node.key is not None:
        _log.warning("--key %s does nothing here: no line of the hosts file has a key, and nothing is encrypted", config.node.key)


def _max_memory_mb(config: Config) -> int | None:
    return config.node.max_memory_mb if isinstance(config.node.max_memory_mb, int) else None


def _threads(config: Config, hosts: HostList, spec: EnvironmentSpec) -> int:
    """Threads of torch and ALE: this node's share of the cores (design D14).

    A network for vectors gets one: its matrices are so small that handing them to a second core costs more than it computes.
    """
    if isinstance(config.node.threads, int):
        return config.node.threads
    return share_of_cores(_nodes_here(hosts)) if spec.dimensions > 1 else 1


def _nodes_here(hosts: HostList) -> int:
    """How many lines of the file are this machine's; at least 1."""
    machine = Machine()
    addresses = machine.look_up([host.address for host in hosts])
    return max(1, sum(any(map(machine.is_own, addresses.get(host.address, ()))) for host in hosts))
