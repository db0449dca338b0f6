"""Actor threads: each steps its shard of the environments and writes what happens straight into the rollout slab.

Owns: one inproc PAIR per actor between its thread and the learner's. Messages begin with the number of the time step, i64
little-endian. What a message passes is the right to touch the shard's columns of the slab: the learner's "actions ready t" gives the
actor row t, the actor's "slot ready t + 1" gives it back. Games that ended in the step ride along behind it: return and length, f64
little-endian each. Nobody needs a mutex.
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from zpala.node import sockets
from zpala.node.errors import ActorError
from zpala.node.port import Interrupted
from zpala.node.threads import flush_denormals
from zpala.node.worker import Supervisor, Worker, WorkerControl
from zpala.rl.environments import Environments, Episode
from zpala.rl.rollout import Rollout

ACTOR = "actor"  # names of actors begin with it
START_LIMIT_S = 60.0
START_LIMIT_PER_ENV_S = 0.5  # ALE takes 0.1 s to make one and to reset it, for all of an actor's one after the other
_LOOK_MS = 100  # between two looks at whether the wait should end
_LONGEST_LOOK_S = 0.5
_STEP = struct.Struct("<q")
_EPISODE = struct.Struct("<dd")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Shard:
    """The columns [start, stop) of the slab that one actor owns."""

    start: int
    stop: int


def shards(num_envs: int, groups: int, actors_per_group: int) -> list[list[Shard]]:
    """Cuts ``num_envs`` columns into ``groups`` lists of ``actors_per_group`` shards whose sizes differ by one at most.

    Raises:
        ValueError: fewer environments than actors.
    """
    count = groups * actors_per_group
    if not 1 <= count <= num_envs:
        raise ValueError(f"{num_envs} environments cannot be shared by {groups} x {actors_per_group} actors: each needs at least one")
    edges = [num_envs * i // count for i in range(count + 1)]
    cut = [Shard(a, b) for a, b in itertools.pairwise(edges)]
    return [cut[g * actors_per_group : (g + 1) * actors_per_group] for g in range(groups)]


def _episodes_to_bytes(episodes: Sequence[Episode]) -> bytes:
    return b"".join(_EPISODE.pack(e.return_, e.length) for e in episodes)


def _episodes_from_bytes(episodes: bytes) -> list[tuple[float, int]]:
    return [(return_, int(length)) for return_, length in _EPISODE.iter_unpack(episodes)]


class Actor:
    """One actor: the thread, and the learner's end of the pipe to it.

    Args:
        make: builds the shard's environments; called in the actor's own thread.
        rollout: the slab; this actor touches only ``shard``'s columns, and only while the right to a row is its own.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        supervisor: Supervisor,
        name: str,
        make: Callable[[], Environments],
        rollout: Rollout,
        shard: Shard,
    ) -> None:
        self.shard = shard
        self._make = make
        self._rollout = rollout
        self._context = context
        self._supervisor = supervisor
        self._endpoint = f"inproc://zpala-actor-{next(_numbers)}"
        self._pipe = sockets.inproc_pair_bound(context, self._endpoint)
        self._pipe.rcvtimeo = _LOOK_MS
        self._worker = Worker(context, name, self._body, supervisor, prepare=flush_denormals)

    @property
    def name(self) -> str:
        return self._worker.name

    def start(self) -> None:
        """Starts the thread; on return the first observations lie in row 0."""
        self._worker.start(START_LIMIT_S + START_LIMIT_PER_ENV_S * (self.shard.stop - self.shard.start))

    def send_actions(self, t: int) -> None:
        """The actions of row ``t`` are in the slab: the actor may step."""
        self._pipe.send(_STEP.pack(t), zmq.DONTWAIT)

    def wait(self, t: int, limit_s: float, interrupted: Callable[[], bool] = lambda: False) -> list[tuple[float, int]]:
        """Waits until row ``t`` of the observations (and row ``t - 1`` of everything else) has been written.

        Returns: (raw return, length in env_steps) of every game that ended in the step.
        Raises: ``WorkerFailed`` when a worker of the node has failed, ``ActorError`` when nothing came within ``limit_s`` seconds,
            ``Interrupted`` when nothing has come and ``interrupted`` says so. Time in which the whole process stood still does not count.
        """
        looked_at, waited_s = time.monotonic(), 0.0
        message = b""
        while not message:
            try:
                message = self._pipe.recv()
            except zmq.Again:
                self._supervisor.raise_if_failed()
                if interrupted():
                    raise Interrupted from None
                now = time.monotonic()
                waited_s += min(now - looked_at, _LONGEST_LOOK_S)  # more has passed: this process was paused, and with it the actor
                looked_at = now
                if waited_s > limit_s:
                    raise ActorError(f"{self._worker.name}: the environments have not finished one step within {limit_s:g} s") from None
        (step,) = _STEP.unpack_from(message)
        if step != t:
            raise ActorError(f"{self._worker.name}: expected step {t}, got {step}")
        return _episodes_from_bytes(message[_STEP.size :])

    def request_stop(self) -> None:
        self._worker.request_stop()

    def join(self, limit_s: float) -> None:
        """Waits until the thread has ended, closes the pipe. Raises ``WorkerFailed`` when it has not within ``limit_s`` seconds."""
        try:
            self._worker.join(limit_s)
        finally:
            self._pipe.close()

    def _body(self, control: WorkerControl) -> None:
        start, stop = self.shard.start, self.shard.stop
        environments = self._make()
        pipe = sockets.inproc_pair_connected(self._context, self._endpoint)
        try:
            environments.reset(self._rollout.observation(0, start, stop))
            control.ready()
            pipe.rcvtimeo = _LOOK_MS
            while True:
                try:
                    (t,) = _STEP.unpack(pipe.recv())
                except zmq.Again:
                    if control.stop_requested():
                        return
                    continue
                episodes = environments.step(self._rollout.action(t, start, stop), self._rollout.row(t, start, stop))
                pipe.send(_STEP.pack(t + 1) + _episodes_to_bytes(episodes), zmq.DONTWAIT)
        finally:
            pipe.close()
            environments.close()


class ActorGroup:
    """Actors that step together; the learner acts for one group while the others' environments step (double buffering)."""

    def __init__(self, actors: Sequence[Actor], step_limit_s: float, interrupted: Callable[[], bool] = lambda: False) -> None:
        self.actors = list(actors)
        self.start, self.stop = actors[0].shard.start, actors[-1].shard.stop
        self._step_limit_s = step_limit_s
        self._interrupted = interrupted

    def wait(self, t: int) -> list[tuple[float, int]]:
        """Waits for every actor of the group; see ``Actor.wait``."""
        return [episode for actor in self.actors for episode in actor.wait(t, self._step_limit_s, self._interrupted)]

    def send_actions(self, t: int) -> None:
        for actor in self.actors:
            actor.send_actions(t)
