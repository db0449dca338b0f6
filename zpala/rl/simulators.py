"""Simulators made from a name: one environment by itself, or a Gymnasium vector environment of several, whatever their spaces.

Owns the protocol of Atari games, the choice between native vector environments and several plain ones, and where a time limit is put.
Steps nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
from ale_py.vector_env import AtariVectorEnv
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

from zpala.rl.environment_names import AtariGame, Factory, GymnasiumId, UnsupportedEnvironment, resolve


@dataclass(frozen=True, slots=True)
class AtariSettings:
    """The protocol of Atari games, wherever their name came from (Machado et al. 2018, arXiv 1709.06009, is about these choices).

    ``life_loss``: a lost life is ``terminated``, so that nothing beyond it is bootstrapped, while the game and its return go on (as Mnih et
    al. 2015 trained; Machado et al. advise against it). The last life is the end of the game itself. Some games have no lives to lose.
    """

    frame_skip: int = 4
    sticky_action_probability: float = 0.0
    noop_max: int = 30
    max_episode_frames: int = 108_000
    full_action_space: bool = False
    life_loss: bool = False


def vector_environment(
    env_id: str,
    num_envs: int,
    *,
    num_threads: int = 1,
    args: Mapping[str, object] | None = None,
    atari: AtariSettings | None = None,
    max_episode_steps: int | None = None,
) -> VectorEnv[Any, Any, Any]:
    """The Gymnasium vector environment below ``make_environments``, of any spaces; Atari's time limit is not in it."""
    named, args, atari = resolve(env_id), dict(args or {}), atari or AtariSettings()
    if isinstance(named, AtariGame):
        return _atari(env_id, named, num_envs, num_threads, args, atari)
    if atari.life_loss:
        raise UnsupportedEnvironment(
            f"environment {env_id!r}: life_loss is for Atari games; an environment of your own can set terminated when a life is lost"
        )
    return _vector(env_id, named, num_envs, args, max_episode_steps)


def plain_environment(
    env_id: str, args: Mapping[str, object] | None = None, max_episode_steps: int | None = None
) -> gymnasium.Env[Any, Any] | None:
    """One environment by itself, of any spaces: what ``make_environments`` steps several of.

    Returns:
        None where there is no such thing: Atari, and factories that take ``num_envs``.
    Raises:
        UnknownEnvironment, UnsupportedEnvironment.
    """
    named, given = resolve(env_id), dict(args or {})
    if isinstance(named, AtariGame) or (isinstance(named, Factory) and _is_vector_factory(named)):
        return None
    return _plain(env_id, named, given, max_episode_steps)


def _atari(
    env_id: str, game: AtariGame, num_envs: int, num_threads: int, args: Mapping[str, object], atari: AtariSettings
) -> VectorEnv[Any, Any, Any]:
    if args:
        raise UnsupportedEnvironment(f"environment {env_id!r}: Atari takes no args ({', '.join(args)}); its settings are in [environment]")
    env: VectorEnv[Any, Any, Any] = AtariVectorEnv(
        game.rom,
        num_envs,
        num_threads=num_threads,
        max_num_frames_per_episode=atari.max_episode_frames,
        repeat_action_probability=atari.sticky_action_probability,
        full_action_space=atari.full_action_space,
        autoreset_mode=AutoresetMode.SAME_STEP,
        frameskip=atari.frame_skip,
        noop_max=atari.noop_max,
        episodic_life=False,  # would reset the whole game at every lost life
        reward_clipping=False,  # the raw score could not be recovered
    )
    return env


def _vector(
    env_id: str, named: GymnasiumId | Factory, num_envs: int, args: dict[str, Any], max_episode_steps: int | None
) -> VectorEnv[Any, Any, Any]:
    """A Gymnasium vector environment for a Gymnasium id or a factory: the native one where it exists (design D13)."""
    if isinstance(named, Factory):
        if _is_vector_factory(named):
            return _from_vector_factory(env_id, named, num_envs, args, max_episode_steps)
        made = [_plain(env_id, named, args, max_episode_steps) for _ in range(num_envs)]
        return SyncVectorEnv([partial(_same, env) for env in made], autoreset_mode=AutoresetMode.SAME_STEP)
    args = _with_limit(env_id, args, max_episode_steps)
    entry_point = gymnasium.registry[named.id].vector_entry_point
    try:
        if entry_point is not None and (max_episode_steps is None or _takes_limit(entry_point)):
            return gymnasium.make_vec(named.id, num_envs=num_envs, vectorization_mode="vector_entry_point", **args)
        vector_kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP}
        return gymnasium.make_vec(named.id, num_envs=num_envs, vectorization_mode="sync", vector_kwargs=vector_kwargs, **args)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UnsupportedEnvironment(f"environment {env_id!r} needs a package that is not installed: {error}") from error


def _is_vector_factory(factory: Factory) -> bool:
    return "num_envs" in inspect.signature(factory.make).parameters


def _from_vector_factory(
    env_id: str, factory: Factory, num_envs: int, args: dict[str, Any], max_episode_steps: int | None
) -> VectorEnv[Any, Any, Any]:
    if max_episode_steps is not None:
        if "max_episode_steps" not in inspect.signature(factory.make).parameters:
            raise UnsupportedEnvironment(
                f"environment {env_id!r}: nobody but a vector environment itself can cut its games off; give its factory a parameter "
                "max_episode_steps, or return a single gymnasium.Env"
            )
        args = _with_limit(env_id, args, max_episode_steps)
    env = factory.make(num_envs=num_envs, **args)
    if not isinstance(env, VectorEnv) or env.num_envs != num_envs:
        raise UnsupportedEnvironment(
            f"environment {env_id!r}: a factory that takes num_envs must return a gymnasium.vector.VectorEnv of {num_envs} "
            f"environments, not {env!r}"
        )
    return env


def _plain(env_id: str, named: GymnasiumId | Factory, args: dict[str, Any], max_episode_steps: int | None) -> gymnasium.Env[Any, Any]:
    if isinstance(named, GymnasiumId):
        try:
            return gymnasium.make(named.id, **_with_limit(env_id, args, max_episode_steps))
        except gymnasium.error.DependencyNotInstalled as error:
            raise UnsupportedEnvironment(f"environment {env_id!r} needs a package that is not installed: {error}") from error
    env = named.make(**args)
    if not isinstance(env, gymnasium.Env):
        raise UnsupportedEnvironment(
            f"environment {env_id!r}: the factory must return a gymnasium.Env, or take num_envs and return a "
            f"gymnasium.vector.VectorEnv, not {env!r}"
        )
    return env if max_episode_steps is None else TimeLimit(env, max_episode_steps)


def _same(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return env


def _takes_limit(entry_point: str | Callable[..., Any]) -> bool:
    make = entry_point if callable(entry_point) else load_env_creator(entry_point)
    parameters = inspect.signature(make).parameters.values()
    return any(p.name == "max_episode_steps" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _with_limit(env_id: str, args: dict[str, Any], max_episode_steps: int | None) -> dict[str, Any]:
    if max_episode_steps is None:
        return args
    if "max_episode_steps" in args:
        raise UnsupportedEnvironment(f"environment {env_id!r}: max_episode_steps is given twice, among its args and in [environment]")
    return {**args, "max_episode_steps": max_episode_steps}
