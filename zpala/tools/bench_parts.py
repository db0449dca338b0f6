"""Parts are measured in a process of their own, so that neither its threads nor its memory are those of anything else that is measured.

The process, ``python -m zpala.tools.bench_parts RUN.toml '{"what": ..., "seconds": ...}'``, is prepared as a node's is (waiting threads,
pages, denormals, allocator), measures, and says one JSON object. ``measure_parts`` starts it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from zpala.config import Config, ConfigError, load_config
from zpala.exit_codes import ExitCode
from zpala.run_directory import process_facts
from zpala.tools.bench_floor import BOTH
from zpala.tools.bench_timing import Timing, best
from zpala.tools.child import Child, ChildFailed
from zpala.tools.parent import die_with_parent
from zpala.tools.start import ask_for_large_pages, wait_without_spinning

What = Literal["env", "learn", "node"]
SILENCE_LIMIT_S = 180.0  # beyond the time that was asked for: importing torch, making the environments, passes that take seconds
STEPPING_SHARE = 0.3  # of the time for the parts of a node: its environments
UPDATE_SHARE = 0.4  # of the time for the parts of a learner: whole updates


@dataclass(frozen=True, slots=True)
class Measured:
    """What one process found.

    Attributes:
        timings: every part at every setting.
        facts: as run.json has them.
        device: of the network; "" where there is none.
        network: in one line; "".
        reuses_activations: whether the algorithm learns without a second forward pass there.
    """

    timings: Sequence[Timing]
    facts: Mapping[str, Any]
    device: str
    network: str
    reuses_activations: bool


def measure_parts(config: Config, what: What, seconds: float) -> Measured:
    """Measures for about ``seconds``: "env": the environments; "learn": passes and updates; "node": passes, and the simulator alone.

    Raises: ChildFailed: the text has the process's last words.
    """
    with tempfile.TemporaryDirectory(prefix="zpala-bench-") as folder:
        run_file = Path(folder) / "run.toml"
        run_file.write_text(config.to_toml(), encoding="utf-8")
        asked = json.dumps({"what": what, "seconds": seconds})
        command = [sys.executable, "-m", "zpala.tools.bench_parts", str(run_file), asked]
        with Child("the measurement of the parts", command, {}) as child:
            for event in child.events(SILENCE_LIMIT_S + seconds):
                if event.pop("event", None) == "parts":
                    return Measured(**{**event, "timings": [Timing(**timing) for timing in event["timings"]]})
    raise ChildFailed("the measurement of the parts ended without a figure.", ExitCode.UNEXPECTED)


def measure_here(config: Config, what: What, seconds: float) -> Measured:
    """The same in this process. Raises what building a node's parts raises."""
    from zpala.node.build import choose_device
    from zpala.node.specification import specification
    from zpala.node.threads import prepare_process
    from zpala.tools.bench_circumstances import cores_here
    from zpala.tools.bench_passes import Learner
    from zpala.tools.bench_stepping import step_timings

    spec = specification(config.environment)
    prepare_process(cores_here())
    if what == "env":
        return Measured(step_timings(config, seconds), process_facts(), "", "", False)
    device = choose_device(config.node.device)
    learner = Learner(config, spec, device)
    if what == "node":
        timings = step_timings(config, STEPPING_SHARE * seconds, own=False)
        timings += learner.pass_timings((1.0 - STEPPING_SHARE) * seconds)
    else:
        timings = learner.pass_timings((1.0 - UPDATE_SHARE) * seconds)
        timings.append(learner.update_timing(best(timings, BOTH).setting, UPDATE_SHARE * seconds))
    return Measured(timings, process_facts(), str(device), learner.network, learner.reuses_activations)


def main() -> None:
    """Measures what the command line says."""
    die_with_parent(os.environ)
    wait_without_spinning()
    ask_for_large_pages()
    from zpala.node.errors import NodeError

    asked = json.loads(sys.argv[2])
    try:
        found = measure_here(load_config(Path(sys.argv[1]), {}, {}), asked["what"], asked["seconds"])
    except ConfigError as error:
        sys.exit(_refused(error, ExitCode.USAGE))
    except NodeError as error:
        sys.exit(_refused(error, error.exit_code))
    sys.stdout.write(json.dumps({"event": "parts", **asdict(found)}) + "\n")


def _refused(error: Exception, status: int) -> int:
    sys.stderr.write(f"zpala: {error}\n")
    return int(status)


if __name__ == "__main__":
    main()
