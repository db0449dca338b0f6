"""What a node leaves behind: rows of metrics, the summary of the run, the final checkpoint. Main thread only."""

from __future__ import annotations

import time
from pathlib import Path

from zpala.config import Config
from zpala.node.build import Parts
from zpala.node.learner import Row
from zpala.node.port import GossipPort, Progress
from zpala.node.report import Report
from zpala.run_directory import NodeDirectory


def gossip_row(port: GossipPort, report: Report, env_steps: int) -> Row:
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
        "gossip/diverged": view.diverged,
        "gossip/rejoins": view.rejoins,
        "gossip/averaged": view.averaged,
        "gossip/live": view.neighbours_live,
        "gossip/consensus_distance": view.distance,
        "gossip/exchange_ms_p50": round(1000 * view.exchange_p50_s, 3) if view.exchanges else 0.0,
        "gossip/load": round(view.load, 4),
        "gossip/bytes_sent": view.bytes_sent,
        "gossip/bytes_received": view.bytes_received,
        "gossip/gate_wait_s": round(port.gate.waited_s, 3),
        "gossip/gate_wait_fraction": round(port.gate.waited_s / max(report.elapsed_s(time.monotonic()), 1e-9), 5),
        "gossip/gate_forced": port.gate.forced,
        "gossip/gate_holder": ", ".join(str(line) for line in port.gate.holders),
        "gossip/lead": port.gate.lead,
        "gossip/slow": len(view.slow),
        "gossip/deltas_applied": port.deltas_applied,
        "gossip/deltas_dropped": port.deltas_dropped,
        "gossip/rate_limited": port.counters.rate_limited,
        "gossip/keys_denied": port.counters.keys_denied,
        "gossip/handshakes_failed": port.counters.handshakes_failed,
        "phase": view.phase,
    }


def save_checkpoint(
    directory: NodeDirectory, config: Config, parts: Parts, port: GossipPort, report: Report, reason: str, progress: Progress
) -> Path:
    """Writes the final checkpoint; returns its folder. ``reason``: why training ended, "budget", "target", "signal" or "memory"."""
    state = {
        "env_steps": progress.env_steps,
        "cluster_env_steps": port.view.other_env_steps + progress.env_steps,
        "updates": progress.updates,
        "version": port.version,
        "optimizer_steps": port.optimizer_steps,
        "finish_reason": reason,
        "drained": port.drained or "",
        "return_mean": report.return_mean,
        "return_count": report.return_count,
        "config": config.to_toml(),
    }
    model = {name: view.cpu().numpy() for name, view in parts.flat.named_parameters().items()}
    optimizer = {slot: vector.detach().cpu().numpy() for slot, vector in parts.weights.optimizer_state.items()}
    local = {name: tensor.cpu().numpy() for name, tensor in parts.algorithm.local_state().items()}
    return directory.save_final(model, optimizer, state, local)


def summary_row(name: str, exit_code: int, port: GossipPort, report: Report, reason: str, progress: Progress) -> Row:
    """How the run ended for this node: the keys of a row of metrics, and exit status, reason and wall time."""
    return {
        "node": name,
        "exit_code": exit_code,
        "reason": reason,
        "drained": port.drained or "",
        "env_steps": progress.env_steps,
        "updates": progress.updates,
        **({"charts/episodic_return": round(report.return_mean, 3)} if report.return_count else {}),
        "charts/episodic_return_count": report.return_count,
        "wall_s": round(report.elapsed_s(time.monotonic()), 3),
        **gossip_row(port, report, progress.env_steps),
    }
