"""The timings of ``tests.soak.cuda``. On the CPU everything is small: there they only show that they work."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from tests.rl.tape import TapeRecorder
from zpala.config import Config, load_config
from zpala.gossip.protocol import LENT
from zpala.node.build import Parts, build_parts
from zpala.node.snapshots import SnapshotBuffers, copier, host_vectors
from zpala.rl.action_spaces import Discrete
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.graphs import Graphs
from zpala.rl.precision import set_float32_arithmetic
from zpala.rl.rollout import Rollout
from zpala.tools.bench_node import measure_node

PONG = EnvironmentSpec("Pong", (4, 84, 84), np.dtype("uint8"), Discrete(6), 4, True, "Pong")
STEPS = 5
ALONE_GOAL = 0.95  # of the environments' own rate
SLOWDOWN_GOAL = 0.02
DELTA_EVERY = 10  # updates


def _config(device: torch.device, num_envs: int, precision: str = "float32", *, graphs: bool = False) -> Config:
    cuda = device.type == "cuda"
    settings: dict[str, object] = {
        "preset": "pala",
        "environment.id": "ALE/Pong-v5",
        "environment.num_envs": num_envs,
        "algorithm.num_steps": STEPS,
        "node.device": device.type,
        "network.precision": precision if cuda or precision != "tf32" else "float32",
        "algorithm.reuse_activations": False,
        "node.cuda_graphs": graphs and cuda,
    }
    return load_config(None, settings, {})


class Played:
    """A learner without environments: noise comes in their place, so that only the device works."""

    def __init__(self, device: torch.device, num_envs: int, precision: str, *, graphs: bool) -> None:
        self.device = device
        self.parts: Parts = build_parts(_config(device, num_envs, precision, graphs=graphs), PONG, 0, device)
        self._precision: Any = precision
        self.algorithm = self.parts.algorithm
        if graphs and device.type == "cpu":
            self.algorithm.executor = Graphs(TapeRecorder())
        cuda = device.type == "cuda"
        self.rollout = Rollout(PONG, STEPS, num_envs, pinned=cuda, extra=self.algorithm.per_step(), device=device)
        self.rollout.observations.random_(0, 256)
        self.rollout.rewards.normal_()
        self.rollout.terminated.copy_(torch.rand(self.rollout.terminated.shape) < 0.01)
        self.rollout.truncated.fill_(False)
        self.rollout.valid.fill_(True)
        half = num_envs // 2
        self._groups = ((0, half), (half, num_envs))

    def turn(self) -> tuple[float, float]:
        """One rollout and one update; seconds of acting and of learning."""
        if self.device.type == "cuda":
            set_float32_arithmetic(self._precision)  # the process has one; nothing here is computed by two at a time
        rollout = self.rollout
        began = time.perf_counter()
        self.algorithm.begin(rollout, 0.0)
        for t in range(STEPS):
            for start, stop in self._groups:
                rollout.set_actions(t, start, stop, self.algorithm.act(rollout, t, start, stop))
        acted = time.perf_counter()
        if not self.algorithm.update(rollout, 1e-5, 0.0).finite:
            raise RuntimeError("noise has made the parameters infinite")
        self.wait()
        return acted - began, time.perf_counter() - acted

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def compute(device: torch.device) -> dict[str, Any]:
    """Medians; eager and replayed turns alternate."""
    cuda = device.type == "cuda"
    repeats = 40 if cuda else 1
    result: dict[str, Any] = {}
    for num_envs in (256, 512, 1024) if cuda else (2,):
        for precision in ("float32", "tf32", "bf16") if cuda else ("float32",):
            eager, replayed = (Played(device, num_envs, precision, graphs=graphs) for graphs in (False, True))
            for _ in range(6):
                eager.turn(), replayed.turn()
            turns = [(eager.turn(), replayed.turn()) for _ in range(repeats)]
            named = {"eager": [one for one, _ in turns], "graphs": [other for _, other in turns]}
            result[f"{num_envs} environments, {precision}"] = {
                name: {
                    "act_ms": round(1000 * statistics.median(act for act, _ in times) / STEPS, 3),
                    "update_ms": round(1000 * statistics.median(update for _, update in times), 3),
                }
                for name, times in named.items()
            }
            del eager, replayed
            if cuda:
                torch.cuda.empty_cache()
    faster = [each["graphs"]["update_ms"] < each["eager"]["update_ms"] for each in result.values()]
    return {**result, "goals": {"an update by graphs is faster": all(faster)}}


def overlap(device: torch.device) -> dict[str, Any]:
    """Blocks of updates without and with gossip's work on the device, in the order A-B-B-A."""
    cuda = device.type == "cuda"
    played = Played(device, 512 if cuda else 2, "bf16", graphs=cuda)
    numel = played.parts.flat.numel
    buffers: SnapshotBuffers[int] = SnapshotBuffers(host_vectors(LENT, numel, device), copier(device, LENT))
    for buffer in range(LENT):
        buffers.lend(buffer)
    delta = host_vectors(1, numel, device)[0].numpy()
    captures = 0

    def gossip(number: int) -> None:
        nonlocal captures
        for buffer, _ in buffers.completed():
            buffers.lend(buffer)
        if number % DELTA_EVERY == 0:
            played.parts.weights.add(delta)
        captures += buffers.capture(played.parts.flat.parameters, number)

    def block(boundary: Callable[[int], None]) -> float:
        played.wait()
        began = time.perf_counter()
        for number in range(60 if cuda else 2):
            boundary(number)
            played.turn()
        return time.perf_counter() - began

    def alone(number: int) -> None:
        return None

    block(gossip)
    ratios = []
    for _ in range(4 if cuda else 1):
        first, second, third, fourth = block(alone), block(gossip), block(gossip), block(alone)
        ratios.append((second + third) / (first + fourth) - 1.0)
    slowdown = statistics.median(ratios)
    goals = {f"slow-down below {SLOWDOWN_GOAL:.0%}": slowdown < SLOWDOWN_GOAL}
    return {"slow_down": round(slowdown, 4), "of_blocks": [round(ratio, 4) for ratio in ratios], "snapshots": captures, "goals": goals}


