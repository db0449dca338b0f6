"""What ``zpala env check`` says of an environment: its spaces, how it ends and begins games, how fast it is, and what is wrong with it.

Owns the order of the looks and what follows from each: an error is something that zpala would learn wrongly from or stop at, a warning
something that a person should know. The looks themselves stand in ``environment_traces``.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from dataclasses import replace as changed
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv

from zpala.config import ConfigError, EnvironmentConfig
from zpala.rl.action_spaces import Actions, ActionSpace, for_simulator
from zpala.rl.environment_names import AtariGame, GymnasiumId, UnknownEnvironment, UnsupportedEnvironment, resolve
from zpala.rl.environments import Environments, EnvironmentSpec, environment_spec, make_environments
from zpala.rl.observations import unpack
from zpala.rl.simulators import plain_environment, vector_environment
from zpala.tools import environment_traces as traces
from zpala.tools.environment_traces import Broken, Complaints, Trace

STEPS = 4_000  # of all environments together
ALONE_LIMIT_S = 5.0  # then the environments play fewer steps
SPEED_S = 0.5
MEMORY_MAX = 256 * 10**6  # bytes of observations that are kept for the comparison
LARGE_OBSERVATION = 100.0
ROUNDING = 1e-4  # of a native vector environment, which computes in another order and type
_FIRST_SEED = 1_000
# What Gymnasium's checker warns of and zpala does not mind.
_HARMLESS = re.compile(r"infinity|unwrapped|render|passive|deprecat|out of date|not having a spec")
# What it refuses and the comparisons below decide: chance that no seed reaches, and observations that are changed after they were returned.
_DECIDED_BY_PLAY = re.compile(r"super\(\)\.reset\(seed=seed\)|[Dd]eterministic|share an object")


@dataclass(frozen=True, slots=True)
class Games:
    """The games that ended while the environments were looked at."""

    terminated: int
    truncated: int
    length_min: int
    length_max: int
    return_min: float
    return_mean: float
    return_max: float


@dataclass(slots=True)
class Examination:
    """One environment and what was found. Lines and numbers that could not be found out are None."""

    id: str
    kind: Literal["Atari", "Gymnasium", "factory", "vector factory"] | None = None
    observation: str | None = None
    stored_as: str | None = None
    action: str | None = None
    num_envs: int = 1
    vectors: str | None = None
    autoreset: str | None = None
    time_limit: str | None = None
    steps: int = 0
    reward_min: float | None = None
    reward_max: float | None = None
    games: Games | None = None
    compared: str | None = None
    steps_per_s_single: float | None = None
    steps_per_s_vector: float | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Would a run learn from what this environment means?"""
        return not self.errors

    def text(self) -> str:
        """What is known, then what is wrong."""
        rows: list[tuple[str, str | None]] = [
            ("environment", self.id if self.kind is None else f"{self.id} ({self.kind})"),
            ("usable", "yes" if self.usable else "no"),
            ("observation", self.observation if self.stored_as is None else f"{self.observation}, stored as {self.stored_as}"),
            ("action", self.action),
            ("autoreset", None if self.autoreset is None else f"{self.autoreset}, {self.vectors}"),
            ("time limit", self.time_limit),
            ("reward", None if self.reward_min is None else f"{self.reward_min:g} to {self.reward_max:g} in {self.steps:,} random steps"),
            ("games", self._games()),
            ("compared", self.compared),
            ("speed", self._speed()),
            *(("error", text) for text in self.errors),
            *(("warning", text) for text in self.warnings),
        ]
        return "\n".join(f"{name:<12} {text}" for name, text in rows if text is not None)

    def json(self) -> str:
        """The same as one JSON document."""
        return json.dumps({**asdict(self), "usable": self.usable}, indent=2)

    def _games(self) -> str | None:
        if self.games is None:
            return None
        games = self.games
        return (
            f"{games.terminated} terminated, {games.truncated} truncated; {games.length_min} to {games.length_max} env_steps; "
            f"return {games.return_min:g} to {games.return_max:g}, mean {games.return_mean:.4g}"
        )

    def _speed(self) -> str | None:
        if self.steps_per_s_vector is None:
            return None
        single = "" if self.steps_per_s_single is None else f"{self.steps_per_s_single:,.0f} env_steps/s of one, "
        return f"{single}{self.steps_per_s_vector:,.0f} of {self.num_envs} together, on this machine as it is now"


