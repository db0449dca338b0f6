"""``zpala bench env`` and ``zpala bench learn``: the two halves of a node's work alone, each beside the floor of its own parts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import IO

from zpala.config import Config
from zpala.exit_codes import ExitCode
from zpala.tools.bench_circumstances import circumstances
from zpala.tools.bench_floor import (
    FORWARD,
    ONE_BY_ONE,
    OWN,
    SIMULATOR,
    UPDATE,
    learner_parts,
    learning_of,
    term_bottleneck,
    update_floor,
    without_forward,
)
from zpala.tools.bench_measurement import Measurement, Part, last_line
from zpala.tools.bench_parts import Measured, measure_parts
from zpala.tools.bench_timing import Timing, best
from zpala.tools.child import ChildFailed

SIMULATOR_SHARE = 0.9  # above it the simulator itself is what limits


def bench_env(
    config: Config,
    *,
    seconds: float,
    as_json: bool = False,
    output: IO[str] | None = None,
    measure: Callable[..., Measured] = measure_parts,
) -> int:
    """How fast the environments step by chance, beside the simulator with nothing around it; returns the exit status."""
    return _bench(lambda found: env_measurement(config, found, seconds), config, "env", seconds, as_json, output, measure)


def bench_learn(
    config: Config,
    *,
    seconds: float,
    as_json: bool = False,
    output: IO[str] | None = None,
    measure: Callable[..., Measured] = measure_parts,
) -> int:
    """How fast a rollout is learnt from, beside the passes and steps that it is made of; returns the exit status."""
    return _bench(lambda found: learn_measurement(config, found, seconds), config, "learn", seconds, as_json, output, measure)


def env_measurement(config: Config, found: Measured, seconds: float) -> Measurement:
    """The best number of threads of ours beside the best of the simulator."""
    own, bare = best(found.timings, OWN), best(found.timings, SIMULATOR)
    share = bare.seconds / own.seconds
    limit = (
        "the simulator itself: more cores, more nodes, or a faster simulator"
        if share >= SIMULATOR_SHARE
        else "what zpala does around the simulator: results copied into the rollout, games counted"
    )
    e = config.environment
    return Measurement(
        what=f"{e.id}: {e.num_envs} environments stepped by chance, medians over {seconds:g} s in all; the best number of threads counts",
        kind="speed",
        unit="env_step",
        measured=1.0 / own.seconds,
        floor=1.0 / bare.seconds,
        parts=[_part(timing) for timing in found.timings],
        formula=f"1 / {SIMULATOR}",
        bottleneck=f"{limit} ({100 * min(share, 1.0):.0f} % of a step is the simulator)",
        details={"environment": e.id, "num_envs": e.num_envs, "num_steps": config.algorithm.num_steps, "seconds_asked": seconds},
        notes=_one_by_one(found),
    )


def learn_measurement(config: Config, found: Measured, seconds: float) -> Measurement:
    """``Algorithm.update`` beside the sum of its parts."""
    parts = learner_parts(found.timings)
    learning = learning_of(config)
    floor = update_floor(without_forward(learning) if found.reuses_activations else learning)
    update = best(found.timings, UPDATE)
    e, a = config.environment, config.algorithm
    reuse = {"forward": "not in the floor: an update recalls what was computed when acting"} if FORWARD not in floor.terms else {}
    return Measurement(
        what=(
            f"{a.label} on {e.id}: updates from {a.num_steps} steps of {e.num_envs} environments, {update.how}; "
            f"medians over {seconds:g} s in all, parts at their best settings"
        ),
        kind="speed",
        unit="env_step",
        measured=1.0 / update.seconds,
        floor=1.0 / floor.seconds(parts),
        parts=[*parts, _part(update)],
        formula=floor.formula,
        bottleneck=term_bottleneck(floor, parts, update.seconds),
        details={
            "environment": e.id,
            "algorithm": a.label,
            "num_envs": e.num_envs,
            "num_steps": a.num_steps,
            "network": found.network,
            "device": found.device,
            "reuses_activations": found.reuses_activations,
            "batch": learning.batch,
            "terms": dict(floor.terms),
            "seconds_asked": seconds,
            "timings": [asdict(timing) for timing in found.timings],
        },
        notes={**reuse, "network": f"{found.network}, on {found.device}"},
    )


def _part(timing: Timing) -> Part:
    return Part(timing.part, timing.seconds, timing.per, timing.how)


def _one_by_one(found: Measured) -> dict[str, str]:
    if all(timing.part != ONE_BY_ONE for timing in found.timings):
        return {}
    gain = best(found.timings, ONE_BY_ONE).seconds / best(found.timings, SIMULATOR).seconds
    return {"native": f"the vector environment steps {gain:.1f} times as fast as plain environments one by one"}


def _bench(
    conclude: Callable[[Measured], Measurement],
    config: Config,
    what: str,
    seconds: float,
    as_json: bool,
    output: IO[str] | None,
    measure: Callable[..., Measured],
) -> int:
    load = os.getloadavg()[0]
    try:
        found = measure(config, what, seconds)
    except ChildFailed as error:
        sys.stderr.write(f"zpala: {error}\n")
        return error.exit_code
    where, measurement = circumstances(found.facts, load), conclude(found)
    text = last_line(measurement.document(where)) if as_json else measurement.text(where)
    (output or sys.stdout).write(text + "\n")
    return ExitCode.FINISHED
