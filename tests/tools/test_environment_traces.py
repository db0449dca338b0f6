"""The comparisons behind ``zpala env check``: a single changed value is found where it was changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.tools.broken_environments import Dashboard, Walk
from zpala.rl.action_spaces import MultiDiscrete
from zpala.rl.environments import AtariSettings, make_environments
from zpala.rl.observations import unpack
from zpala.tools.environment_traces import Complaints, Trace, compare_with, compare_with_emulator, difference, emulate, play_alone

WALK, VECTOR = "tests.tools.broken_environments:Walk", "tests.tools.broken_environments:next_step_walks"
ACTIONS = [np.random.default_rng(seed).integers(0, 2, 120) for seed in range(2)]


def alone() -> list[Trace]:
    complaints = Complaints()
    traces = [play_alone(Walk(), seed, actions, 10.0, complaints) for seed, actions in enumerate(ACTIONS)]
    assert not list(complaints)
    assert all(len(trace) == 120 and len(trace.begun) >= 3 for trace in traces)
    return traces


def first_end(trace: Trace) -> int:
    return min(trace.begun)


def worse_reward(trace: Trace) -> str:
    trace.rewards[17] += 0.5
    return "the reward of environment 1 of 2 at its step 17"


def other_end(trace: Trace) -> str:
    t = first_end(trace)
    trace.terminated[t], trace.truncated[t] = trace.truncated[t], trace.terminated[t]
    return f"terminated or truncated of environment 1 of 2 at its step {t}"


def other_observation(trace: Trace) -> str:
    trace.observations[7] = trace.observations[7] + np.float32(0.01)
    return "the observation of environment 1 of 2 at its step 7"


def other_final(trace: Trace) -> str:
    t = first_end(trace)
    trace.observations[t] = trace.observations[t] + np.float32(0.01)
    return f"the final observation of environment 1 of 2 at its step {t}"


def other_beginning(trace: Trace) -> str:
    t = first_end(trace)
    trace.begun[t] = trace.begun[t] + np.float32(0.01)
    return f"step {t}"


@pytest.mark.parametrize("env_id", [WALK, VECTOR])
def test_two_ways_of_the_same_are_the_same(env_id: str) -> None:
    """Whether the next game begins in the step that ends one or in the step after it."""
    environments = make_environments(env_id, 2, seeds=[0, 1])
    assert environments.resets_on_next_step is (env_id == VECTOR)
    assert compare_with(alone(), environments, ACTIONS, 0.0) == ("", 240 if env_id == WALK else pytest.approx(240, abs=8))


@pytest.mark.parametrize("env_id", [WALK, VECTOR])
@pytest.mark.parametrize("change", [worse_reward, other_end, other_observation, other_final, other_beginning])
def test_one_changed_value_is_found_where_it_is(env_id: str, change: Callable[[Trace], str]) -> None:
    traces = alone()
    expected = change(traces[1])
    found, _ = compare_with(traces, make_environments(env_id, 2, seeds=[0, 1]), ACTIONS, 0.0)
    assert expected in found
    assert "of environment 1 of 2" in found


@pytest.mark.parametrize("tolerance", [0.0, 1e-4])
def test_parts_are_compared_as_numbers(tolerance: float) -> None:
    """One float of a packed row, changed by a rounding error and by more than that."""
    names = "tests.tools.broken_environments:Dashboard"
    actions = [np.array(MultiDiscrete((3, 2)).sample(np.random.default_rng(seed), 120)) for seed in range(2)]
    for change, expected in ((0.0, True), (1e-6, tolerance > 0), (0.1, False)):
        traces = [play_alone(Dashboard(), seed, actions[seed], 10.0, Complaints()) for seed in range(2)]
        environments = make_environments(names, 2, seeds=[0, 1])
        place = unpack(environments.spec.parts, traces[1].observations[7])["dials.place"]
        assert place.tolist() != [0.0]
        place *= np.float32(1 + change)
        differs, _ = compare_with(traces, environments, actions, tolerance)
        assert differs == ("" if expected else "the observation of environment 1 of 2 at its step 7")


@pytest.mark.parametrize("change", [worse_reward, other_end, other_observation, other_beginning])
def test_two_plays_that_differ_are_told_apart(change: Callable[[Trace], str]) -> None:
    one, other = alone()[1], alone()[1]
    assert difference(one, other) == ""
    change(other)
    assert difference(one, other)


def test_another_beginning_is_no_comparison() -> None:
    assert compare_with(alone(), make_environments(WALK, 2, seeds=[5, 6]), ACTIONS, 0.0) == ("first", 0)


def test_an_emulator_that_was_played_otherwise_is_noticed() -> None:
    atari = AtariSettings(noop_max=0)
    actions = np.random.default_rng(0).integers(0, 4, 300)
    trace = emulate("breakout", actions, atari, None)
    assert trace.begun
    for played, expected in ((actions, True), (np.roll(actions, 3), False)):
        environments = make_environments("breakout", 1, seeds=[1], atari=atari)
        found = compare_with_emulator(trace, environments, played)
        environments.close()
        assert (found == "") is expected
