"""Stands in for ``python -m zpala`` in the tests of ``launch``: says what a node says, and ends as its name in the plan tells.

The plan is the file plan.json beside the run directory: node name -> what to do. The pipe "ready" beside it joins two nodes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from zpala.tools.parent import die_with_parent


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def main() -> int:
    die_with_parent(os.environ)
    arguments = sys.argv[1:]
    assert arguments[0] == "node"
    name = arguments[arguments.index("--name") + 1]
    run = Path(arguments[arguments.index("--run-dir") + 1])
    assert os.environ["ZPALA_LOG_FORMAT"] == "json"
    assert "ZPALA_LR" not in os.environ
    assert (run / "hosts.txt").read_text().count("127.0.0.1:") == 2
    plan = json.loads((run.parent / "plan.json").read_text())[name]
    say(event="log", level="INFO", text=f"{name} is here")
    row = {"node": name, "env_steps": 500, "cluster_env_steps": 1000, "charts/SPS": 250.0, "gossip/averaged": 1, "gossip/live": 1}
    match plan:
        case int():
            if plan == 0:
                say(event="metrics", **row, **{"charts/episodic_return": 99.5, "charts/episodic_return_count": 100, "phase": "running"})
                say(event="summary", node=name, reason="target", env_steps=500)
            else:
                print("what went wrong", file=sys.stderr)
            return plan
        case "wait":  # until SIGTERM, which ends it at once
            (run / f"{name}.pid").write_text(str(os.getpid()))
            say(event="log", level="INFO", text=f"{name} waits")
            signal.sigwait({signal.SIGUSR1})
        case "obey":  # leave in order when told
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            say(event="metrics", **row)
            (run.parent / "ready").write_text("")
            return 128 + signal.sigwait({signal.SIGINT, signal.SIGTERM})
        case "interrupt":  # presses Ctrl-C as soon as the other one is ready, then leaves in order
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            (run.parent / "ready").read_text()
            os.kill(os.getppid(), signal.SIGINT)
            return 128 + signal.sigwait({signal.SIGINT, signal.SIGTERM})
        case "hangup":  # the terminal closes once the other one is ready or over; leaves in order if told to
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            other = json.loads((run.parent / "plan.json").read_text())["n1"]
            if other == "obey":
                (run.parent / "ready").read_text()
            os.kill(os.getppid(), signal.SIGHUP)
            told = signal.sigtimedwait({signal.SIGINT, signal.SIGTERM}, 30.0 if other == "obey" else 1.0)
            return 128 + told.si_signo if told else 0
        case "deaf":  # hears nothing but SIGKILL
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            (run.parent / "ready").write_text("")
            signal.sigwait({signal.SIGUSR1})
    return 0


if __name__ == "__main__":
    sys.exit(main())
