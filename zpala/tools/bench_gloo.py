"""torch.distributed's gloo between two processes: the other way to average two vectors, measured beside an exchange.

Runs twice as a process of its own (see ``bench_peers``); nothing of zpala's gossip is imported here. ``all_reduce`` adds up; the division
by two that a mean needs is made outside of what is measured, so the time is gloo's alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from zpala.tools.bench_tcp import block
from zpala.tools.bench_vectors import digest, start_vector
from zpala.tools.child import orders, say
from zpala.tools.parent import die_with_parent

LIMIT = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Settings:
    """``size``: floats of the vector; ``store``: a file that does not exist yet, where the two find each other."""

    size: int
    side: int
    store: str


class Group:
    """One side: its vector and the place for the other's."""

    def __init__(self, settings: Settings) -> None:
        self.mine = torch.from_numpy(start_vector(settings.side, settings.size))
        self._theirs = torch.zeros_like(self.mine)
        self._other = 1 - settings.side
        dist.init_process_group("gloo", init_method=f"file://{settings.store}", rank=settings.side, world_size=2, timeout=LIMIT)

    def all_reduce(self) -> tuple[float, float]:
        """When it began and when the sum was there; the vector is the mean when this returns."""
        began = time.monotonic()
        dist.all_reduce(self.mine)
        ended = time.monotonic()
        self.mine.mul_(0.5)
        return began, ended

    def send_and_receive(self) -> tuple[float, float]:
        """The same by sending and receiving at once, the mean included."""
        began = time.monotonic()
        requests = [dist.isend(self.mine, self._other), dist.irecv(self._theirs, self._other)]
        for request in requests:
            if request is not None:
                request.wait()
        self.mine.add_(self._theirs).mul_(0.5)
        return began, time.monotonic()


def main() -> None:
    """Does what its orders say."""
    die_with_parent(os.environ)
    torch.set_num_threads(1)
    settings = Settings(**json.loads(sys.argv[1]))
    told = orders()
    say({"event": "here"})
    next(told)
    group = Group(settings)
    say({"event": "ready"})
    try:
        for order in told:
            if "result" in order:
                say({"event": "result", **digest(group.mine.numpy())})
            else:
                say(block(order["count"], group.send_and_receive if order.get("both_ways") else group.all_reduce))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
