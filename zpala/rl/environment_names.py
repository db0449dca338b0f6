"""What the name of an environment means: an Atari game, a Gymnasium id, or a factory of the user's. Makes nothing and starts nothing.

=============================================  ==============================================================================
``ALE/Pong-v5``, ``PongNoFrameskip-v4``,       the Atari game. The versions differ only in settings, and settings come from
``pong``                                       ``AtariSettings`` alone: all of these names mean the same
``CartPole-v1``, ``module:Id-v0``              registered in Gymnasium, the second after importing ``module``
``module:factory``, ``path/to/file.py:factory``  a callable that returns a ``gymnasium.Env`` or a ``gymnasium.vector.VectorEnv``
=============================================  ==============================================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ale_py  # registers the Atari ids
import gymnasium
from ale_py import roms

from zpala.rl.user_modules import NoSuchModule, import_named


class UnknownEnvironment(ValueError):
    """No environment has this name; the text offers the closest ones."""


class UnsupportedEnvironment(ValueError):
    """The environment exists, but zpala cannot learn it; the text names what is in the way."""


@dataclass(frozen=True, slots=True)
class AtariGame:
    rom: str  # such as "pong"


@dataclass(frozen=True, slots=True)
class GymnasiumId:
    id: str


@dataclass(frozen=True, slots=True)
class Factory:
    name: str  # as agreed with the other nodes: no path of this machine
    make: Callable[..., Any]


def resolve(env_id: str) -> AtariGame | GymnasiumId | Factory:
    """Says what ``env_id`` names; imports the module of a ``module:...`` name.

    Raises:
        UnknownEnvironment: nothing has this name.
        UnsupportedEnvironment: an Atari id whose observations are RAM.
    """
    if ":" in env_id:
        return _resolve_in_module(env_id)
    if env_id in roms.get_all_rom_ids():
        return AtariGame(env_id)
    registered = gymnasium.registry.get(env_id)
    if registered is None:
        raise UnknownEnvironment(_unknown(env_id))
    if str(registered.entry_point).startswith(ale_py.__name__):
        if registered.kwargs.get("obs_type", "rgb") == "ram":
            raise UnsupportedEnvironment(f"environment {env_id!r} observes the RAM of the console; zpala learns Atari from images")
        return AtariGame(str(registered.kwargs["game"]))
    return GymnasiumId(env_id)


def _resolve_in_module(env_id: str) -> GymnasiumId | Factory:
    module_name, _, attribute = env_id.rpartition(":")
    try:
        module = import_named(module_name, attribute, "environment")
    except NoSuchModule as error:
        raise UnknownEnvironment(f"environment {env_id!r}: {error}") from None
    made = getattr(module, attribute, None)
    if callable(made):
        return Factory(f"{Path(module_name).name if module_name.endswith('.py') else module_name}:{attribute}", made)
    if attribute in gymnasium.registry:
        return GymnasiumId(attribute)
    callables = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    close = difflib.get_close_matches(attribute, callables, n=3, cutoff=0.4)
    hint = f" Closest there: {', '.join(close)}." if close else ""
    raise UnknownEnvironment(
        f"environment {env_id!r}: {module_name} has no callable {attribute!r} and registers no environment of that name.{hint}"
    )


def _unknown(env_id: str) -> str:
    names = {name.lower(): name for name in [*gymnasium.registry, *roms.get_all_rom_ids()]}
    close = [names[name] for name in difflib.get_close_matches(env_id.lower(), names, n=4, cutoff=0.6)]
    hint = f"Did you mean {', '.join(close)}?" if close else "No registered name is close to it."
    return f"there is no environment {env_id!r}. {hint} An environment of your own is named module:factory or path/to/file.py:factory."
