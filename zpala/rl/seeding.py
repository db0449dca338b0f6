"""One root seed, and from it every other seed of the cluster, so that no two random streams are the same and each can be made again.

A seed is a path in the tree of ``numpy.random.SeedSequence`` spawn keys: (node), (node, actor), (node, actor, environment).
The network's initial parameters use the root seed itself and are equal on every node; everything else differs between nodes.
"""

from __future__ import annotations

import numpy as np

# First element of every spawn key: keeps the streams of different purposes apart.
_NODE, _ACTOR, _TORCH = 0, 1, 2


def node_seed(seed: int, node_index: int) -> np.random.SeedSequence:
    """The seed of line ``node_index`` (from 0) of hosts.txt; ``seed`` is the root seed, at least 0."""
    return np.random.SeedSequence(seed, spawn_key=(_NODE, node_index))


def actor_seed(seed: int, node_index: int, actor: int) -> np.random.SeedSequence:
    """The seed of actor ``actor`` (from 0) of a node."""
    return np.random.SeedSequence(seed, spawn_key=(_ACTOR, node_index, actor))


def environment_seeds(seed: int, node_index: int, actor: int, count: int) -> list[int]:
    """``count`` seeds in [0, 2**31), one for each environment of an actor: every simulator takes an int of 31 bits."""
    state = actor_seed(seed, node_index, actor).generate_state(count, dtype=np.uint32)
    return [int(word) & 0x7FFFFFFF for word in state]


def torch_seed(seed: int, node_index: int) -> int:
    """The 63-bit seed of the generator from which a node's learner samples its actions."""
    (word,) = np.random.SeedSequence(seed, spawn_key=(_TORCH, node_index)).generate_state(1, dtype=np.uint64)
    return int(word) & 0x7FFFFFFFFFFFFFFF