def examine(config: EnvironmentConfig, steps: int = STEPS) -> Examination:
    """Looks at the environment that ``config`` names.

    Raises:
        ConfigError: nothing has this name.
    """
    found = Examination(config.id, num_envs=config.num_envs)
    try:
        with _quiet():
            _examine(config, steps, found)
    except UnknownEnvironment as error:
        raise ConfigError(f"environment.id: {error}") from None
    except (Broken, UnsupportedEnvironment) as error:
        found.errors.append(str(error))
    except Exception as error:  # of somebody else's module, constructor or close
        found.errors.append(f"the environment raised {traces.describe(error)}")
    return found


def _examine(config: EnvironmentConfig, steps: int, found: Examination) -> None:
    named = resolve(config.id)
    if isinstance(named, AtariGame):
        found.kind = "Atari"
        _examine_atari(config, named, steps, found)
        return
    plain = plain_environment(config.id, config.args, config.max_episode_steps)
    if plain is None:
        found.kind = "vector factory"
        found.vectors = "a vector environment of the factory"
    else:
        found.kind = "Gymnasium" if isinstance(named, GymnasiumId) else "factory"
        found.observation, found.action = _line(plain.observation_space), _line(plain.action_space)
        plain.close()
    spec = _specify(config, found)
    if plain is None:
        _examine_vectors(config, spec, steps, found)
    else:
        _examine_plain(config, spec, steps, found)


def _specify(config: EnvironmentConfig, found: Examination) -> EnvironmentSpec:
    spec = environment_spec(config.id, config.args, config.atari_settings(), config.max_episode_steps)
    found.stored_as = spec.observation()
    return spec


def _examine_plain(config: EnvironmentConfig, spec: EnvironmentSpec, steps: int, found: Examination) -> None:
    """One environment after the other by itself; Gymnasium's checker; then all of them together beside what each did alone."""
    make = _maker(config)
    actions, alone = _play_alone(config, spec, steps, make, found)
    _describe_plain(config, spec, make, alone, found)
    if found.errors:
        found.compared = "no: mend the errors first"
    _run_gymnasium_checker(make, found)
    if found.compared is not None:
        return
    with contextlib.closing(make()) as env:
        again = traces.play_alone(env, _FIRST_SEED, actions[0][: len(alone[0])], ALONE_LIMIT_S, Complaints())
    if differs := traces.difference(alone[0], again):
        found.warnings.append(
            f"not deterministic: with the same seed and actions {differs} differed. Runs cannot be repeated, and whether the vector path "
            "is right could not be seen; use self.np_random after super().reset(seed=seed), and no other chance"
        )
        found.compared = "no: the environment is not deterministic"
    else:
        _compare(config, alone, actions, found)
    if found.errors:
        return
    with contextlib.closing(make()) as env:
        found.steps_per_s_single = _speed_alone(env, spec.actions)
    found.steps_per_s_vector = _speed(config, config.num_envs)