def pong(device: torch.device) -> dict[str, Any]:
    """The environments alone before and after the node: A-B-A. They are made once for each number of them: every one takes ALE 0.1 s."""
    cuda = device.type == "cuda"
    seconds, warmup_s = (10.0, 6.0) if cuda else (2.0, 1.0)
    result: dict[str, Any] = {}
    goals: dict[str, bool] = {}
    for num_envs, precision in ((256, "bf16"), (512, "bf16")) if cuda else ((8, "float32"),):
        with _alone(num_envs) as stepping_rate:
            before = stepping_rate(seconds / 2)
            speed = measure_node(_config(device, num_envs, precision, graphs=True), seconds=seconds, warmup_s=warmup_s)
            after = stepping_rate(seconds / 2)
        ratio = speed.sps / ((before + after) / 2.0)
        name = f"{num_envs} environments, {precision}"
        result[name] = {
            "sps": round(speed.sps),
            "stepping_alone": [round(before), round(after)],
            "ratio": round(ratio, 4),
            "stages_ms": {stage: round(each, 3) for stage, each in speed.stages_ms.items()},
            "threads": speed.threads,
        }
        goals[f"{name}: {ALONE_GOAL:g} of the environments' rate"] = ratio >= ALONE_GOAL
    return {**result, "goals": goals}


@contextmanager
def _alone(num_envs: int) -> Iterator[Callable[[float], float]]:
    """What measures, for so many seconds, the env_steps/s of environments with actions by chance, on all cores of this process."""
    cores = len(os.sched_getaffinity(0))
    environments = AtariVectorEnv("pong", num_envs, num_threads=cores, autoreset_mode=AutoresetMode.SAME_STEP, reward_clipping=False)
    actions = np.random.default_rng(1).integers(0, 6, (64, num_envs))

    def rate(seconds: float) -> float:
        for row in actions[:8]:
            environments.step(row)
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            environments.step(actions[steps % len(actions)])
            steps += 1
        return steps * num_envs / (time.perf_counter() - began)

    try:
        environments.reset(seed=1)
        yield rate
    finally:
        environments.close()
