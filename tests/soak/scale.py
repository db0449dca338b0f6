"""Does gossip still average when the cluster is large? The simulator's nodes in growing numbers: a long test, played by hand.

    python -m tests.soak.scale --sizes 16,128,1000 --topologies full,exponential
    python -m tests.soak.scale --sizes 10000 --topologies exponential --heartbeat-s 1 --short

Nobody learns: every node has chance parameters of its own (independent, equally distributed), and exchanges once a second. Right after the
start 30 % are cut off from the others for 20 s; meanwhile 10 % crash, one after the other, and come back 5 s later with new chance
parameters. What must hold:

* within 30 rounds after the heal (full) or 60 (others) the distance from the mean is below 1 % of what it was at the start; a round is as
  many applied exchanges as half the nodes;
* nobody has more than ``gossip.max_sessions`` sessions, and the mean is conserved (the simulator's ledger).

With ``--short`` there is no cut and no crash: the first node starts a run alone, all the others join it with parameters of their own, and
rounds are counted from when the last one is in.

One line per size and topology, as a table for a README; exit status 1 if anything did not hold. Control bytes are those of all messages
but the payloads, as the codec makes them, a tenth of them sampled; from the start of the run on.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from dataclasses import dataclass

from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import load_topology
from zpala.sim.cluster import VirtualCluster

CUT_OFF, CUT_S = 0.3, 20.0
CRASHED, BACK_AFTER_S = 0.1, 5.0
NEAR = 0.01  # of the distance at the start
ROUNDS = {"full": 30.0}
ROUNDS_ELSE = 60.0
STEP_S = 0.1
PERIOD_S = 1.0
START_LIMIT_S = 150.0
ALONE_S = 5.0  # with --short, the first node
BACK_LIMIT_S = 60.0
HEADER = "| nodes | topology | rounds | virtual s | sessions (mean, most) | control bytes/s and node | defects | CPU s | RSS MB |"


@dataclass
class Watch:
    """``sessions``: the most that any node ever had, looked at every ``STEP_S``; ``samples``, ``total``: for the mean."""

    most: int = 0
    total: int = 0
    samples: int = 0

    def look(self, cluster: VirtualCluster) -> None:
        counts = [len(node.protocol._membership) for node in cluster.live()]
        self.most = max(self.most, *counts)
        self.total += sum(counts)
        self.samples += len(counts)


def advance(cluster: VirtualCluster, watch: Watch, seconds: float) -> None:
    until = cluster.now + seconds
    while cluster.now < until:
        cluster.run(min(STEP_S, until - cluster.now))
        watch.look(cluster)


def play(size: int, topology: str, seed: int, heartbeat_s: float, short: bool) -> tuple[str, list[str]]:
    """One line of the table, and what did not hold."""
    began_s = time.process_time()
    rng = random.Random(f"scale {seed}")
    cluster = VirtualCluster(
        size,
        seed,
        settings=GossipSettings(
            topology=topology,
            initial="own",
            heartbeat_s=heartbeat_s,
            suspect_s=max(2.0, 3 * heartbeat_s),
            start_timeout_s=ALONE_S if short else GossipSettings().start_timeout_s,
        ),
        topology=load_topology(topology, size),
        periods=PERIOD_S,
        drift=0.0,
        start_times=[0.0] + [ALONE_S + 1.0 + rng.uniform(0.0, 0.2) for _ in range(size - 1)] if short else None,
    )
    watch, problems = Watch(), []
    at_start = cluster.distance()
    started_by = cluster.now + START_LIMIT_S
    while not cluster.all_started() and cluster.now < started_by:
        advance(cluster, watch, STEP_S)
    if not cluster.all_started():
        return f"| {size} | {topology} | - |", [f"not all have started within {START_LIMIT_S:g} virtual seconds"]
    began, messages, sampled, sampled_bytes = cluster.now, cluster.network.sent.total(), cluster.network.coded, cluster.network.coded_bytes
    if not short and cut_and_crash(cluster, watch, rng) < NEAR * at_start:
        problems.append("the cut did not keep the two sides apart")
    healed, applied = cluster.now, cluster.counter("applied")
    while cluster.distance() > NEAR * at_start and cluster.now < healed + BACK_LIMIT_S:
        advance(cluster, watch, STEP_S)
    rounds = (cluster.counter("applied") - applied) / size
    limit = ROUNDS.get(topology, ROUNDS_ELSE)
    if cluster.distance() > NEAR * at_start:
        problems.append(f"the distance is {cluster.distance() / at_start:.2%} of that at the start after {rounds:.1f} rounds")
    elif rounds > limit:
        problems.append(f"{rounds:.1f} rounds, {limit:g} are allowed")
    bound = min(size - 1, cluster.settings.max_sessions)
    if watch.most > bound:
        problems.append(f"a node had {watch.most} sessions, {bound} are allowed")
    seconds = cluster.now - began
    message_bytes = (cluster.network.coded_bytes - sampled_bytes) / (cluster.network.coded - sampled)
    control = message_bytes * (cluster.network.sent.total() - messages) / size / seconds
    problems += cluster.problems()
    row = (
        f"| {size:,} | {topology} | {rounds:.1f} | {cluster.now - healed:.1f} | {watch.total / watch.samples:.1f}, {watch.most} "
        f"| {control:,.0f} | {cluster.counter('defects'):.0f} | {time.process_time() - began_s:.0f} "
        f"| {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024:,} |"
    )
    return row, problems


def cut_and_crash(cluster: VirtualCluster, watch: Watch, rng: random.Random) -> float:
    """The faults, to the heal; returns the distance from the mean just before it."""
    size = cluster.size
    lines = list(range(size))
    rng.shuffle(lines)
    cut = round(CUT_OFF * size)
    cluster.network.partition(lines[:cut], lines[cut:])
    for line in rng.sample(lines, max(1, round(CRASHED * size))):
        at_s = rng.uniform(0.0, CUT_S - BACK_AFTER_S - 1.0)
        cluster.later(at_s, cluster.kill, None, line)
        cluster.later(at_s + BACK_AFTER_S, cluster.restart, None, line)
    advance(cluster, watch, CUT_S)
    apart = cluster.distance()
    cluster.network.heal()
    return apart


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="16,128,1000")
    parser.add_argument("--topologies", default="full,exponential")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heartbeat-s", type=float, default=0.5)
    parser.add_argument("--short", action="store_true", help="no cut and no crash, for very many nodes")
    arguments = parser.parse_args()
    print(HEADER)
    print("|---" * HEADER.count(" |") + "|", flush=True)
    held = True
    for topology in arguments.topologies.split(","):
        for size in map(int, arguments.sizes.split(",")):
            row, problems = play(size, topology, arguments.seed, arguments.heartbeat_s, arguments.short)
            print(row, flush=True)
            for problem in problems[:5]:
                print(f"  {size} nodes, {topology}: {problem}", flush=True)
            held = held and not problems
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
