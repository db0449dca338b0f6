"""``zpala bench``: how fast one node is here, and how fast beside stable-baselines3's A2C or PPO. Figures with all that explains them.

Measurements run one after the other in processes of their own; comparisons are made in pairs, see ``bench_pairs``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from zpala.config import Config, ConfigError, load_config
from zpala.exit_codes import ExitCode
from zpala.tools.bench_circumstances import Circumstances, circumstances, cores_here
from zpala.tools.bench_node import NodeSpeed, measure_node
from zpala.tools.bench_pairs import Pair, orders, summarise
from zpala.tools.bench_report import comparison_text, node_text
from zpala.tools.bench_sb3 import Sb3Settings, Sb3Speed
from zpala.tools.child import Child, ChildFailed

PRESET = "gala"  # of comparisons, unless a run file or the person says otherwise
PRESETS = {"ppo": "ppo-atari"}  # of algorithms that have another one
OPTIMIZERS = {"a2c": "rmsprop", "ppo": "adam"}  # what can be compared, and with what both go downhill
CALIBRATION_SHARE = 3  # the number of threads that suits stable-baselines3 is found in measurements of a third of the time
OPTIONAL_MODULES = ("stable_baselines3", "cv2")


def bench_node(
    config: Config,
    *,
    seconds: float,
    warmup_s: float,
    as_json: bool = False,
    output: IO[str] | None = None,
    measure: Callable[..., NodeSpeed] = measure_node,
) -> int:
    """Measures one node and says its speed and where the time of an update went; returns the exit status."""
    load = os.getloadavg()[0]
    try:
        speed = measure(config, seconds=seconds, warmup_s=warmup_s)
    except ChildFailed as error:
        return _failed(error)
    where = circumstances(speed.facts, load)
    document = {**_document(config, seconds, warmup_s, where), **{key: value for key, value in asdict(speed).items() if key != "facts"}}
    _say(json.dumps(document, indent=2) if as_json else node_text(config, speed, where, seconds, warmup_s), output)
    return ExitCode.FINISHED


def bench_sb3(
    run_file: Path | None,
    overrides: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    pairs: int,
    seconds: float,
    warmup_s: float,
    sb3_threads: int | None = None,
    as_json: bool = False,
    output: IO[str] | None = None,
) -> int:
    """Compares a node with stable-baselines3's A2C or PPO in ``pairs`` pairs; returns the exit status.

    Args:
        sb3_threads: torch threads of stable-baselines3; None: whichever of 1 and the number of cores is faster here.
    Raises:
        ConfigError: wrong settings, not an Atari game, or the extra ``bench`` is not installed; nothing was started.
    """
    config = load_config(run_file, overrides, environ)
    if config.preset is None and run_file is None:
        config = load_config(None, {"preset": PRESETS.get(config.algorithm.name, PRESET), **overrides}, environ)
    settings = sb3_settings(config, seconds=seconds, warmup_s=warmup_s, threads=sb3_threads or 1)
    if missing := [module for module in OPTIONAL_MODULES if importlib.util.find_spec(module) is None]:
        raise ConfigError(
            f"zpala bench sb3 needs {', '.join(missing)}, which is not installed: pip install -c constraints.txt -e '.[bench]'."
        )
    load = os.getloadavg()[0]
    try:
        calibration = {} if sb3_threads else calibrate(settings)
        settings = _with_threads(settings, sb3_threads or max(calibration, key=lambda threads: calibration[threads]))
        measured = [_measure_pair(order, config, settings) for order in orders(pairs)]
    except ChildFailed as error:
        return _failed(error)
    found = [Pair(order, node.sps, sb3.sps) for order, (node, sb3) in zip(orders(pairs), measured, strict=True)]
    node, sb3 = measured[-1]
    where = circumstances(node.facts, load, sb3.versions)
    if as_json:
        document = {
            **_document(config, seconds, warmup_s, where),
            "pairs": [{"order": pair.order, "zpala": pair.a, "sb3": pair.b, "ratio": pair.ratio} for pair in found],
            "summary": asdict(summarise(found)),
            "calibration": calibration,
            "zpala": {"device": node.device, "threads": node.threads, "parameters": node.parameters, "stages_ms": node.stages_ms},
            "sb3": {key: value for key, value in asdict(sb3).items() if key in ("device", "threads", "parameters", "start_method")},
        }
        _say(json.dumps(document, indent=2), output)
    else:
        _say(comparison_text(config, found, node, sb3, calibration, where, seconds, warmup_s), output)
    return ExitCode.FINISHED


def sb3_settings(config: Config, *, seconds: float, warmup_s: float, threads: int) -> Sb3Settings:
    """The same game, protocol and hyper-parameters for stable-baselines3. Raises ConfigError for what it cannot do alike."""
    from zpala.rl.environment_names import AtariGame, UnknownEnvironment, UnsupportedEnvironment, resolve

    e, a = config.environment, config.algorithm
    try:
        game = resolve(e.id)
    except (UnknownEnvironment, UnsupportedEnvironment) as error:
        raise ConfigError(f"environment.id: {error}") from None
    if not isinstance(game, AtariGame):
        raise ConfigError(f"environment.id: {e.id!r} is no Atari game, and only there both have the same network. Use zpala bench node.")
    if config.network.name not in ("auto", "nature_cnn") or config.network.separate_critic is True:
        raise ConfigError(
            f"network.name: {config.network.name!r}; stable-baselines3's network for images is nature_cnn with a shared critic. "
            "Set network.name = nature_cnn and network.separate_critic = false."
        )
    if e.life_loss or e.max_episode_steps is not None:
        raise ConfigError("environment: life_loss and max_episode_steps are zpala's alone; leave them out of the comparison.")
    if a.name not in OPTIMIZERS:
        raise ConfigError(f"algorithm.name: {a.name!r}; bench sb3 compares {' and '.join(OPTIMIZERS)}. Set one of them.")
    if config.network.core != "none":
        raise ConfigError("network.core: stable-baselines3 has no memory. Set network.core = none.")
    if config.optimizer.name != OPTIMIZERS[a.name]:
        raise ConfigError(
            f"optimizer.name: {config.optimizer.name!r}; stable-baselines3's {a.name} is compared with {OPTIMIZERS[a.name]}. Set it so."
        )
    ppo = {
        "n_epochs": config.ppo.epochs,
        "batch_size": config.ppo.minibatch_size,
        "clip_range": config.ppo.clip_range,
        "clip_range_vf": config.ppo.clip_range_values,
        "target_kl": config.ppo.target_kl,
    }
    return Sb3Settings(
        algorithm=a.name,
        ppo=ppo,
        game=f"ALE/{''.join(part.capitalize() for part in game.rom.split('_'))}-v5",
        num_envs=e.num_envs,
        seconds=seconds,
        warmup_s=warmup_s,
        threads=threads,
        device=config.node.device,
        seed=config.run.seed,
        frame_skip=e.frame_skip,
        sticky_action_probability=e.sticky_action_probability,
        noop_max=e.noop_max,
        max_episode_frames=e.max_episode_frames,
        full_action_space=e.full_action_space,
        num_steps=a.num_steps,
        gamma=a.gamma,
        entropy_coefficient=a.entropy_coefficient,
        value_coefficient=a.value_coefficient,
        max_grad_norm=a.max_grad_norm,
        gae_lambda=a.gae_lambda,
        normalize_advantage=a.name == "ppo" if a.normalize_advantage == "auto" else a.normalize_advantage,
        clip_rewards=a.clip_rewards,
        lr=config.optimizer.lr,
        epsilon=config.optimizer.epsilon,
    )


def measure_sb3(settings: Sb3Settings) -> Sb3Speed:
    """One measurement of stable-baselines3. Raises ChildFailed."""
    command = [sys.executable, "-m", "zpala.tools.bench_sb3", json.dumps(asdict(settings))]
    with Child("stable-baselines3", command, {}) as child:
        for event in child.events(settings.seconds + settings.warmup_s + 180.0):
            if event.pop("event", None) == "sb3":
                return Sb3Speed(**event)
    raise ChildFailed("stable-baselines3 ended without a figure.", ExitCode.UNEXPECTED)


def calibrate(settings: Sb3Settings, measure: Callable[[Sb3Settings], Sb3Speed] = measure_sb3) -> dict[int, float]:
    """Threads of torch -> speed of stable-baselines3 in a short measurement, for one thread and for one per core."""
    found: dict[int, float] = {}
    for threads in sorted({1, cores_here()}):
        short = Sb3Settings(**{**asdict(settings), "threads": threads, "seconds": settings.seconds / CALIBRATION_SHARE})
        found[threads] = measure(short).sps
        _progress(f"stable-baselines3 with {threads} thread(s): {found[threads]:.0f} env_steps/s")
    return found


def _measure_pair(order: str, config: Config, settings: Sb3Settings) -> tuple[NodeSpeed, Sb3Speed]:
    """Both one after the other, zpala first when ``order`` is "AB"."""

    def node() -> NodeSpeed:
        return measure_node(config, seconds=settings.seconds, warmup_s=settings.warmup_s)

    if order == "AB":
        a, b = node(), measure_sb3(settings)
    else:
        b, a = measure_sb3(settings), node()
    _progress(f"{order}: zpala {a.sps:.0f}, sb3 {b.sps:.0f}, ratio {a.sps / b.sps:.2f}")
    return a, b


def _document(config: Config, seconds: float, warmup_s: float, where: Circumstances) -> dict[str, Any]:
    e, a = config.environment, config.algorithm
    return {
        "environment": e.id,
        "num_envs": e.num_envs,
        "num_steps": a.num_steps,
        "preset": config.preset,
        "seconds_asked": seconds,
        "warmup_s": warmup_s,
        "circumstances": asdict(where),
    }


def _with_threads(settings: Sb3Settings, threads: int) -> Sb3Settings:
    return Sb3Settings(**{**asdict(settings), "threads": threads})


def _failed(error: ChildFailed) -> int:
    sys.stderr.write(f"zpala: {error}\n")
    return error.exit_code


def _progress(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _say(text: str, output: IO[str] | None) -> None:
    (output or sys.stdout).write(text + "\n")
