"""``zpala bench node --against sb3``: one node beside stable-baselines3's A2C or PPO, in pairs (``bench_pairs``), alike in what both have.

Same environments and number of them, network, optimiser, rollout and hyper-parameters. What stable-baselines3 leaves to the person, the
number of torch's threads and whether environments get processes of their own (SubprocVecEnv) or not (DummyVecEnv), is found out first: it
runs with what makes it fastest here. Every measurement is made in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from zpala.config import Config, ConfigError, load_config
from zpala.exit_codes import ExitCode
from zpala.rl.environments import EnvironmentSpec
from zpala.tools.bench_circumstances import circumstances, cores_here
from zpala.tools.bench_measurement import last_line
from zpala.tools.bench_node import NodeSpeed, measure_node
from zpala.tools.bench_pairs import Pair, orders, summarise
from zpala.tools.bench_report import Tried, comparison_text
from zpala.tools.bench_sb3 import VECTORS, Sb3Settings, Sb3Speed
from zpala.tools.child import Child, ChildFailed

# Presets of comparisons by algorithm, of Atari games and of everything else, unless a run file or the person says otherwise.
ATARI_PRESETS = {"a2c": "gala", "ppo": "ppo-atari"}
VECTOR_PRESETS = {"a2c": "cartpole", "ppo": "ppo-cartpole"}
ALGORITHMS = ("a2c", "ppo")  # what both have
CALIBRATION_SHARE = 3  # what suits stable-baselines3 is found in measurements of a third of the time
OPTIONAL_MODULES = ("stable_baselines3", "cv2")


def compare_with_sb3(
    run_file: Path | None,
    overrides: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    pairs: int,
    seconds: float,
    warmup_s: float,
    sb3_threads: int | None = None,
    sb3_vector: str | None = None,
    as_json: bool = False,
    output: IO[str] | None = None,
) -> int:
    """Compares a node with stable-baselines3's A2C or PPO in ``pairs`` pairs; returns the exit status.

    Args:
        sb3_threads: torch threads of stable-baselines3; None: whichever of 1 and the number of cores is faster here.
        sb3_vector: "subproc" or "dummy"; None: whichever is faster here.
    Raises:
        ConfigError: wrong settings, something that both cannot do alike, or the extra ``bench`` is not installed; nothing was started.
        UsageError: there is no such environment.
    """
    if sb3_vector is not None and sb3_vector not in VECTORS:
        raise ConfigError(f"--sb3-vector {sb3_vector}: expected {' or '.join(VECTORS)}.")
    config = _load(run_file, overrides, environ)
    wanted = sb3_settings(config, seconds=seconds, warmup_s=warmup_s, threads=sb3_threads or 1, vector=sb3_vector or next(iter(VECTORS)))
    if missing := [module for module in OPTIONAL_MODULES if importlib.util.find_spec(module) is None]:
        raise ConfigError(
            f"--against sb3 needs {', '.join(missing)}, which is not installed: pip install -c constraints.txt -e '.[bench]'."
        )
    load = os.getloadavg()[0]
    try:
        tried = calibrate(wanted, sb3_threads, sb3_vector)
        if tried:
            fastest = max(tried, key=lambda one: one.sps)
            wanted = replace(wanted, threads=fastest.threads, vector=fastest.vector)
        measured = [_measure_pair(order, config, wanted) for order in orders(pairs)]
    except ChildFailed as error:
        sys.stderr.write(f"zpala: {error}\n")
        return error.exit_code
    found = [Pair(order, node.sps, sb3.sps) for order, (node, sb3) in zip(orders(pairs), measured, strict=True)]
    node, sb3 = measured[-1]
    where = circumstances(node.facts, load, sb3.versions)
    if as_json:
        summary, e, a = summarise(found), config.environment, config.algorithm
        document = {
            "against": "sb3",
            "steps_per_second": summary.a_median,
            "sb3_steps_per_second": summary.b_median,
            "ratio": summary.ratio_median,
            "ratio_low": summary.ratio_low,
            "ratio_high": summary.ratio_high,
            "environment": e.id,
            "algorithm": a.label,
            "num_envs": e.num_envs,
            "num_steps": a.num_steps,
            "preset": config.preset,
            "seconds_asked": seconds,
            "warmup_s": warmup_s,
            "pairs": [{"order": pair.order, "zpala": pair.a, "sb3": pair.b, "ratio": pair.ratio} for pair in found],
            "summary": asdict(summary),
            "calibration": [asdict(one) for one in tried],
            "zpala": {"device": node.device, "threads": node.threads, "parameters": node.parameters, "stages_ms": node.stages_ms},
            "sb3": {key: value for key, value in asdict(sb3).items() if key not in ("sps", "env_steps", "seconds", "versions")},
            "circumstances": asdict(where),
        }
        text = last_line(document)
    else:
        text = comparison_text(config, found, node, sb3, tried, where, seconds, warmup_s)
    (output or sys.stdout).write(text + "\n")
    return ExitCode.FINISHED


def _load(run_file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]) -> Config:
    """The run file, or a preset that suits environment and algorithm."""
    config = load_config(run_file, overrides, environ)
    if config.preset is not None or run_file is not None:
        return config
    presets = ATARI_PRESETS if _atari_rom(config) is not None else VECTOR_PRESETS
    return load_config(None, {"preset": presets.get(config.algorithm.name, presets["a2c"]), **overrides}, environ)


def _atari_rom(config: Config) -> str | None:
    from zpala.rl.environment_names import AtariGame, UnknownEnvironment, UnsupportedEnvironment, resolve

    try:
        named = resolve(config.environment.id)
    except (UnknownEnvironment, UnsupportedEnvironment) as error:
        raise ConfigError(f"environment.id: {error}") from None
    return named.rom if isinstance(named, AtariGame) else None


def sb3_settings(config: Config, *, seconds: float, warmup_s: float, threads: int, vector: str) -> Sb3Settings:
    """The same environments, network and hyper-parameters for stable-baselines3. Raises ConfigError for what it cannot do alike."""
    rom = _atari_rom(config)
    e, a, n = config.environment, config.algorithm, config.network
    if a.name not in ALGORITHMS:
        raise ConfigError(f"algorithm.name: {a.name!r}; --against sb3 compares {' and '.join(ALGORITHMS)}. Set one of them.")
    if n.core != "none":
        raise ConfigError("network.core: stable-baselines3 has no memory. Set network.core = none.")
    if rom is not None:
        _check_images(config)
    else:
        _check_vectors(config)
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
        game=None if rom is None else f"ALE/{''.join(part.capitalize() for part in rom.split('_'))}-v5",
        environment=e.id,
        args=dict(e.args),
        max_episode_steps=e.max_episode_steps,
        vector=vector,
        hidden_sizes=list(n.hidden_sizes),
        activation=n.activation,
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
        optimizer=config.optimizer.name,
        epsilon=config.optimizer.epsilon,
    )


def _check_images(config: Config) -> None:
    e, n = config.environment, config.network
    if n.name not in ("auto", "nature_cnn") or n.separate_critic is True:
        raise ConfigError(
            f"network.name: {n.name!r}; stable-baselines3's network for images is nature_cnn with a shared critic. "
            "Set network.name = nature_cnn and network.separate_critic = false."
        )
    if e.life_loss or e.max_episode_steps is not None:
        raise ConfigError("environment: life_loss and max_episode_steps of Atari are zpala's alone; leave them out of the comparison.")


def _check_vectors(config: Config) -> None:
    from zpala.node.specification import specification
    from zpala.rl.simulators import plain_environment

    e, n = config.environment, config.network
    spec: EnvironmentSpec = specification(e)
    if spec.parts or spec.observation_dtype != "float32":
        raise ConfigError(
            f"environment.id: {e.id!r} gives {spec.observation()}; stable-baselines3 is compared on Atari games and on vectors of numbers. "
            "Use zpala bench node without --against."
        )
    if plain_environment(e.id, e.args, e.max_episode_steps) is None:
        raise ConfigError(
            f"environment.id: {e.id!r} is a vector environment, and stable-baselines3 takes single ones. "
            "Give a factory of a gymnasium.Env, without the parameter num_envs."
        )
    if n.name not in ("auto", "mlp") or n.separate_critic is False:
        raise ConfigError(
            f"network.name: {n.name!r}; stable-baselines3's network for vectors is an mlp with a tower each for policy and value. "
            "Set network.name = mlp and network.separate_critic = true."
        )
    if n.normalize_observations or n.squash_actions:
        raise ConfigError("network: normalize_observations and squash_actions are zpala's alone; leave them out of the comparison.")


def measure_sb3(settings: Sb3Settings) -> Sb3Speed:
    """One measurement of stable-baselines3. Raises ChildFailed."""
    command = [sys.executable, "-m", "zpala.tools.bench_sb3", json.dumps(asdict(settings))]
    with Child("stable-baselines3", command, {}) as child:
        for event in child.events(settings.seconds + settings.warmup_s + 180.0):
            if event.pop("event", None) == "sb3":
                return Sb3Speed(**event)
    raise ChildFailed("stable-baselines3 ended without a figure.", ExitCode.UNEXPECTED)


def calibrate(
    settings: Sb3Settings, threads: int | None, vector: str | None, measure: Callable[[Sb3Settings], Sb3Speed] | None = None
) -> Sequence[Tried]:
    """Short measurements of stable-baselines3: with each vector environment on one thread, then with one thread per core on the faster.

    Args:
        threads, vector: what the person asked for, and is not tried; None: everything.
        measure: as ``measure_sb3``.
    Returns:
        nothing where both were asked for.
    """
    found: list[Tried] = []

    def attempt(vector: str, threads: int) -> None:
        short = replace(settings, vector=vector, threads=threads, seconds=settings.seconds / CALIBRATION_SHARE)
        found.append(Tried(vector, threads, (measure or measure_sb3)(short).sps))
        _progress(f"stable-baselines3 with {found[-1]}")

    if vector is None:
        for name in VECTORS:
            attempt(name, threads or 1)
    elif threads is None:
        attempt(vector, 1)
    if threads is None and cores_here() > 1:
        attempt(max(found, key=lambda one: one.sps).vector, cores_here())
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


def _progress(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
