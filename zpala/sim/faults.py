"""What goes wrong in a simulated run: classes of faults, each drawn from the seed, each undone after a while.

A fault is a function of the cluster and the random numbers; it schedules its own end and returns one line for the trace. What cannot be
done now (nobody is left to be killed) returns None and does not count.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

from zpala.gossip.buffers import Vector
from zpala.sim.cluster import VirtualCluster
from zpala.sim.node import SimulatedNode

LONGEST_PAUSE_S = 8.0
Fault = Callable[[VirtualCluster, random.Random], str | None]


def victim(cluster: VirtualCluster, rng: random.Random) -> SimulatedNode | None:
    """Somebody who learns undisturbed; None when a third of the nodes is already in trouble."""
    healthy = [node for node in cluster.learning() if not node.paused and node.learner.state in ("learning", "gate")]
    return rng.choice(healthy) if len(healthy) > 2 * cluster.size / 3 else None


def reset(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """For a while every message may take its pair's connections with it."""
    before, rate, seconds = cluster.network.reset, rng.choice((0.002, 0.01, 0.05)), rng.uniform(1.0, 10.0)
    if before:
        return None
    cluster.network.reset = rate
    cluster.later(seconds, setattr, None, cluster.network, "reset", 0.0)
    return f"{rate:.1%} of the messages reset their pair for {seconds:.1f} s"


def lost_message(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """The next few messages of one kind are lost, each with everything in flight."""
    kind, count = rng.choice(("Offer", "Accept", "Data", "Ok", "Fetch", "Hello", "Welcome", "StateMeta", "StateData")), rng.randint(1, 6)
    left = count

    def drop(source: int, target: int, message: Any) -> bool:
        nonlocal left
        if left and type(message).__name__ == kind:
            left -= 1
            return True
        return False

    cluster.network.drop = drop
    return f"the next {count} {kind} are lost"


def sides(cluster: VirtualCluster, rng: random.Random, most: int) -> tuple[list[int], list[int]] | None:
    """One to ``most`` lines, and the others; None while the network is divided already."""
    if cluster.network.cut or cluster.network.blocked:
        return None
    lines = list(range(cluster.size))
    rng.shuffle(lines)
    at = rng.randint(1, most)
    return sorted(lines[:at]), sorted(lines[at:])


def partition(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """Two sides, nothing in between; both notice at once."""
    divided = sides(cluster, rng, cluster.size // 2)
    if divided is None:
        return None
    seconds = rng.uniform(2.0, 20.0)
    cluster.network.partition(*divided)
    cluster.later(seconds, cluster.network.heal, None)
    return f"{divided[0]} cut off from the others for {seconds:.1f} s"


def one_way(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """Nothing passes from some to the others, silently; the other way is open."""
    divided = sides(cluster, rng, 2)
    if divided is None:
        return None
    seconds = rng.uniform(0.5, 20.0)
    for source, target in itertools.product(*divided):
        cluster.network.block(source, target)
    cluster.later(seconds, cluster.network.heal, None)
    return f"nothing comes from {divided[0]} for {seconds:.1f} s"


def crash(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """A process dies and comes back as another one."""
    node = victim(cluster, rng)
    if node is None:
        return None
    seconds = rng.choice((0.1, rng.uniform(0.5, 15.0)))
    cluster.kill(node.line)
    cluster.later(seconds, cluster.restart, None, node.line)
    return f"{node.line} is killed and comes back after {seconds:.1f} s"


def pause(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """A process stands still, as under SIGSTOP; its connections stay."""
    node = victim(cluster, rng)
    if node is None:
        return None
    seconds = rng.uniform(0.5, LONGEST_PAUSE_S)
    cluster.pause(node.line)
    cluster.later(seconds, cluster.resume, None, node.line)
    return f"{node.line} is paused for {seconds:.1f} s"


def slow(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """A learner becomes several times slower."""
    node = victim(cluster, rng)
    if node is None:
        return None
    seconds, factor, learner = rng.uniform(5.0, 20.0), rng.choice((3.0, 10.0)), node.learner
    period_s = cluster.periods[node.line]
    if learner.period_s != period_s:  # it is slow already
        return None
    learner.period_s = factor * period_s
    cluster.later(seconds, setattr, None, learner, "period_s", period_s)
    return f"{node.line} is {factor:.0f} times slower for {seconds:.1f} s"


def hang(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """A learner makes no updates and takes no mail; its proxy lives."""
    node = victim(cluster, rng)
    if node is None:
        return None
    seconds = rng.uniform(3.0, 25.0)
    if seconds > 22.0:  # one in seven: longer than most learners are waited for
        seconds *= 2.0
    node.learner.hang()
    cluster.later(seconds, node.learner.wake, node)
    return f"the learner of {node.line} hangs for {seconds:.1f} s"


def replay(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """Messages arrive again, late, also those of sessions and processes that are over."""
    count = rng.randint(3, 20)
    for _ in range(count):
        cluster.later(rng.uniform(0.0, 5.0), cluster.network.replay, None)
    return f"{count} messages are repeated within 5 s"


def latency(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """Every message takes long."""
    before, worst, seconds = cluster.network.latency_s, rng.choice((0.1, 0.5, 1.5)), rng.uniform(2.0, 15.0)
    if before[1] >= 0.1:
        return None
    cluster.network.latency_s = (0.01, worst)
    cluster.later(seconds, setattr, None, cluster.network, "latency_s", before)
    return f"messages take up to {worst:.1f} s for {seconds:.1f} s"


def damage(cluster: VirtualCluster, rng: random.Random) -> str | None:
    """Payloads from one node arrive with a flipped bit."""
    node = victim(cluster, rng)
    if node is None:
        return None
    seconds, line = rng.uniform(1.0, 5.0), node.line
    bit = rng.randrange(32 * cluster.numel)

    def corrupt(source: int, target: int, message: Any, content: Vector) -> Vector:
        if source == line:
            content.view("u1")[bit // 8] ^= 1 << bit % 8
        return content

    cluster.network.corrupt = corrupt
    cluster.later(seconds, setattr, None, cluster.network, "corrupt", lambda source, target, message, content: content)
    return f"payloads of {line} have a flipped bit for {seconds:.1f} s"


FAULTS: dict[str, Fault] = {
    "reset": reset,
    "lost_message": lost_message,
    "partition": partition,
    "one_way": one_way,
    "crash": crash,
    "pause": pause,
    "slow": slow,
    "hang": hang,
    "replay": replay,
    "latency": latency,
    "damage": damage,
}
SKEWED_BOOT = "boot"  # not an event: the processes start in any order over 15 s
NAMES = (*FAULTS, SKEWED_BOOT)
