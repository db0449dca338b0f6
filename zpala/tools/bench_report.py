"""What ``zpala bench node`` says of a node for people, beyond what every measurement says. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zpala.config import Config
from zpala.tools.bench_circumstances import Circumstances
from zpala.tools.bench_node import NodeSpeed
from zpala.tools.bench_pairs import Pair, summarise
from zpala.tools.bench_sb3 import VECTORS, Sb3Speed


@dataclass(frozen=True, slots=True)
class Tried:
    """A short measurement of stable-baselines3: ``vector`` of ``VECTORS``, torch's threads, env_steps per second."""

    vector: str
    threads: int
    sps: float

    def __str__(self) -> str:
        return f"{VECTORS[self.vector]}, {self.threads} thread(s) {self.sps:,.0f}"


def comparison_text(
    config: Config,
    pairs: Sequence[Pair],
    node: NodeSpeed,
    sb3: Sb3Speed,
    tried: Sequence[Tried],
    where: Circumstances,
    seconds: float,
    warmup_s: float,
) -> str:
    """All pairs and their summary."""
    summary = summarise(pairs)
    low = (
        f"at least {summary.ratio_low:.3f} times as fast (lower end of the 95 % interval)" if len(pairs) > 1 else "one pair has no interval"
    )
    lines = [
        headline(config, seconds, warmup_s),
        "pair  order  zpala SPS   sb3 SPS   ratio",
        *(f"{number:4d}  {pair.order:5s}  {pair.a:9,.1f} {pair.b:9,.1f}  {pair.ratio:6.3f}" for number, pair in enumerate(pairs, start=1)),
        f"ratio       {summary}   (median SPS {summary.a_median:,.1f} and {summary.b_median:,.1f})",
        f"zpala       {low}; {node.device}, {node.threads} thread(s), {node.parameters:,} parameters",
        f"sb3         {config.algorithm.name.upper()} with {sb3.policy} and {VECTORS[sb3.vector]}, {sb3.device}, {sb3.threads} thread(s), "
        f"{sb3.parameters:,} parameters",
    ]
    if tried:
        lines.append(f"sb3 tried   {'; '.join(map(str, tried))}")
    return "\n".join([*lines, *where.lines()])


def headline(config: Config, seconds: float, warmup_s: float) -> str:
    """What was measured, in one line."""
    e = config.environment
    return (
        f"{e.id}, {e.num_envs} environments, {config.algorithm.label}, {config.algorithm.num_steps} steps per update, "
        f"preset {config.preset or 'none'}: env_steps per second (SPS) over {seconds:g} s after {warmup_s:g} s"
    )