def _play_alone(
    config: EnvironmentConfig, spec: EnvironmentSpec, steps: int, make: Callable[[], gymnasium.Env[Any, Any]], found: Examination
) -> tuple[list[Actions], list[Trace]]:
    n = config.num_envs
    bytes_per_step = max(1, int(np.prod(spec.observation_shape)) * spec.observation_dtype.itemsize)
    length = max(2, min(steps, MEMORY_MAX // bytes_per_step) // n)
    rng = np.random.default_rng(0)
    actions = [spec.actions.sample(rng, length) for _ in range(n)]
    alone: list[Trace] = []
    complaints = Complaints()
    try:
        for i in range(n):
            with contextlib.closing(make()) as env:
                alone.append(traces.play_alone(env, _FIRST_SEED + i, actions[i][:length], ALONE_LIMIT_S / n, complaints))
            length = min(length, len(alone[0]))  # all of them as many as the time allowed the first
    except Broken as error:
        complaints.add("broken", str(error))
    found.errors += complaints
    _summarise(alone, found)
    return actions, alone


def _summarise(alone: list[Trace], found: Examination) -> None:
    """Rewards and games of the traces."""
    rewards = [reward for trace in alone for reward in trace.rewards if np.isfinite(reward)]
    found.steps = sum(map(len, alone))
    if rewards:
        found.reward_min, found.reward_max = min(rewards), max(rewards)
    games = [game for trace in alone for game in trace.games() if np.isfinite(game[0])]
    if games:
        returns, lengths = [game[0] for game in games], [game[1] for game in games]
        cut = sum(game[2] for game in games)
        mean = float(np.mean(returns))
        found.games = Games(len(games) - cut, cut, min(lengths), max(lengths), min(returns), mean, max(returns))
    elif rewards:
        found.warnings.append(
            f"no game ended within {max(map(len, alone)):,} steps, so the ends of games were not seen. More --steps may show some; an "
            "environment without an end needs a time limit: --set environment.max_episode_steps=N"
        )


def _describe_plain(
    config: EnvironmentConfig,
    spec: EnvironmentSpec,
    make: Callable[[], gymnasium.Env[Any, Any]],
    alone: list[Trace],
    found: Examination,
) -> None:
    with contextlib.closing(make()) as env:
        registered = env.spec.max_episode_steps if env.spec is not None else None
    limit = config.max_episode_steps or registered
    cut_at = {length for trace in alone for _, length, truncated in trace.games() if truncated}
    if limit is not None:
        found.time_limit = f"{limit:,} env_steps"
    elif cut_at:
        seen = f"{min(cut_at):,}" if len(cut_at) == 1 else f"{min(cut_at):,} to {max(cut_at):,}"
        found.time_limit = f"of its own; games were truncated after {seen} env_steps"
    else:
        found.time_limit = "none seen"
    observations = [array for trace in alone for array in (trace.first, *trace.observations)]
    if not spec.parts:
        found.warnings += _warn_of(spec.observation_shape, spec.observation_dtype, observations)
    elif observations:
        arrays = unpack(spec.parts, np.stack(observations))
        for part in spec.parts:
            found.warnings += (f"{part.name!r}: {text}" for text in _warn_of(part.shape, part.dtype, [arrays[part.name]]))


def _warn_of(shape: tuple[int, ...], dtype: np.dtype[Any], observations: list[traces.Array]) -> Iterator[str]:
    """What is no mistake and learns badly all the same."""
    if len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] > 4:
        yield (
            f"images of shape {shape} look as if the channels came last; zpala's networks for images take (channels, height, width): "
            "numpy.moveaxis(image, -1, 0)"
        )
    if len(shape) == 3 and dtype != np.uint8:
        yield f"images of {dtype} go to the mlp; the networks for images take uint8, 0 to 255"
    if dtype != np.uint8:
        largest = max((float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in observations), default=0.0)
        if largest > LARGE_OBSERVATION:
            yield f"observations reach {largest:,.6g}; the network takes them as they are and learns best from numbers around 1"


def _run_gymnasium_checker(make: Callable[[], gymnasium.Env[Any, Any]], found: Examination) -> None:
    with warnings.catch_warnings(record=True) as warned, contextlib.closing(make()) as env:
        warnings.simplefilter("always")
        try:
            check_env(env, skip_render_check=True)
        except Exception as error:  # AssertionError and whatever the environment raises
            text = _plain_text(error) or type(error).__name__
            (found.warnings if _DECIDED_BY_PLAY.search(text) else found.errors).append(f"Gymnasium's checker: {text}")
    texts = dict.fromkeys(_plain_text(warning.message) for warning in warned)
    found.warnings += [f"Gymnasium's checker: {text}" for text in texts if not _HARMLESS.search(text)]


def _compare(config: EnvironmentConfig, alone: list[Trace], actions: list[Actions], found: Examination) -> None:
    """The vector path beside the environments alone. A native one draws its numbers for all at once: only one of it can be compared."""
    with contextlib.closing(vector_environment(config.id, 1, args=config.args, max_episode_steps=config.max_episode_steps)) as env:
        native = not isinstance(env, SyncVectorEnv)
        found.autoreset = env.metadata["autoreset_mode"].name
    found.vectors = "a vector environment of its own" if native else "plain environments one after the other"
    groups = [[i] for i in range(len(alone))] if native else [list(range(len(alone)))]
    differs, compared = "", 0
    for group in groups:
        environments = _make(config, len(group), [_FIRST_SEED + i for i in group])
        try:
            differs, steps = traces.compare_with(
                [alone[i] for i in group], environments, [actions[i] for i in group], ROUNDING if native else 0.0
            )
        except Exception as error:  # of the environment, when it is stepped with others
            found.errors.append(f"{len(group)} together raised what one alone did not: {traces.describe(error)}")
            return
        finally:
            environments.close()
        compared += steps
        if differs:
            break
    if differs == "first" and native:
        found.compared = "no: its vector environment begins its games in another way"
    elif differs:
        differs = "the first observation" if differs == "first" else differs
        found.compared = f"{differs} differs"
        found.errors.append(
            f"vectors: {differs} differs from what the same environment did alone, with the same seed and actions. Do several of them "
            "share something (a class attribute, a global), or is an observation changed after it was returned?"
        )
    else:
        how = "within rounding" if native else "exactly"
        size = "one by one" if native else f"of {len(alone)}"
        found.compared = (
            f"{compared:,} steps in vectors {size} are {how} those of plain ones with the same seeds and actions, ends included"
        )


def _examine_vectors(config: EnvironmentConfig, spec: EnvironmentSpec, steps: int, found: Examination) -> None:
    """A vector environment of a factory: by itself, twice with one seed, then as zpala steps it."""
    n = config.num_envs
    actions = spec.actions.sample(np.random.default_rng(0), max(2, steps // n), n)
    complaints = Complaints()
    given: list[list[traces.Array]] = []
    for _ in range(2):
        with contextlib.closing(vector_environment(config.id, n, args=config.args, max_episode_steps=config.max_episode_steps)) as env:
            found.observation, found.action = _line(env.single_observation_space), _line(env.single_action_space)
            found.autoreset = env.metadata["autoreset_mode"].name
            given.append(traces.look_at_vectors(env, _FIRST_SEED, actions, complaints if not given else Complaints()))
    found.errors += complaints
    if not all(np.array_equal(a, b) for a, b in zip(*given, strict=True)):
        found.warnings.append("not deterministic: the same seed and actions gave something else the second time")
    found.compared = "no: there is no plain environment beside it"
    found.time_limit = None if config.max_episode_steps is None else f"{config.max_episode_steps:,} env_steps, given to the factory"
    if not found.errors:
        _summarise(_played(config, actions), found)
        found.steps_per_s_vector = _speed(config, n)


def _examine_atari(config: EnvironmentConfig, game: AtariGame, steps: int, found: Examination) -> None:
    """Rewards and ends beside a plain emulator's, without the no-ops and sticky actions that come by chance."""
    spec = _specify(config, found)
    atari = changed(config.atari_settings(), noop_max=0, sticky_action_probability=0.0)
    with contextlib.closing(vector_environment(config.id, 1, atari=config.atari_settings())) as env:
        found.observation, found.action = _line(env.single_observation_space), _line(env.single_action_space)
        found.autoreset, found.vectors = env.metadata["autoreset_mode"].name, "ALE's vector environment"
    actions = spec.actions.sample(np.random.default_rng(0), steps // 2)
    trace = traces.emulate(game.rom, actions, atari, config.max_episode_steps)
    environments = make_environments(config.id, 1, seeds=[_FIRST_SEED], atari=atari, max_episode_steps=config.max_episode_steps)
    try:
        differs = traces.compare_with_emulator(trace, environments, actions)
    finally:
        environments.close()
    if differs:
        found.errors.append(f"vectors: {differs}")
    verb = "differ from" if differs else "are"
    found.compared = f"rewards and ends of {len(actions):,} steps {verb} those of a plain emulator (without no-ops and sticky actions)"
    frames = f"{config.max_episode_frames:,} frames"
    found.time_limit = frames if config.max_episode_steps is None else f"{config.max_episode_steps:,} env_steps, {frames}"
    found.steps = len(actions)
    _summarise([trace], found)
    found.steps_per_s_single = _speed(config, 1)
    found.steps_per_s_vector = _speed(config, config.num_envs)


def _played(config: EnvironmentConfig, actions: Actions) -> list[Trace]:
    """What the vector path says of rewards and ends, one trace for each environment, without observations."""
    n = config.num_envs
    environments = _make(config, n, [_FIRST_SEED] * n)
    row = traces.memory(n, environments.spec.observation_shape, environments.spec.observation_dtype)
    found = [Trace(np.zeros(0)) for _ in range(n)]
    try:
        environments.reset(row.next_observation)
        for action in actions:
            environments.step(action, row)
            for i, trace in enumerate(found):
                if not row.valid[i]:
                    continue
                if row.terminated[i] or row.truncated[i]:
                    trace.begun[len(trace)] = np.zeros(0)
                trace.rewards.append(float(row.reward[i]))
                trace.terminated.append(bool(row.terminated[i]))
                trace.truncated.append(bool(row.truncated[i]))
    finally:
        environments.close()
    return found


def _speed(config: EnvironmentConfig, n: int) -> float:
    environments = _make(config, n, [_FIRST_SEED + i for i in range(n)])
    row = traces.memory(n, environments.spec.observation_shape, environments.spec.observation_dtype)
    actions = environments.spec.actions.sample(np.random.default_rng(1), 64, n)
    try:
        environments.reset(row.next_observation)
        return n * _rate(lambda k: environments.step(actions[k % 64], row))
    finally:
        environments.close()


def _speed_alone(env: gymnasium.Env[Any, Any], space: ActionSpace) -> float:
    actions = for_simulator(env.action_space)(space.sample(np.random.default_rng(1), 64))

    def step(k: int) -> None:
        _, _, terminated, truncated, _ = env.step(actions[k % 64])
        if terminated or truncated:
            env.reset()

    env.reset(seed=_FIRST_SEED)
    return _rate(step)


def _rate(step: Callable[[int], object]) -> float:
    """Calls per second."""
    begin = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - begin) < SPEED_S:
        step(count)
        count += 1
    return count / elapsed


def _maker(config: EnvironmentConfig) -> Callable[[], gymnasium.Env[Any, Any]]:
    def make() -> gymnasium.Env[Any, Any]:
        env = plain_environment(config.id, config.args, config.max_episode_steps)
        if env is None:
            raise ValueError(f"{config.id} has no plain environments")
        return env

    return make


def _make(config: EnvironmentConfig, n: int, seeds: list[int]) -> Environments:
    return make_environments(
        config.id,
        n,
        seeds=seeds,
        num_threads=1,
        args=config.args,
        atari=config.atari_settings(),
        max_episode_steps=config.max_episode_steps,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Gymnasium warns while it steps; what matters of it is said by its checker."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line(space: spaces.Space[Any]) -> str:
    return re.sub(r"\s+", " ", str(space))


def _plain_text(value: object) -> str:
    """In one line, without the colours of a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(value))
    return re.sub(r"\s+", " ", text).removeprefix("WARN: ").strip()
