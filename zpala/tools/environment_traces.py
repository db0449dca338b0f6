"""Environments played by chance and looked at closely: what each returned, what is wrong with it, and where two ways of playing differ.

Owns the comparison of zpala's vector path with plain environments of the same seeds and actions. What follows from it is said in
``environment_check``.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py import roms
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from zpala.rl.action_spaces import for_simulator
from zpala.rl.environments import Environments, Episode, StepRow
from zpala.rl.observations import Packing, leaves, packing_of, unpack
from zpala.rl.simulators import AtariSettings

Array = NDArray[Any]


class Broken(Exception):
    """An environment raised, or returned what cannot be taken apart; the text says where."""


@dataclass(slots=True)
class Complaints:
    """What is wrong, each kind once: the first text and how often."""

    texts: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, text: str) -> None:
        self.texts.setdefault(kind, text)
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def __iter__(self) -> Iterator[str]:
        for kind, text in self.texts.items():
            count = self.counts[kind]
            yield text if count == 1 else f"{text} ({count} times)"


@dataclass(slots=True)
class Trace:
    """One environment, step by step. ``observations[t]`` follows step t; where the game ended there, ``begun[t]`` begins the next one."""

    first: Array
    observations: list[Array] = field(default_factory=list)
    begun: dict[int, Array] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rewards)

    def games(self) -> list[tuple[float, int, bool]]:
        """(return, length, truncated) of every game that ended, added up from the rewards."""
        found, start = [], 0
        for t in sorted(self.begun):
            found.append((float(np.sum(self.rewards[start : t + 1])), t + 1 - start, self.truncated[t]))
            start = t + 1
        return found


def play_alone(env: gymnasium.Env[Any, Any], seed: int, actions: Array, limit_s: float, complaints: Complaints) -> Trace:
    """Plays ``env`` from its seed on until the actions or the time are used up, and looks at all that it returns.

    Raises:
        Broken: it could not be played any further.
    """
    deadline = time.monotonic() + limit_s
    packing = packing_of(env.observation_space)
    trace = Trace(_reset(env, seed, "the first reset", complaints, packing))
    for t, action in enumerate(for_simulator(env.action_space)(actions)):
        where = f"step {t}"
        returned = _call(where, env.step, action)
        if not isinstance(returned, tuple) or len(returned) != 5:
            raise Broken(
                f"{where} returned {_kind(returned)}, not the five values observation, reward, terminated, truncated and info of Gymnasium"
            )
        observation, reward, terminated, truncated, info = returned
        trace.observations.append(look_at_observation(observation, env.observation_space, where, complaints, packing))
        trace.rewards.append(_look_at_reward(reward, where, complaints))
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, bool | np.bool_):
                complaints.add(name, f"{name}: {where} returned {_kind(flag)}, not a bool")
        if not isinstance(info, dict):
            complaints.add("info", f"info: {where} returned {_kind(info)}, not a dict")
        trace.terminated.append(bool(terminated))
        trace.truncated.append(bool(truncated))
        if terminated or truncated:
            trace.begun[t] = _reset(env, None, f"the reset after step {t}", complaints, packing)
        if time.monotonic() > deadline:
            break
    return trace


def _reset(env: gymnasium.Env[Any, Any], seed: int | None, where: str, complaints: Complaints, packing: Packing | None) -> Array:
    returned = _call(where, env.reset, seed=seed)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise Broken(f"{where} returned {_kind(returned)}, not the two values observation and info of Gymnasium")
    return look_at_observation(returned[0], env.observation_space, where, complaints, packing)


def _call(where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:  # whatever somebody else's class may raise
        raise Broken(f"{where} raised {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Type, text, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def look_at_observation(
    observation: Any, space: spaces.Space[Any], where: str, complaints: Complaints, packing: Packing | None = None
) -> Array:
    """A copy of ``observation``, after all that its space says of it has been compared. With ``packing`` it is of parts, and packed."""
    if packing is None:
        return _look_at_array(observation, space, "observation", where, complaints)
    for path, leaf in leaves(space):
        value, name = observation, "observation"
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                raise Broken(f"{name}: {where} returned {_kind(value)}, not a dict with {key!r}")
            value, name = value[key], f"{name}[{key!r}]"
        if isinstance(leaf, spaces.Box):
            _look_at_array(value, leaf, name, where, complaints)
        elif not leaf.contains(value):
            complaints.add(f"value of {name}", f"{name}: {where} returned {value!r}, which is not in {leaf}")
    rows = np.zeros((1, packing.row_bytes), np.uint8)
    try:
        packing.pack(observation, rows)
    except (TypeError, ValueError) as error:
        raise Broken(f"{where} returned an observation that cannot be stored: {error}") from error
    return rows.reshape(-1)


def _look_at_array(value: Any, space: spaces.Space[Any], name: str, where: str, complaints: Complaints) -> Array:
    if not isinstance(value, np.ndarray | np.generic):
        complaints.add(f"type of {name}", f"{name}: {where} returned {_kind(value)}, not a NumPy array")
        try:
            return np.array(value)
        except ValueError as error:
            raise Broken(f"{where} returned an observation that is no array of numbers: {error}") from error
    array = np.asarray(value)
    if not isinstance(space, spaces.Box):
        return np.array(array)
    if array.dtype != space.dtype:
        complaints.add(f"dtype of {name}", f"{name}: {where} returned {array.dtype}, its space says {space.dtype}")
        if array.dtype.kind not in "biuf":  # texts and objects have no size to compare
            return np.array(array)
    if array.shape != space.shape:
        complaints.add(f"shape of {name}", f"{name}: {where} returned the shape {array.shape}, its space says {space.shape}")
        return np.array(array)
    finite = np.isfinite(array)
    if not finite.all():
        index = _first(~finite)
        complaints.add(f"finite {name}", f"{name}: {where} returned {array[index]} at {_at(index)}")
    outside = finite & ((array < space.low) | (array > space.high))
    if outside.any():
        index = _first(outside)
        complaints.add(
            f"bounds of {name}",
            f"{name}: {where} returned {array[index]} at {_at(index)}, outside its space, {space.low[index]} to {space.high[index]}",
        )
    return np.array(array)


def _look_at_reward(reward: Any, where: str, complaints: Complaints) -> float:
    if not isinstance(reward, int | float | np.number | np.bool_):
        complaints.add("reward", f"reward: {where} returned {_kind(reward)}, not a number")
        try:
            return float(np.asarray(reward, dtype=np.float64).reshape(-1)[0])
        except (TypeError, ValueError, IndexError):
            raise Broken(f"{where} returned the reward {reward!r}, which is no number") from None
    if not np.isfinite(reward):
        complaints.add("finite reward", f"reward: {where} returned {reward}")
    return float(reward)


def difference(one: Trace, other: Trace) -> str:
    """Where two traces of the same seed and actions differ first, "" where they do not; the shorter one counts."""
    if not np.array_equal(one.first, other.first, equal_nan=_floats(one.first)):
        return "the first observation"
    for t in range(min(len(one), len(other))):
        pairs = [(one.observations[t], other.observations[t], "observation")]
        if t in one.begun and t in other.begun:
            pairs.append((one.begun[t], other.begun[t], "observation of the next game"))
        for name in ("terminated", "truncated"):
            if getattr(one, name)[t] != getattr(other, name)[t]:
                return f"{name} at step {t}"
        for a, b, name in pairs:
            if not np.array_equal(a, b, equal_nan=_floats(a)):
                return f"the {name} at step {t}"
        if not np.array_equal(one.rewards[t], other.rewards[t], equal_nan=True):
            return f"the reward at step {t}"
    return ""


def compare_with(traces: list[Trace], environments: Environments, actions: list[Array], tolerance: float) -> tuple[str, int]:
    """Plays ``environments`` with the actions of the traces and compares what they write into a rollout's memory.

    Args:
        traces: one for each environment, of the same seed and actions.
        tolerance: of numbers, relative and absolute; 0: equal to the bit.
    Returns:
        The first difference, "" if there is none, and the steps compared. "first" alone: the games do not begin in the same way.
    """
    spec = environments.spec
    n, shape, dtype = environments.num_envs, spec.observation_shape, spec.observation_dtype

    def same(a: Array, b: Array) -> bool:
        b = b.astype(dtype)
        if tolerance and spec.parts:
            pairs = zip(unpack(spec.parts, a).values(), unpack(spec.parts, b).values(), strict=True)
            return all(np.allclose(one, other, rtol=tolerance, atol=tolerance) for one, other in pairs)
        return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance)) if tolerance else np.array_equal(a, b)

    row = memory(n, shape, dtype)
    environments.reset(row.next_observation)
    if not all(same(row.next_observation[i], trace.first) for i, trace in enumerate(traces)):
        return "first", 0
    at = [0] * n  # the step of its trace that each environment is at
    games: list[list[tuple[float, int]]] = [[] for _ in range(n)]
    while all(at[i] < len(traces[i]) for i in range(n)):
        ended = environments.step(np.stack([actions[i][at[i]] for i in range(n)]), row)
        for episode in ended:
            games[episode.environment].append((episode.return_, episode.length))
        for i, trace in enumerate(traces):
            t = at[i]
            where = f"of environment {i} of {n} at its step {t}"
            if not row.valid[i]:
                if not same(row.next_observation[i], trace.begun[t - 1]):
                    return f"the first observation of the game after step {t - 1} of environment {i} of {n}", sum(at)
                continue
            at[i] += 1
            over = t in trace.begun
            if (bool(row.terminated[i]), bool(row.truncated[i])) != (trace.terminated[t], trace.truncated[t]):
                return f"terminated or truncated {where}", sum(at)
            if not np.isclose(row.reward[i], np.float32(trace.rewards[t]), rtol=tolerance, atol=tolerance):
                return f"the reward {where}", sum(at)
            if over and not same(row.final_observation[i], trace.observations[t]):
                return f"the final observation {where}", sum(at)
            expected = trace.begun[t] if over and not environments.resets_on_next_step else trace.observations[t]
            if not same(row.next_observation[i], expected):
                return f"the observation {where}", sum(at)
    for i, trace in enumerate(traces):
        expected_games = [(return_, length) for return_, length, _ in trace.games()][: len(games[i])]
        if not np.allclose(games[i], expected_games, rtol=1e-5):
            return f"the returns or lengths of the games of environment {i} of {n}", sum(at)
    return "", sum(at)


def memory(n: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> StepRow:
    """Memory for one step of ``n`` environments, as a rollout has it."""
    flags = [np.zeros(n, np.bool_) for _ in range(3)]
    return StepRow(np.zeros((n, *shape), dtype), np.zeros(n, np.float32), flags[0], flags[1], flags[2], np.zeros((n, *shape), dtype))


def look_at_vectors(env: VectorEnv[Any, Any, Any], seed: int, actions: Array, complaints: Complaints) -> list[Array]:
    """Plays a vector environment that is nobody's but itself: actions [T, n, ...]. Returns what it gave, to be compared with a repetition.

    Raises:
        Broken: it could not be played any further.
    """
    n, space = env.num_envs, env.single_observation_space
    packing = packing_of(space)
    translate = for_simulator(env.single_action_space)
    mode = env.metadata.get("autoreset_mode")
    first = _call("the first reset", env.reset, seed=seed)
    given = [_look_at_batch(first[0], space, n, "the first reset", complaints, packing)]
    resetting = np.zeros(n, dtype=np.bool_)
    for t, action in enumerate(actions):
        where = f"step {t}"
        returned = _call(where, env.step, translate(action))
        if not isinstance(returned, tuple) or len(returned) != 5:
            raise Broken(f"{where} returned {_kind(returned)}, not the five values of Gymnasium's vector environments")
        observation, reward, terminated, truncated, info = returned
        given.append(_look_at_batch(observation, space, n, where, complaints, packing))
        for name, values in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
            if np.shape(values) != (n,):
                raise Broken(f"{name}: {where} returned the shape {np.shape(values)}, not ({n},)")
        given += [np.array(reward), np.array(terminated), np.array(truncated)]
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if np.asarray(flag).dtype != np.bool_:
                complaints.add(name, f"{name}: {where} returned {np.asarray(flag).dtype}, not bool")
        if not np.isfinite(reward).all():
            complaints.add("finite reward", f"reward: {where} returned {reward}")
        ended = np.logical_or(terminated, truncated)
        if mode == AutoresetMode.NEXT_STEP:
            if np.asarray(reward)[resetting].any() or ended[resetting].any():
                complaints.add(
                    "reset step",
                    f"autoreset: {where} should only begin the next game (NEXT_STEP), but it returned a reward or an end",
                )
            resetting = ended & ~resetting
        elif ended.any():
            final = info.get("final_obs")
            if final is None:
                raise Broken(f"autoreset: {where} ended a game (SAME_STEP), but its info has no final_obs")
            for i in np.flatnonzero(ended):
                look_at_observation(final[i], space, f"final_obs of {where}", complaints, packing)
    return given


def _look_at_batch(
    observation: Any, space: spaces.Space[Any], n: int, where: str, complaints: Complaints, packing: Packing | None
) -> Array:
    return np.stack([look_at_observation(_one_of(observation, i, n, where), space, where, complaints, packing) for i in range(n)])


def _one_of(observation: Any, i: int, n: int, where: str) -> Any:
    """The observation of environment ``i`` of ``n``; of parts, where the observations are."""
    if isinstance(observation, Mapping):
        return {key: _one_of(value, i, n, where) for key, value in observation.items()}
    if not isinstance(observation, np.ndarray) or len(observation) != n:
        raise Broken(f"observation: {where} returned {_kind(observation)}, not an array of {n} observations")
    return observation[i]


def emulate(game: str, actions: Array, atari: AtariSettings, max_episode_steps: int | None) -> Trace:
    """An Atari game on a plain emulator, without no-ops and sticky actions: rewards and ends only, no pictures."""
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.setInt("max_num_frames_per_episode", atari.max_episode_frames)
    path = roms.get_rom_path(game)
    if path is None:
        raise ValueError(f"there is no game {game!r}")
    emulator.loadROM(path)
    legal = emulator.getLegalActionSet() if atari.full_action_space else emulator.getMinimalActionSet()

    def begin() -> None:
        emulator.reset_game()
        if ale_py.Action.FIRE in legal:
            emulator.act(ale_py.Action.FIRE)

    nothing = np.zeros(0)
    trace = Trace(nothing)
    begin()
    lives, length = emulator.lives(), 0
    for t, action in enumerate(actions):
        reward = 0.0
        for _ in range(atari.frame_skip):
            reward += emulator.act(legal[int(action)])
            if emulator.game_over():
                break
        length += 1
        over = emulator.game_over(with_truncation=False)
        lost = atari.life_loss and 0 < emulator.lives() < lives
        cut = emulator.game_truncated() or (not over and max_episode_steps is not None and length >= max_episode_steps)
        trace.rewards.append(reward)
        trace.terminated.append(over or (lost and not emulator.game_truncated()))
        trace.truncated.append(cut)
        if over or cut:
            trace.begun[t] = nothing
            begin()
            length = 0
        lives = emulator.lives()
    return trace


def compare_with_emulator(trace: Trace, environments: Environments, actions: Array) -> str:
    """Where one Atari game of the vector path differs from the emulator first, "" if nowhere."""
    row = memory(1, environments.spec.observation_shape, environments.spec.observation_dtype)
    environments.reset(row.next_observation)
    games: list[Episode] = []
    for t, action in enumerate(actions):
        games += environments.step(np.array([action], dtype=np.int64), row)
        for name, found, expected in (
            ("reward", float(row.reward[0]), trace.rewards[t]),
            ("terminated", bool(row.terminated[0]), trace.terminated[t]),
            ("truncated", bool(row.truncated[0]), trace.truncated[t]),
        ):
            if found != expected:
                return f"{name} at step {t}: {found}, the emulator says {expected}"
    if [(game.return_, game.length) for game in games] != [(return_, length) for return_, length, _ in trace.games()]:
        return "the returns of whole games"
    return ""


def _floats(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.inexact))


def _first(where: Array) -> tuple[int, ...]:
    return tuple(int(index) for index in np.argwhere(where)[0])


def _at(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
