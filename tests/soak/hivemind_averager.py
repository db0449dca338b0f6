"""How long hivemind's averager takes for what an exchange does: two processes of this machine average one vector. A measurement by hand.

    python3 -m venv /tmp/hivemind && /tmp/hivemind/bin/pip install hivemind torch numpy
    /tmp/hivemind/bin/python tests/soak/hivemind_averager.py --size 1700000 --rounds 50

Runs in a Python that has hivemind, and imports nothing of zpala. Beside it: ``zpala bench exchange --size 1700000``. A round begins when
both sides have found each other and ends when both have the mean: the search, of at least ``--matchmaking`` seconds, is not counted. Every
round's result is compared with the mean. Prints one JSON object, seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

LIMIT_S = 60.0
SEARCH_LIMIT_S = 30.0
POLL_S = 0.001


def side(rank: int, size: int, rounds: int, matchmaking_s: float, pipe: Connection) -> None:
    """One of the two: averages whenever it is told to."""
    import hivemind
    import torch
    from hivemind.averaging import DecentralizedAverager
    from hivemind.averaging.control import AveragingStage

    torch.set_num_threads(1)
    first = None if rank == 0 else receive(pipe)
    dht = hivemind.DHT(initial_peers=first, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    pipe.send([str(address) for address in dht.get_visible_maddrs()])
    receive(pipe)  # both are in the table; one that makes its averager before cannot be found
    vector = torch.zeros(size)
    search = {"min_matchmaking_time": matchmaking_s, "request_timeout": matchmaking_s / 2}
    averager = DecentralizedAverager([vector], dht, prefix="zpala", target_group_size=2, start=True, **search)
    for number in range(rounds):
        with averager.get_tensors() as tensors:
            tensors[0].fill_(float(number + 2 * rank))
        receive(pipe)  # both are about to search
        control: Any = averager.step(wait=False, require_trigger=True, timeout=SEARCH_LIMIT_S, allow_retries=True)
        deadline = time.monotonic() + SEARCH_LIMIT_S
        while control.stage is not AveragingStage.AWAITING_TRIGGER:
            if control.done():
                control.result(0)  # raises what went wrong
            if time.monotonic() > deadline:
                raise TimeoutError("the two have not found each other")
            time.sleep(POLL_S)
        pipe.send("found")
        receive(pipe)
        began = time.monotonic()
        control.allow_allreduce()
        control.result(LIMIT_S)
        ended = time.monotonic()
        with averager.get_tensors() as tensors:
            right = bool(torch.equal(tensors[0], torch.full((size,), float(number + 1))))
        pipe.send((began, ended, right))
    averager.shutdown()
    dht.shutdown()


def receive(pipe: Connection) -> Any:
    if not pipe.poll(LIMIT_S):
        raise TimeoutError(f"nothing heard for {LIMIT_S:g} s")
    return pipe.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_700_000, help="floats of the vector")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--matchmaking", type=float, default=1.0, help="seconds that the two look for each other, at least")
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")  # as hivemind starts its own, and this process has no threads
    pipes, processes = [], []
    said: list[Any] = []
    for rank in range(2):
        mine, theirs = context.Pipe()
        arguments = (rank, options.size, options.rounds, options.matchmaking, theirs)
        processes.append(context.Process(target=side, args=arguments, daemon=False))
        pipes.append(mine)
        processes[-1].start()
        if rank == 1:
            mine.send(said[0])  # where the first one is
        said.append(receive(mine))
    seconds = []
    try:
        for pipe in pipes:
            pipe.send("average")
        for _ in range(options.rounds):
            for word in ("search", "go"):
                for pipe in pipes:
                    pipe.send(word)
                said = [receive(pipe) for pipe in pipes]
            began, ended, right = zip(*said, strict=True)
            assert all(right), "that is not the mean"
            seconds.append(max(ended) - min(began))
        for process in processes:
            process.join(LIMIT_S)
    finally:
        for process in processes:
            process.kill()
    print(json.dumps({"size": options.size, "rounds": len(seconds), "median_s": statistics.median(seconds), "seconds": seconds}))


if __name__ == "__main__":
    main()
