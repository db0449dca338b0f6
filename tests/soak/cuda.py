"""The CUDA node on a machine with a GPU: what it computes is checked, then timed. At most eight minutes, played by hand.

    python -m tests.soak.cuda --json cuda.json
    python -m tests.soak.cuda --checks-only
    python -m tests.soak.cuda --device cpu      # the same script where there is no GPU: small, and a tape in place of CUDA graphs

==========  ===============================================================================================================================
graphs      every algorithm: replaying what was recorded equals computing, within rounding (on the CPU: to the last bit)
snapshots   a buffer has the parameters of its capture, whatever the learner did at once; deltas that were added are in it, all of them
exchange    a node on the device and one on the CPU, two real processes, average and end close to each other
overlap     how much slower an update is when every one is followed by a snapshot and every tenth by a neighbour's delta
compute     milliseconds of acting and of an update, by environments and precision, with and without graphs
pong        env_steps/s of a node that learns Pong beside the stepping rate of its environments alone, on all cores
==========  ===============================================================================================================================

One JSON document, printed, and written to ``--json`` after every part: who is stopped leaves what it has. Exit status 1 if a check failed,
2 without a CUDA device (the checks have then run on the CPU), else 0: goals that were missed are listed and fail nothing. Parts that there
was no time for are listed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.cluster.processes import Processes, column, spread
from tests.rl.tape import TapeRecorder
from tests.rl.test_graphs import CASES, agent_of, learn
from tests.soak import cuda_timings
from zpala.gossip.protocol import BUFFERS_MIN, LENT
from zpala.node.snapshots import SnapshotBuffers, copier, host_vectors
from zpala.node.weights import Weights
from zpala.rl.graphs import CudaRecorder, Graphs

LIMIT_S = 180.0  # after that no part is begun; pong takes five minutes, because ALE makes its environments one after the other
TOLERANCE = 1e-3  # relative, of parameters after eight updates
CAPTURES = 300
EXCHANGE_BUDGET = 40_000
EXCHANGE_LIMIT_S = 90.0
CLOSE = 0.02

Part = Callable[[torch.device], dict[str, Any]]


class CheckFailed(Exception):
    """What is not as it must be, and by how much."""


def graphs(device: torch.device) -> dict[str, Any]:
    """The largest relative distance of the parameters, and what was recorded, by case."""
    result: dict[str, Any] = {}
    for case, (_, _, given, _, expected) in CASES.items():
        if device.type == "cpu" and "lstm" in case:
            continue  # there a sequence is cut where games begin, and no shape is known
        plain, replaying = agent_of(case, device), agent_of(case, device)
        replaying.executor = executor = Graphs(CudaRecorder(device) if device.type == "cuda" else TapeRecorder())
        distance, actions_differ = 0.0, 0
        for one, other in zip(learn(plain, given, device), learn(replaying, given, device), strict=True):
            actions_differ += int((one[0] != other[0]).sum()) if not one[0].is_floating_point() else 0
            distance = max(distance, float(torch.linalg.vector_norm(one[2] - other[2]) / torch.linalg.vector_norm(one[2])))
        result[case] = {"distance": distance, "actions_differ": actions_differ, "recorded": dict(executor.recorded)}
        if set(executor.recorded) != expected or executor.refused:
            raise CheckFailed(f"{case}: recorded {sorted(executor.recorded)}, refused {sorted(executor.refused)}, not {sorted(expected)}")
        if not distance <= (TOLERANCE if device.type == "cuda" else 0.0) or actions_differ:
            raise CheckFailed(f"{case}: replaying is {distance:.2g} away from computing, {actions_differ} actions differ")
    return result


def snapshots(device: torch.device) -> dict[str, Any]:
    """The learner's stream is kept busy and the vector is changed right after every capture; buffers are used again as soon as allowed."""
    numel = 1 << 21
    vectors = host_vectors(BUFFERS_MIN, numel, device)
    buffers: SnapshotBuffers[float] = SnapshotBuffers(vectors, copier(device, LENT))
    proxys = deque(range(BUFFERS_MIN))  # as the proxy's pool would lend them
    for _ in range(LENT):
        buffers.lend(proxys.popleft())
    vector, busy = torch.zeros(numel, device=device), torch.ones((512, 512), device=device)
    weights = Weights(vector)
    # One more than there are captures: when one is written again, a snapshot that was captured after it was added has completed.
    deltas = [delta.numpy() for delta in host_vectors(3, numel, device)]
    value, taken, skipped, seen = 0.0, 0, 0, 0
    deadline = time.monotonic() + 60.0
    while seen < CAPTURES and time.monotonic() < deadline:
        busy = busy @ busy / 512.0
        if buffers.capture(vector, value):
            delta = deltas[taken % 3]
            delta[:] = taken % 7 + 1.0
            weights.add(delta)
            value, taken = value + taken % 7 + 1.0, taken + 1
        else:
            skipped += 1
        for buffer, stamp in buffers.completed():
            low, high = float(vectors[buffer].min()), float(vectors[buffer].max())
            if not low == high == stamp:
                raise CheckFailed(f"buffer {buffer} holds values from {low:g} to {high:g}, not {stamp:g}")
            proxys.append(buffer)
            buffers.lend(proxys.popleft())
            seen += 1
    if seen < CAPTURES:
        raise CheckFailed(f"{seen} of {CAPTURES} copies completed within 60 s")
    return {"captures": taken, "no_buffer_was_free": skipped}


