"""``zpala simulate``: many seeds of the simulated cluster on all cores, what happened in them, and what did not hold.

Every seed is played by itself, so the outcome of a seed does not depend on how many others there are or which process plays it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from zpala.config import ConfigError
from zpala.run_directory import RunDirectoryError
from zpala.sim.simulation import Outcome, Scenario, names_of, simulate
from zpala.tools.parent import PARENT_VARIABLE, die_with_parent

AHEAD = 4  # seeds handed out per process beyond the one it plays
SHOWN = 5  # failing seeds that are told in full
TRACE_SHOWN = 60
SAY_EVERY_S = 30.0
DOTS_PER_INCH = 110


@dataclass(frozen=True, slots=True)
class Campaign:
    """All outcomes, in the order of the seeds. ``limit_reached``: time ran out before the last seed."""

    scenario: Scenario
    outcomes: tuple[Outcome, ...]
    seconds: float
    limit_reached: bool

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.violations)

    def json(self) -> str:
        """Totals, and one record per seed."""
        document = {
            "seeds": len(self.outcomes),
            "violations": sum(len(outcome.violations) for outcome in self.outcomes),
            "failing_seeds": [outcome.seed for outcome in self.failures],
            "seconds": round(self.seconds, 3),
            "virtual_seconds": round(sum(outcome.seconds for outcome in self.outcomes), 1),
            "limit_reached": self.limit_reached,
            "faults": dict(self._faults()),
            "counts": dict(self._counts()),
            "worst_error": max(outcome.worst_error for outcome in self.outcomes),
            "longest_wait_s": max(outcome.longest_wait_s for outcome in self.outcomes),
            "outcomes": [outcome.record() for outcome in self.outcomes],
        }
        return json.dumps(document, indent=2)

    def text(self) -> str:
        """A paragraph of totals; the failing seeds with what did not hold and how to see it again."""
        outcomes, counts = self.outcomes, self._counts()
        sizes = sorted({outcome.nodes for outcome in outcomes})
        virtual_s = sum(outcome.seconds for outcome in outcomes)
        lines = [
            f"{len(outcomes)} seed(s) from {outcomes[0].seed} on, {_range(sizes)} nodes, {virtual_s:,.0f} virtual seconds in "
            f"{self.seconds:.1f} s{', stopped by --limit' if self.limit_reached else ''}",
            "faults      " + (", ".join(f"{name} {count:,}" for name, count in self._faults().items()) or "none"),
            f"exchanges   {counts['applied'] + counts['applied_late']:,} sides applied ({counts['applied_late']:,} late, out of doubt), "
            f"{counts['aborted']:,} aborted, {counts['doubts']:,} in doubt, {counts['defects']:,} counted as defects",
            f"membership  {counts['suspects']:,} suspected, {counts['dead']:,} declared dead, {counts['renewed']:,} restarts seen, "
            f"{counts['adoptions']:,} adoptions",
            f"gate        longest wait {max(outcome.longest_wait_s for outcome in outcomes):.1f} s, opened by its limit "
            f"{counts['gate_forced']:,} times",
            f"mean        never further than {max(outcome.worst_error for outcome in outcomes):.1e} from the ledger "
            f"({counts['settled_defects']:,} defects and {counts['settled_deaths']:,} deaths accounted for)",
            f"violations  {sum(len(outcome.violations) for outcome in outcomes)} in {len(self.failures)} seed(s)",
        ]
        for outcome in self.failures[:SHOWN]:
            lines += ["", f"seed {outcome.seed} ({outcome.nodes} nodes, {outcome.topology}); again: {again(self.scenario, outcome.seed)}"]
            lines += [f"  {violation}" for violation in outcome.violations[:SHOWN]]
            lines += [f"    {line}" for line in outcome.trace[-TRACE_SHOWN:]]
        if len(self.failures) > SHOWN:
            lines += ["", "further failing seeds: " + " ".join(str(outcome.seed) for outcome in self.failures[SHOWN:])]
        return "\n".join(lines)

    def _faults(self) -> Counter[str]:
        return sum((Counter(outcome.faults) for outcome in self.outcomes), Counter())

    def _counts(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for outcome in self.outcomes:
            total.update(outcome.counts)
        return total


def run_campaign(
    *,
    seeds: int,
    first_seed: int,
    nodes: str,
    seconds: float,
    faults: Sequence[str],
    topology: str | None,
    limit_s: float,
    jobs: int | None,
    say: Callable[[str], None] = lambda text: None,
) -> Campaign:
    """Plays ``seeds`` seeds from ``first_seed`` on.

    Args:
        nodes: "12", or "6-12": drawn by every seed.
        seconds: virtual seconds of a seed, at least 60.
        faults: names of fault classes; empty: all of them. "none": no fault.
        topology: a shipped name or a path; None: drawn.
        limit_s: no new seed is begun after that many seconds.
        jobs: processes; None: one per core.
        say: is told how it goes every half minute, and of a violation at once.
    Raises:
        ConfigError: an unknown fault, or nodes that are no number from 2 on.
        TopologyError: the topology cannot be used with ``nodes``.
    """
    try:
        chosen = () if tuple(faults) == ("none",) else names_of(faults)
    except ValueError as error:
        raise ConfigError(f"--fault: {error}.") from None
    scenario = Scenario(seed=first_seed, seconds=seconds, sizes=_sizes(nodes), topology=topology)
    if faults:
        scenario = replace(scenario, faults=chosen)
    began = time.monotonic()
    scenarios = (replace(scenario, seed=first_seed + index) for index in range(seeds))
    outcomes: list[Outcome] = []
    said_at = began
    for outcome in _play(scenarios, jobs or os.cpu_count() or 1, began + limit_s):
        outcomes.append(outcome)
        now = time.monotonic()
        if outcome.violations:
            say(f"seed {outcome.seed}: {outcome.violations[0]}")
        if now - said_at >= SAY_EVERY_S:
            said_at = now
            failed = sum(bool(played.violations) for played in outcomes)
            say(f"{len(outcomes):,} of {seeds:,} seeds in {now - began:.0f} s, {failed} with a violation")
    outcomes.sort(key=lambda outcome: outcome.seed)
    return Campaign(scenario, tuple(outcomes), time.monotonic() - began, len(outcomes) < seeds)


def _play(scenarios: Iterator[Scenario], jobs: int, until: float) -> Iterator[Outcome]:
    """The first seed is always played; with one process or one seed, in this one."""
    if jobs == 1:
        for index, scenario in enumerate(scenarios):
            if index and time.monotonic() >= until:
                return
            yield _one(scenario)
        return
    parent = ({PARENT_VARIABLE: str(os.getpid())},)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=die_with_parent, initargs=parent) as pool:
        running = {pool.submit(_one, scenario) for scenario in islice(scenarios, AHEAD * jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            if time.monotonic() >= until:
                running = {future for future in running if not future.cancel()}
            else:
                running |= {pool.submit(_one, scenario) for scenario in islice(scenarios, len(done))}


def _one(scenario: Scenario) -> Outcome:
    """A seed that fails is played once more with a trace: it fails in the same way."""
    outcome = simulate(scenario)
    return simulate(scenario, traced=True) if outcome.violations else outcome


def again(scenario: Scenario, seed: int) -> str:
    """The command that plays ``seed`` in the same way."""
    default = Scenario(seed=seed)
    parts = [f"zpala simulate --seed {seed} --seeds 1"]
    parts.append(f"--nodes {_range(scenario.sizes, '-')}")
    if scenario.seconds != default.seconds:
        parts.append(f"--seconds {scenario.seconds:g}")
    if scenario.topology is not None:
        parts.append(f"--topology {scenario.topology}")
    if scenario.faults != default.faults:
        parts += [f"--fault {name}" for name in scenario.faults or ("none",)]
    return " ".join(parts)


def draw(campaign: Campaign, out: Path) -> None:
    """Distance from the mean over virtual time, one line per seed (.png).

    Raises:
        ConfigError: the name of ``out`` or the installation do not allow it.
        RunDirectoryError: ``out`` cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--plot {out}: pictures are PNG files. Give a name that ends in .png.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"--plot needs matplotlib ({error}). Install the extra: pip install -c constraints.txt -e '.[plot]'.") from None
    figure = Figure(figsize=(7.2, 4.4), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for outcome in campaign.outcomes:
        times, distances = zip(*outcome.distances, strict=True)
        axes.semilogy(times, [max(value, 1e-8) for value in distances], linewidth=0.8, alpha=0.6)
    axes.set(xlabel="virtual seconds", ylabel="largest distance from the mean, relative", title=f"{len(campaign.outcomes)} simulated seeds")
    axes.grid(visible=True, linewidth=0.5, alpha=0.4)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", metadata={"Software": None})
    except OSError as error:
        raise RunDirectoryError(f"{out}: cannot be written ({error.strerror}). Give another --plot.") from None


def _sizes(nodes: str) -> tuple[int, int]:
    low, _, high = nodes.partition("-")
    if not (low.isdecimal() and (high or low).isdecimal() and 2 <= int(low) <= int(high or low)):
        raise ConfigError(f"--nodes {nodes}: give a number from 2 on, as 12, or a range that every seed draws from, as 6-12.")
    return int(low), int(high or low)


def _range(values: Sequence[int], between: str = " to ") -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]}{between}{values[-1]}"
