"""What ``zpala bench`` says of the speed of a node, alone and beside another, in text for people. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zpala.config import Config
from zpala.tools.bench_circumstances import Circumstances
from zpala.tools.bench_node import NodeSpeed
from zpala.tools.bench_pairs import Pair, summarise
from zpala.tools.bench_sb3 import Sb3Speed


def node_text(config: Config, speed: NodeSpeed, where: Circumstances, seconds: float, warmup_s: float) -> str:
    """The speed of one node for a person."""
    update_ms = 1000 * speed.seconds / speed.updates
    lines = [
        _headline(config, seconds, warmup_s),
        f"SPS         {speed.sps:,.1f}   ({speed.env_steps:,} env_steps, {speed.updates:,} updates in {speed.seconds:.1f} s)",
        f"per update  {update_ms:.2f} ms",
        *(f"  {stage:<10}{ms:9.3f} ms  {100 * ms / update_ms:5.1f} %" for stage, ms in speed.stages_ms.items()),
        f"node        {speed.device}, {speed.threads} thread(s), {speed.parameters:,} parameters, "
        f"{speed.cpu_share:.2f} cores busy, {speed.rss_mb:,.0f} MB",
    ]
    return "\n".join([*lines, *where.lines()])


def comparison_text(
    config: Config,
    pairs: Sequence[Pair],
    node: NodeSpeed,
    sb3: Sb3Speed,
    calibration: Mapping[int, float],
    where: Circumstances,
    seconds: float,
    warmup_s: float,
) -> str:
    """All pairs and their summary for a person."""
    summary = summarise(pairs)
    tried = ", ".join(f"{threads} thread(s) {sps:.0f}" for threads, sps in calibration.items())
    lines = [
        _headline(config, seconds, warmup_s),
        "pair  order  zpala SPS   sb3 SPS   ratio",
        *(f"{number:4d}  {pair.order:5s}  {pair.a:9,.1f} {pair.b:9,.1f}  {pair.ratio:6.3f}" for number, pair in enumerate(pairs, start=1)),
        f"ratio       {summary}   (median SPS {summary.a_median:,.1f} and {summary.b_median:,.1f})",
        f"zpala       {node.device}, {node.threads} thread(s), {node.parameters:,} parameters",
        f"sb3         {sb3.device}, {sb3.threads} thread(s), {sb3.parameters:,} parameters, "
        f"{config.algorithm.name.upper()} with CnnPolicy and SubprocVecEnv ({sb3.start_method})" + (f"; tried: {tried}" if tried else ""),
    ]
    return "\n".join([*lines, *where.lines()])


def _headline(config: Config, seconds: float, warmup_s: float) -> str:
    e = config.environment
    return (
        f"{e.id}, {e.num_envs} environments, {config.algorithm.num_steps} steps per update, preset {config.preset or 'none'}: "
        f"env_steps per second (SPS) over {seconds:g} s after {warmup_s:g} s of warm-up"
    )
