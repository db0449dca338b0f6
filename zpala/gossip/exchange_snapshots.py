"""The two snapshots of an exchange: my shadow frozen and described, the peer's received, checked and turned into the delta.

Owns the arithmetic on pool buffers and the description of the newest shadow; which buffers, when, and what follows from a refusal is the
exchange's business. Runs in the proxy thread.
"""

from __future__ import annotations

import math

import numpy as np

from zpala.gossip.buffers import BufferPool
from zpala.gossip.exchange_state import Exchange
from zpala.gossip.messages import SnapshotDescription
from zpala.gossip.mixing import Guard, delta_into, new_digest, relative_distance, square_norm
from zpala.gossip.schema import Schema
from zpala.gossip.shadow import Shadow


class Snapshots:
    """``schema``: of every vector; ``guard``: what a peer's must satisfy; ``mixing_weight``: w of the delta."""

    def __init__(self, schema: Schema, pool: BufferPool, shadow: Shadow, guard: Guard, mixing_weight: float) -> None:
        self._nbytes, self._learnt_from = schema.nbytes, schema.learnt_from
        self._pool = pool
        self._shadow = shadow
        self._guard = guard
        self._mixing_weight = mixing_weight
        self._described: tuple[int, SnapshotDescription | None] = (-1, None)  # of a shadow revision; None: not finite

    def freeze(self) -> tuple[int, SnapshotDescription | None]:
        """The shadow's buffer, to be released by the caller, and what is in it; None when it is not finite."""
        frozen = self._shadow.freeze()
        return frozen, self._describe(frozen)

    def _describe(self, frozen: int) -> SnapshotDescription | None:
        """Of a buffer just frozen. The shadow is often frozen again unchanged (after BUSY), so the last description is kept."""
        revision, described = self._described
        if revision != self._shadow.revision:
            vector, k, digest = self._pool[frozen], self._learnt_from, new_digest()
            statistics = square_norm(vector[:k], digest)
            norm = square_norm(vector[k:], digest)
            described = None
            if math.isfinite(norm + statistics):
                described = SnapshotDescription(
                    version=self._shadow.version, nbytes=self._nbytes, checksum=digest.intdigest(), square_norm=norm
                )
            self._described = (self._shadow.revision, described)
        return described

    def judge(self, exchange: Exchange, theirs: SnapshotDescription, payload: memoryview | None) -> str | None:
        """None, and the delta in the exchange's second buffer, when the received bytes are good, else the code of the refusal."""
        if payload is None or payload.nbytes != self._nbytes or theirs.nbytes != self._nbytes:
            return "size"
        own, delta = self._pool[exchange.own], self._pool[exchange.theirs]
        peer, k, digest = np.frombuffer(payload, dtype=np.float32), self._learnt_from, new_digest()
        statistics = delta_into(peer[:k], own[:k], self._mixing_weight, delta[:k], digest)
        parameters = delta_into(peer[k:], own[k:], self._mixing_weight, delta[k:], digest)
        if digest.intdigest() != theirs.checksum:
            return "checksum"
        exchange.distance = relative_distance(exchange.mine.square_norm, parameters.norm, parameters.distance)
        exchange.peer_version = theirs.version
        if not math.isfinite(statistics.norm):
            return "nonfinite"
        return self._guard.verdict(exchange.mine.square_norm, parameters.norm, parameters.distance)