def exchange(device: torch.device) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="zpala-soak-") as folder:
        processes = Processes(Path(folder))
        try:
            hosts = processes.hosts(2)
            options = ("--total-env-steps", EXCHANGE_BUDGET, "--set", "gossip.max_staleness=64")
            pair = [processes.node(hosts, "--name", f"n{i}", "--device", on, *options) for i, on in enumerate((device.type, "cpu"))]
            statuses = [process.end(EXCHANGE_LIMIT_S) for process in pair]
            if statuses != [0, 0]:
                raise CheckFailed(f"the nodes ended with {statuses}: {pair[0].text[-1500:]}\n{pair[1].text[-1500:]}")
            eager = [line for process in pair for line in process.lines if "without a CUDA graph" in line]
            directories = [processes.folder / "run/nodes" / f"n{i}" for i in range(2)]
            result: dict[str, Any] = {
                "exchanges": [column(directory, "gossip/exchanges")[-1] for directory in directories],
                "defects": [column(directory, "gossip/defects")[-1] for directory in directories],
                "env_steps": [column(directory, "env_steps")[-1] for directory in directories],
                "spread": spread(directories),
                "refused_graphs": eager,
            }
        finally:
            processes.close()
    if min(result["exchanges"]) < 10 or any(result["defects"]) or not result["spread"] <= CLOSE or eager:
        raise CheckFailed(f"a node on {device.type} and one on the CPU: {result}")
    return result


CHECKS: dict[str, Part] = {"graphs": graphs, "snapshots": snapshots, "exchange": exchange}
TIMINGS: dict[str, Part] = {"overlap": cuda_timings.overlap, "compute": cuda_timings.compute, "pong": cuda_timings.pong}


def play(device: torch.device, parts: dict[str, Part], limit_s: float, write: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What every part gave; ``failed`` and ``left_out`` by name. ``write`` gets all that there is after every part."""
    began = time.monotonic()
    result: dict[str, Any] = {"device": _name(device), "torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
    failed: dict[str, str] = {}
    left_out = list(parts)
    document: dict[str, Any] = {}
    for name, part in parts.items():
        started = time.monotonic()
        if started - began > limit_s:
            continue
        left_out.remove(name)
        try:
            result[name] = part(device)
        except Exception as error:  # the other parts are worth knowing all the same
            failed[name] = str(error) if isinstance(error, CheckFailed) else traceback.format_exc(limit=-4)
        print(f"{name}: {'FAILED' if name in failed else 'done'} after {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        goals = {
            f"{each}: {goal}": met for each in parts for goal, met in (result[each].get("goals", {}) if each in result else {}).items()
        }
        missed = [goal for goal, met in goals.items() if not met]
        seconds = round(time.monotonic() - began, 1)
        document = result | {"seconds": seconds, "failed": failed, "left_out": left_out, "goals": goals, "goals_missed": missed}
        write(document)
    return document


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the document goes beside stdout")
    parser.add_argument("--checks-only", action="store_true", help="no timings")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="*", choices=(*CHECKS, *TIMINGS), help="only these")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds after which no part is begun")
    options = parser.parse_args()
    there = torch.cuda.is_available()
    device = torch.device("cuda" if there and options.device == "cuda" else "cpu")
    parts = CHECKS if options.checks_only or (not there and options.device == "cuda") else CHECKS | TIMINGS
    if options.parts:
        parts = {name: part for name, part in (CHECKS | TIMINGS).items() if name in options.parts}
    torch.set_flush_denormal(True)

    def write(document: dict[str, Any]) -> None:
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    result = play(device, parts, options.limit, write)
    print(json.dumps(result, indent=2))
    if device.type == "cpu":
        print("tests.soak.cuda: torch finds no CUDA device here, or was not to use it: the CPU has been checked.", file=sys.stderr)
    sys.exit(1 if result["failed"] else 2 if device.type == "cpu" else 0)


if __name__ == "__main__":
    main()
