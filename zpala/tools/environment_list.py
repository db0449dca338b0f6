"""What ``zpala env list`` prints: the names that ``--env`` takes and that are installed here, and what zpala makes of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import ale_py
import gymnasium
from ale_py import roms

from zpala.config import ConfigError
from zpala.config_source import closest
from zpala.rl.environment_names import UnsupportedEnvironment
from zpala.rl.environments import environment_spec
from zpala.rl.simulators import plain_environment

CUSTOM = "module:factory or path/to/file.py:factory; the factory returns a gymnasium.Env, or takes num_envs and returns a VectorEnv"


@dataclass(frozen=True, slots=True)
class Game:
    """An Atari game: its own name and the ids that mean the same, the newest first."""

    id: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Registered:
    """A Gymnasium id that can be made here. ``problem`` says why zpala cannot learn it, "" if it can."""

    id: str
    observation: str
    action: str
    problem: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What there is, and how many ids more there would be with other packages."""

    atari: tuple[Game, ...]
    gymnasium: tuple[Registered, ...]
    not_installed: int

    def text(self) -> str:
        """One line per environment, in three groups."""
        lines = []
        if self.atari:
            lines += ["Atari: every name of a game means the same; frame skip and the like are settings", ""]
            lines += [f"  {game.id:<20} {game.names[0] if game.names else ''}".rstrip() for game in self.atari] + [""]
        if self.gymnasium:
            lines += ["Gymnasium", ""]
            width = max(len(entry.id) for entry in self.gymnasium)
            for entry in self.gymnasium:
                use = f"observation {entry.observation}, action {entry.action}" if not entry.problem else f"not for zpala: {entry.problem}"
                lines.append(f"  {entry.id:<{width}} {use}")
            lines.append("")
        if self.not_installed:
            lines += [f"{self.not_installed} more Gymnasium ids need packages that are not installed.", ""]
        return "\n".join([*lines, f"Your own: {CUSTOM}."])

    def json(self) -> str:
        """The same as one JSON document."""
        return json.dumps({**asdict(self), "custom": CUSTOM}, indent=2)


def listing(word: str = "") -> Listing:
    """The environments that have ``word`` in one of their names, in any case.

    Raises:
        ConfigError: there is none.
    """
    games = tuple(game for game in _games() if any(word.lower() in name.lower() for name in (game.id, *game.names)))
    ids = [name for name, spec in gymnasium.registry.items() if not str(spec.entry_point).startswith(ale_py.__name__)]
    found = [entry for entry in (_look_at(name) for name in ids if word.lower() in name.lower()) if entry is not None]
    if not games and not found:
        raise ConfigError(f"no installed environment has {word!r} in its name. {closest(word, [*roms.get_all_rom_ids(), *ids])}")
    missing = 0 if word else len(ids) - len(found)
    return Listing(games, tuple(found), missing)


def _games() -> Sequence[Game]:
    names: dict[str, list[str]] = {rom: [] for rom in roms.get_all_rom_ids()}
    for name, spec in gymnasium.registry.items():
        if str(spec.entry_point).startswith(ale_py.__name__) and spec.kwargs.get("obs_type", "rgb") != "ram":
            names[str(spec.kwargs["game"])].append(name)
    return [Game(rom, tuple(sorted(names[rom], key=lambda name: (not name.startswith("ALE/"), name)))) for rom in sorted(names)]


def _look_at(name: str) -> Registered | None:
    """None where it cannot be made here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions
        try:
            env = plain_environment(name)
        except Exception:  # a package that is missing says so in many ways
            return None
        if env is None:
            return None
        observation, action = str(env.observation_space).replace("\n", ""), str(env.action_space)
        env.close()
        try:
            spec = environment_spec(name)
        except UnsupportedEnvironment as error:
            return Registered(name, observation, action, str(error).partition(": ")[2].partition(". ")[0])
        return Registered(name, spec.observation(), spec.actions.describe(), "")
