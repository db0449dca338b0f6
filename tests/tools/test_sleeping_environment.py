"""The environment that sleeps: what it draws, what it rewards, and that it is one that zpala can learn. Nobody sleeps here."""

from __future__ import annotations

import numpy as np
import pytest

from zpala.rl import make_environments
from zpala.rl.rollout import Rollout
from zpala.tools.sleeping_environment import LONGEST, NAME, SLOWNESS_VARIABLE, SleepingEnvironments, StepTimes, sleeping


def drawn(times: StepTimes, count: int, seed: int) -> list[float]:
    times.seed(seed)
    return [times.draw() for _ in range(count)]


def environments(times: StepTimes, slept: list[float], num_envs: int = 3, episode_steps: int = 4) -> SleepingEnvironments:
    return SleepingEnvironments(num_envs, times, observation_size=2, episode_steps=episode_steps, sleep=slept.append)


@pytest.mark.parametrize("distribution", ["fixed", "pareto", "lognormal"])
def test_steps_last_as_long_as_the_seed_says(distribution: str) -> None:
    one, other = (StepTimes(0.02, distribution, None, 1.0) for _ in range(2))
    assert drawn(one, 50, seed=3) == drawn(other, 50, seed=3)
    assert (drawn(one, 50, seed=4) == drawn(one, 50, seed=3)) is (distribution == "fixed")


def test_a_fixed_step() -> None:
    assert drawn(StepTimes(0.02, "fixed", None, 1.0), 3, seed=1) == [0.02] * 3


@pytest.mark.parametrize(("distribution", "shape"), [("pareto", 3.0), ("lognormal", 0.5)])
def test_drawn_steps_have_the_mean_that_was_asked_for(distribution: str, shape: float) -> None:
    # Both have a finite variance: s^2 = 1/3 of the mean squared for pareto, e^0.25 - 1 for lognormal; 40,000 draws, 5 standard errors.
    mean = np.mean(drawn(StepTimes(2.0, distribution, shape, 1.0), 40_000, seed=1))
    deviation = {"pareto": (1 / 3) ** 0.5, "lognormal": (np.e**0.25 - 1) ** 0.5}[distribution]
    assert mean == pytest.approx(2.0, abs=5 * 2.0 * deviation / 200)


def test_half_of_the_steps_are_shorter_than_the_median() -> None:
    # Pareto with shape 1.5 and mean 3: m = 1, the median is 2^(2/3). Log-normal with shape 1 and mean 1: the median is e^-0.5.
    for distribution, mean_s, median in (("pareto", 3.0, 2 ** (2 / 3)), ("lognormal", 1.0, np.e**-0.5)):
        steps = np.array(drawn(StepTimes(mean_s, distribution, None, 1.0), 10_000, seed=2))
        assert np.mean(steps < median) == pytest.approx(0.5, abs=0.025)


def test_the_tail_is_heavy_and_has_an_end() -> None:
    steps = np.array(drawn(StepTimes(1.0, "pareto", 1.01, 1.0), 40_000, seed=1))
    assert steps.max() == LONGEST
    assert np.mean(steps > 1.0) < 0.05  # a few steps make up the average


def test_a_slow_node_is_that_many_times_slower() -> None:
    usual, slow = (drawn(StepTimes(0.02, "pareto", None, slowness), 20, seed=7) for slowness in (1.0, 10.0))
    assert slow == pytest.approx([10 * step for step in usual])


def test_the_slowness_of_a_process_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setenv(SLOWNESS_VARIABLE, "10")
    env = sleeping(2, step_s=0.5)
    monkeypatch.setattr(env, "_sleep", slept.append)
    env.reset(seed=1)
    env.step(np.zeros(2, dtype=np.int64))
    assert slept == [5.0]


def test_all_environments_sleep_once_per_step_and_the_seed_decides_how_long() -> None:
    slept: list[list[float]] = [[], []]
    for record in slept:
        env = environments(StepTimes(0.1, "lognormal", None, 1.0), record)
        env.reset(seed=5)
        for _ in range(6):
            env.step(np.zeros(3, dtype=np.int64))
    assert len(slept[0]) == 6
    assert slept[0] == slept[1]


def test_the_right_action_is_rewarded_and_games_are_cut_off() -> None:
    env = environments(StepTimes(0.0, "fixed", None, 1.0), [], num_envs=6)
    observation, _ = env.reset(seed=1)
    for step in range(1, 9):
        actions = np.array([1, 1, 1, 0, 0, 0])
        expected = [float((row[0] > 0) == (action == 1)) for row, action in zip(observation, actions, strict=True)]
        observation, rewards, terminated, truncated, info = env.step(actions)
        assert rewards.tolist() == expected
        assert not terminated.any()
        assert truncated.tolist() == [step % 4 == 0] * 6
        assert ("final_obs" in info) is (step % 4 == 0)


def test_it_fills_a_rollout() -> None:
    made = make_environments(NAME, 2, seeds=[3, 4], args={"step_s": 0.0, "episode_steps": 2})
    rollout = Rollout(made.spec, 3, 2)
    made.reset(rollout.observation(0, 0, 2))
    episodes = []
    for t in range(3):
        rollout.action(t, 0, 2)[:] = 1
        episodes += made.step(rollout.action(t, 0, 2), rollout.row(t, 0, 2))
    made.close()
    assert rollout.valid.all()
    assert rollout.truncated[1].all()
    right = (rollout.observations[:2, :, 0] > 0).sum(dim=0)
    assert [(episode.return_, episode.length) for episode in episodes] == [(float(right[0]), 2), (float(right[1]), 2)]
    assert not np.array_equal(rollout.final_observations[1], rollout.observations[2])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"distribution": "cauchy"}, "'cauchy' is unknown: use one of fixed, pareto, lognormal"),
        ({"distribution": "pareto", "shape": 1.0}, "must be more than 1"),
        ({"distribution": "lognormal", "shape": 0.0}, "must be more than 0"),
        ({"step_s": -1.0}, "step_s = -1.0"),
        ({"episode_steps": 0}, "episode_steps = 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sleeping(1, **arguments)  # type: ignore[arg-type]


def test_a_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, "much")
    with pytest.raises(ValueError, match="'much', which is no number"):
        sleeping(1)
