"""``zpala bench node``: how fast one node is here, beside the floor of its own parts, or beside stable-baselines3 (``bench_against``).

The node and its parts are measured one after the other, in processes of their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO

from zpala.config import Config, ConfigError, load_config
from zpala.exit_codes import ExitCode
from zpala.tools.bench_against import compare_with_sb3
from zpala.tools.bench_circumstances import circumstances
from zpala.tools.bench_floor import ENV_STEP, FORWARD, SIMULATOR, learner_parts, learning_of, node_floor, stage_bottleneck, without_forward
from zpala.tools.bench_floor import update_floor as floor_of_update
from zpala.tools.bench_measurement import Measurement, Part, last_line
from zpala.tools.bench_node import NodeSpeed, measure_node
from zpala.tools.bench_parts import Measured, measure_parts
from zpala.tools.bench_report import headline
from zpala.tools.bench_timing import best
from zpala.tools.child import ChildFailed

SECONDS, WARMUP_S, PARTS_S = 20.0, 4.0, 10.0  # of a node, before it, and of its parts: with three starts within a minute
PAIRS, PAIR_SECONDS, PAIR_WARMUP_S = 3, 4.0, 1.0  # of a comparison, likewise; figures that last need more and longer pairs


def bench_node(
    run_file: Path | None,
    overrides: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    against: str | None = None,
    seconds: float | None = None,
    warmup_s: float | None = None,
    parts_s: float | None = None,
    pairs: int | None = None,
    sb3_threads: int | None = None,
    sb3_vector: str | None = None,
    as_json: bool = False,
    output: IO[str] | None = None,
) -> int:
    """One node beside its floor, or in pairs with another code base's; returns the exit status.

    Args:
        against: None, or "sb3": stable-baselines3's A2C or PPO.
        seconds, warmup_s: of one measurement; None: what fits into a minute in all.
        parts_s: of measuring the parts of the floor.
        pairs, sb3_threads, sb3_vector: of a comparison, see ``compare_with_sb3``.
    Raises:
        ConfigError: wrong settings, or what cannot be compared; nothing was started.
    """
    if against is None:
        only = {"--pairs": pairs, "--sb3-threads": sb3_threads, "--sb3-vector": sb3_vector}
        if given := [option for option, value in only.items() if value is not None]:
            raise ConfigError(f"{', '.join(given)}: only for a comparison. Add --against sb3, or leave it out.")
        config = load_config(run_file, overrides, environ)
        wanted = (SECONDS if seconds is None else seconds, WARMUP_S if warmup_s is None else warmup_s, parts_s or PARTS_S)
        return bench_alone(config, *wanted, as_json=as_json, output=output)
    if against != "sb3":
        raise ConfigError(f"--against {against}: a node is compared with sb3. Give --against sb3.")
    if parts_s is not None:
        raise ConfigError("--parts-seconds: a comparison has no floor. Leave it out, or leave out --against.")
    return compare_with_sb3(
        run_file,
        overrides,
        environ,
        pairs=PAIRS if pairs is None else pairs,
        seconds=PAIR_SECONDS if seconds is None else seconds,
        warmup_s=PAIR_WARMUP_S if warmup_s is None else warmup_s,
        sb3_threads=sb3_threads,
        sb3_vector=sb3_vector,
        as_json=as_json,
        output=output,
    )


def bench_alone(
    config: Config,
    seconds: float,
    warmup_s: float,
    parts_s: float,
    *,
    as_json: bool = False,
    output: IO[str] | None = None,
    measure: Callable[..., NodeSpeed] = measure_node,
    measure_its_parts: Callable[..., Measured] = measure_parts,
) -> int:
    """Measures one node, then its parts, and says where the time of an update went; returns the exit status."""
    load = os.getloadavg()[0]
    try:
        speed = measure(config, seconds=seconds, warmup_s=warmup_s)
        found = measure_its_parts(config, "node", parts_s)
    except ChildFailed as error:
        sys.stderr.write(f"zpala: {error}\n")
        return error.exit_code
    where, measurement = circumstances(speed.facts, load), node_measurement(config, speed, found, seconds, warmup_s)
    text = last_line(measurement.document(where)) if as_json else measurement.text(where)
    (output or sys.stdout).write(text + "\n")
    return ExitCode.FINISHED


def node_measurement(config: Config, speed: NodeSpeed, found: Measured, seconds: float, warmup_s: float) -> Measurement:
    """A node beside its floor, see ``bench_floor``."""
    simulator = best(found.timings, SIMULATOR)
    parts = [Part(ENV_STEP, simulator.seconds, simulator.per, f"simulator alone, {simulator.how}"), *learner_parts(found.timings)]
    learning = learning_of(config)
    floor = node_floor(learning)
    single = {}
    notes = {}
    if found.reuses_activations:
        less = node_floor(without_forward(learning))
        single_sps = 1.0 / less.seconds(parts)
        single = {
            "floor_reused_steps_per_second": single_sps,
            "floor_reused_ratio": speed.sps / single_sps,
            "formula_reused": less.formula,
        }
        notes["reused"] = (
            f"the update recalls what acting computed: floor {less.formula} = {single_sps:,.1f}, ratio {speed.sps / single_sps:.2f}"
        )
    update_ms = 1000.0 * speed.seconds / speed.updates
    env_steps = speed.env_steps / speed.updates
    seconds_of = {part.name: part.seconds for part in parts}
    learns = floor_of_update(without_forward(learning) if found.reuses_activations else learning)
    floors_ms = {
        "env_step": 1000.0 * env_steps * seconds_of[ENV_STEP],
        "inference": 1000.0 * env_steps * seconds_of[FORWARD],
        "learn": 1000.0 * env_steps * learns.seconds(parts),
    }
    notes["stages"] = ", ".join(f"{name} {ms:.2f} ms ({100 * ms / update_ms:.0f} %)" for name, ms in speed.stages_ms.items())
    notes["node"] = (
        f"{speed.updates:,} updates of {update_ms:.2f} ms in {speed.seconds:.1f} s, {speed.device}, {speed.threads} thread(s), "
        f"{speed.parameters:,} parameters, {speed.cpu_share:.2f} cores busy, {speed.rss_mb:,.0f} MB"
    )
    e, a = config.environment, config.algorithm
    return Measurement(
        what=headline(config, seconds, warmup_s),
        kind="speed",
        unit="env_step",
        measured=speed.sps,
        floor=1.0 / floor.seconds(parts),
        parts=parts,
        formula=floor.formula,
        bottleneck=stage_bottleneck(speed.stages_ms, floors_ms),
        details={
            **single,
            "environment": e.id,
            "algorithm": a.label,
            "num_envs": e.num_envs,
            "num_steps": a.num_steps,
            "preset": config.preset,
            "seconds_asked": seconds,
            "warmup_s": warmup_s,
            **{key: value for key, value in asdict(speed).items() if key not in ("facts", "sps")},
            "stage_floors_ms": floors_ms,
            "terms": dict(floor.terms),
            "reuses_activations": found.reuses_activations,
            "network": found.network,
            "timings": [asdict(timing) for timing in found.timings],
        },
        notes=notes,
    )
