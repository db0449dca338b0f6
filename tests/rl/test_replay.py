from __future__ import annotations

import os
import tracemalloc
from collections import Counter, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from tests.rl.recorded import Told, digest, recorded, spec_of
from tests.rl.rollouts import spec
from tests.rl.scripted import Game
from tests.rl.test_priorities import chi_square_limit
from zpala.rl.environments import AtariSettings, Environments, make_environments
from zpala.rl.replay import Replay, Transitions, bytes_needed
from zpala.rl.rollout import Rollout

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]


class Player:
    """Plays rollouts of any length, each going on where the last one ended, by chance."""

    def __init__(self, environments: Environments) -> None:
        self.environments = environments
        self._rng = np.random.default_rng(7)
        self._last = Rollout(environments.spec, 1, environments.num_envs)
        environments.reset(self._last.observation(1, 0, environments.num_envs))

    def play(self, steps: int) -> Rollout:
        n, num_actions = self.environments.num_envs, 4
        rollout = Rollout(self.environments.spec, steps, n)
        rollout.observations[0].copy_(self._last.observations[-1])
        for t in range(steps):
            rollout.set_actions(t, 0, n, torch.from_numpy(self._rng.integers(0, num_actions, n)))
            self.environments.step(rollout.action(t, 0, n), rollout.row(t, 0, n))
        self._last = rollout
        return rollout


def scripts(num_envs: int, seed: int) -> list[list[Game]]:
    """Games of many lengths, one step among them, with all three endings."""
    rng = np.random.default_rng(seed)
    endings = [(True, False), (False, True), (True, True), (False, True)]
    return [[Game(int(rng.choice([1, 1, 2, 3, 5, 8])), *endings[rng.integers(4)]) for _ in range(17)] for _ in range(num_envs)]


def told(batch: Transitions) -> list[Told]:
    """A batch as the environments write it down."""
    return [
        Told(
            digest(batch.observations[i].numpy()),
            int(batch.actions[i]),
            float(batch.rewards[i]),
            b"" if batch.terminated[i] else digest(batch.next_observations[i].numpy()),
            bool(batch.terminated[i]),
        )
        for i in range(len(batch.actions))
    ]


def draw_all(replay: Replay, generator: torch.Generator, times: int = 14) -> Counter[Told]:
    """So many draws that none of the transitions is likely to be left out."""
    drawn: Counter[Told] = Counter()
    for _ in range(-(-times * len(replay) // 64)):
        batch = replay.sample(64, generator)
        assert torch.isfinite(batch.next_observations.float()).all()
        assert batch.next_observations.float().abs().max() < 1e6
        drawn.update(told(batch))
    return drawn


def expected(stories: list[list[Told]], valid: NDArray[np.bool_], rows: int) -> set[Told]:
    """The valid steps among the last ``rows`` rows, as the environments tell them."""
    found: set[Told] = set()
    for n, story in enumerate(stories):
        assert len(story) == valid[:, n].sum()
        found.update(story[len(story) - int(valid[-rows:, n].sum()) :])
    return found


@pytest.mark.parametrize("priority_alpha", [0.0, 0.6])
@pytest.mark.parametrize("size", [0, 3, 4], ids=["vectors", "pictures of 9 bytes", "pictures of 16 bytes"])
@pytest.mark.parametrize("mode", MODES)
def test_it_returns_exactly_the_transitions_of_a_scripted_environment(mode: AutoresetMode, size: int, priority_alpha: float) -> None:
    """After every rollout all that is stored, and nothing else, can be drawn, while the ring is wrapped many times."""
    environments, stories = recorded(scripts(3, seed=size), mode, size)
    player = Player(environments)
    rows = 13
    replay = Replay(environments.spec, 3 * rows + 2, 3, priority_alpha=priority_alpha)
    assert replay.capacity == 3 * rows
    generator = torch.Generator().manual_seed(0)
    valid = np.zeros((0, 3), dtype=np.bool_)
    seen: set[Told] = set()
    truncated = 0
    for steps in (1, 1, 5, 13, 3, 2, 8, 1, 7, 13, 4, 11, 6, 1, 9, 12, 10, 13, 13, 2):
        rollout = player.play(steps)
        replay.add(rollout)
        truncated += int((rollout.truncated & ~rollout.terminated).sum())
        valid = np.concatenate([valid, rollout.valid.numpy()])
        stored = expected(stories, valid, rows)
        assert len(replay) == len(stored)
        assert set(draw_all(replay, generator)) == stored
        seen |= stored
    assert len(valid) > 8 * rows
    assert truncated > 30
    assert seen == {step for story in stories for step in story}
    assert bool(valid.all()) is (mode is AutoresetMode.SAME_STEP)


def test_a_uniform_draw_is_uniform_over_the_steps_that_are_not_masked() -> None:
    environments, _ = recorded(scripts(3, seed=5), AutoresetMode.NEXT_STEP)
    replay = Replay(environments.spec, 60, 3)
    rollout = Player(environments).play(20)
    replay.add(rollout)
    assert 30 < len(replay) < 55, "no step was masked"
    counts = np.array(list(draw_all(replay, torch.Generator().manual_seed(2), times=300).values()))
    mean = counts.sum() / len(replay)
    assert len(counts) == len(replay)
    assert ((counts - mean) ** 2 / mean).sum() < chi_square_limit(len(replay))


@pytest.mark.parametrize(
    ("game", "limit", "life_loss", "least"),
    [("pong", 45, False, {"truncated": 20}), ("breakout", None, True, {"terminated": 15}), ("breakout", 60, True, {"truncated": 15})],
)
def test_atari_is_returned_as_if_every_observation_were_stored_whole(
    game: str, limit: int | None, life_loss: bool, least: dict[str, int]
) -> None:
    """The slow reference keeps the rollouts as they were."""
    settings = AtariSettings(life_loss=life_loss)
    environments = make_environments(game, 4, seeds=[1, 2, 3, 4], num_threads=1, atari=settings, max_episode_steps=limit)
    player, rows = Player(environments), 120
    replay = Replay(environments.spec, 4 * rows, 4)
    kept: deque[Rollout] = deque(maxlen=rows // 20)
    generator = torch.Generator().manual_seed(0)
    ends = {"truncated": 0, "terminated": 0}
    for played in range(1, 15):
        kept.append(player.play(20))
        replay.add(kept[-1])
        assert len(replay) == 80 * len(kept)
        whole = {name: torch.cat([rollout.tensors()[name][:20] for rollout in kept]).flatten(0, 1) for name in kept[0].tensors()}
        after = torch.cat([rollout.observations[1:] for rollout in kept]).flatten(0, 1)
        cut_off = whole["truncated"] & ~whole["terminated"]
        after[cut_off] = whole["final_observations"][cut_off]
        seen: set[int] = set()
        for _ in range(30 if played % 4 == 0 else 3):
            batch = replay.sample(64, generator)
            where = batch.indices - 80 * (played - len(kept))
            assert torch.equal(batch.observations, whole["observations"][where])
            assert torch.equal(batch.next_observations, after[where])
            assert torch.equal(batch.actions, whole["actions"][where])
            assert torch.equal(batch.rewards, whole["rewards"][where])
            assert torch.equal(batch.terminated, whole["terminated"][where])
            seen.update(where.tolist())
        ends["truncated"] += int(kept[-1].truncated.sum())
        ends["terminated"] += int(kept[-1].terminated.sum())
        assert played % 4 or len(seen) > 0.9 * len(replay)
    environments.close()
    assert all(ends[name] >= count for name, count in least.items()), ends


def test_games_so_short_that_frames_run_out_of_room_cost_the_oldest_steps_only() -> None:
    """Every game is one step, and has eight frames that are like no other's."""
    environments, stories = recorded([[Game(1, False, True)]] * 4, AutoresetMode.SAME_STEP, 84, noise_only=True)
    player = Player(environments)
    replay = Replay(environments.spec, 4000, 4)
    generator = torch.Generator().manual_seed(0)
    held = []
    for _ in range(10):
        replay.add(player.play(25))
        held.append(len(replay))
        newest = {step for story in stories for step in story[-(len(replay) // 4) :]}
        drawn = set(draw_all(replay, generator, times=1))
        assert drawn <= newest
        assert len(drawn) > len(newest) / 2
    assert held[:7] == [100, 200, 300, 400, 500, 600, 700]
    assert 700 < held[-1] < 1000, held


def test_very_little_memory_holds_at_least_the_newest_row() -> None:
    environments, stories = recorded([[Game(1, False, True)]] * 2, AutoresetMode.SAME_STEP, 84, noise_only=True)
    player, replay, generator = Player(environments), Replay(environments.spec, 2, 2), torch.Generator().manual_seed(0)
    for _ in range(40):
        replay.add(player.play(1))
        assert set(draw_all(replay, generator)) == {story[-1] for story in stories}


@pytest.mark.parametrize(("priority_alpha", "size"), [(0.0, 84), (0.5, 84), (0.5, 0), (0.0, 3)])
def test_the_memory_it_takes_is_known_before_and_taken_at_once(priority_alpha: float, size: int) -> None:
    given, capacity = spec_of(size), 4_000
    rollout = endless_game(size)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        replay = Replay(given, capacity, 16, priority_alpha=priority_alpha)
        made = tracemalloc.get_traced_memory()[0]
        for _ in range(2 * capacity // 1600):
            replay.add(rollout)
        grown = tracemalloc.get_traced_memory()[0] - made
    finally:
        tracemalloc.stop()
    assert len(replay) == capacity
    assert made - before == pytest.approx(bytes_needed(given, capacity, 16, priority_alpha=priority_alpha), abs=10_000)
    assert grown < 20_000


def test_the_system_cannot_take_its_memory_back_later() -> None:
    """Memory that was only promised would be missing when the ring is nearly full, after hours."""
    needed, before = bytes_needed(spec_of(84), 8_000, 16), resident_bytes()
    replay = Replay(spec_of(84), 8_000, 16)
    assert resident_bytes() - before == pytest.approx(needed, rel=0.03)
    assert replay.capacity == 8_000


def endless_game(size: int) -> Rollout:
    """100 steps of 16 environments in which nothing ends or changes, so that it goes on where it ended."""
    rollout = Rollout(spec_of(size), 100, 16)
    rollout.observations.fill_(3)
    rollout.rewards.zero_()
    rollout.actions.zero_()
    rollout.valid.fill_(True)
    for flags in (rollout.terminated, rollout.truncated):
        flags.fill_(False)
    return rollout


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_frames_are_stored_once() -> None:
    """A quarter of what whole observations take, and not twice that for the observation after each."""
    given = spec_of(84)
    assert bytes_needed(given, 200_000, 16) < 1.05 * 200_000 * 84 * 84
    assert bytes_needed(given, 1_000_000, 8) < 1.05 * 1_000_000 * 84 * 84


class Reference:
    """Priorities by the formulas, in a dictionary."""

    def __init__(self, alpha: float) -> None:
        self.alpha, self.largest = alpha, 1.0
        self.by_index: dict[int, float] = {}

    def keep(self, first: int, valid: list[bool], capacity: int) -> None:
        self.by_index.update({first + i: self.largest for i, is_valid in enumerate(valid) if is_valid})
        self.by_index = {i: p for i, p in self.by_index.items() if i >= first + len(valid) - capacity}

    def update(self, indices: list[int], errors: list[float]) -> None:
        for index, error in zip(indices, errors, strict=True):
            self.by_index[index] = (abs(error) + 1e-6) ** self.alpha
            self.largest = max(self.largest, self.by_index[index])

    def weights(self, indices: list[int], beta: float) -> NDArray[np.float64]:
        total = sum(self.by_index.values())
        raw = np.array([(len(self.by_index) * self.by_index[i] / total) ** -beta for i in indices])
        return np.asarray(raw / raw.max())


@pytest.mark.parametrize("mode", MODES)
def test_priorities_and_weights_are_those_of_the_formulas(mode: AutoresetMode) -> None:
    environments, _ = recorded(scripts(3, seed=4), mode)
    player, replay, reference = Player(environments), Replay(environments.spec, 90, 3, priority_alpha=0.7), Reference(0.7)
    generator = torch.Generator().manual_seed(1)
    rows = 0
    for _ in range(9):
        rollout = player.play(11)
        replay.add(rollout)
        reference.keep(3 * rows, rollout.valid.flatten().tolist(), 90)
        rows += 11
        for beta in (0.4, 1.0):
            batch = replay.sample(32, generator, beta=beta)
            np.testing.assert_allclose(batch.weights.numpy(), reference.weights(batch.indices.tolist(), beta), rtol=1e-5)
            assert batch.weights.max() == 1.0
            errors = torch.randn(len(replay), generator=generator)[batch.indices % len(replay)] * 3  # one error for one transition
            replay.update_priorities(batch.indices, errors)
            reference.update(batch.indices.tolist(), errors.double().tolist())
    assert reference.largest > 2.0
    counts = Counter(index for _ in range(2000) for index in replay.sample(32, generator).indices.tolist())
    total = sum(reference.by_index.values())
    assert set(counts) <= set(reference.by_index)
    often = {index: 64_000 * p / total for index, p in reference.by_index.items() if 64_000 * p / total > 5}
    assert len(often) > 40
    chi_square = sum((counts[index] - mean) ** 2 / mean for index, mean in often.items())
    assert chi_square < chi_square_limit(len(often) + 1)


def test_an_error_of_a_transition_that_has_left_changes_nobody() -> None:
    environments, _ = recorded(scripts(2, seed=1), AutoresetMode.SAME_STEP)
    player, replay, generator = Player(environments), Replay(environments.spec, 10, 2, priority_alpha=1.0), torch.Generator().manual_seed(1)
    replay.add(player.play(5))
    old = replay.sample(64, generator).indices
    replay.add(player.play(5))
    replay.update_priorities(old, torch.full((64,), 1e6))
    batch = replay.sample(64, generator)
    assert torch.equal(batch.weights, torch.ones(64))
    assert int(old.max()) < 10 <= int(batch.indices.min())


def test_an_error_that_is_not_finite_is_refused() -> None:
    environments, _ = recorded(scripts(2, seed=1), AutoresetMode.SAME_STEP)
    replay = Replay(environments.spec, 10, 2, priority_alpha=1.0)
    replay.add(Player(environments).play(5))
    with pytest.raises(ValueError, match="not finite"):
        replay.update_priorities(torch.tensor([1, 2]), torch.tensor([1.0, float("nan")]))


def test_without_priorities_errors_and_weights_say_nothing() -> None:
    environments, _ = recorded(scripts(2, seed=1), AutoresetMode.SAME_STEP)
    replay, generator = Replay(environments.spec, 10, 2), torch.Generator().manual_seed(1)
    replay.add(Player(environments).play(5))
    replay.update_priorities(torch.tensor([1]), torch.tensor([1e9]))
    batch = replay.sample(256, generator)
    assert torch.equal(batch.weights, torch.ones(256))
    assert len(set(batch.indices.tolist())) == 10


@pytest.mark.parametrize("priority_alpha", [0.0, 0.5])
def test_the_generator_decides_everything(priority_alpha: float) -> None:
    environments, _ = recorded(scripts(2, seed=1), AutoresetMode.SAME_STEP, 4)
    replay, generator = Replay(environments.spec, 100, 2, priority_alpha=priority_alpha), torch.Generator().manual_seed(1)
    replay.add(Player(environments).play(50))
    replay.sample(8, generator)
    state = generator.get_state()
    first, second = replay.sample(32, generator), replay.sample(32, generator)
    generator.set_state(state)
    again = replay.sample(32, generator)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.indices, second.indices)


def test_a_batch_has_memory_of_its_own() -> None:
    environments, _ = recorded(scripts(2, seed=1), AutoresetMode.SAME_STEP, 4)
    replay, generator = Replay(environments.spec, 20, 2), torch.Generator().manual_seed(1)
    player = Player(environments)
    replay.add(player.play(10))
    batch = replay.sample(16, generator)
    before = [tensor.clone() for tensor in batch]
    replay.add(player.play(10))
    replay.sample(16, generator)
    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))
    assert [tensor.dtype for tensor in batch] == [
        torch.uint8,
        torch.int64,
        torch.float32,
        torch.uint8,
        torch.bool,
        torch.float32,
        torch.int64,
    ]
    assert batch.observations.shape == (16, 4, 4, 4)


def test_what_does_not_fit_is_refused() -> None:
    given = spec()
    with pytest.raises(ValueError, match="no room for one step of 4"):
        Replay(given, 3, 4)
    with pytest.raises(ValueError, match="no room for one step of 4"):
        bytes_needed(given, 3, 4)
    replay = Replay(given, 12, 4)
    with pytest.raises(ValueError, match="empty"):
        replay.sample(1, torch.Generator())
    with pytest.raises(ValueError, match="3 rows of 4 environments does not take a rollout of 4 rows of 4"):
        replay.add(Rollout(given, 4, 4))
    with pytest.raises(ValueError, match="does not take a rollout of 3 rows of 5"):
        replay.add(Rollout(given, 3, 5))


@pytest.mark.parametrize("size", [0, 4])
def test_a_rollout_that_does_not_go_on_where_the_last_one_ended_is_refused(size: int) -> None:
    environments, _ = recorded(scripts(2, seed=1), AutoresetMode.SAME_STEP, size)
    player, replay = Player(environments), Replay(environments.spec, 40, 2)
    replay.add(player.play(5))
    player.play(1)
    with pytest.raises(ValueError, match="does not go on"):
        replay.add(player.play(5))
    assert len(replay) == 10


@pytest.mark.cuda
def test_batches_of_a_pinned_replay_are_page_locked_and_not_written_while_they_are_copied() -> None:
    environments, _ = recorded(scripts(4, seed=1), AutoresetMode.SAME_STEP, 84)
    replay, generator = Replay(environments.spec, 400, 4, pinned=True), torch.Generator().manual_seed(1)
    replay.add(Player(environments).play(100))
    state = generator.get_state()
    copies = []
    for _ in range(50):
        batch = replay.sample(64, generator)
        assert all(tensor.is_pinned() for tensor in (batch.observations, batch.next_observations, batch.actions, batch.weights))
        copies.append([tensor.to("cuda", non_blocking=True) for tensor in batch])
    torch.cuda.synchronize()
    generator.set_state(state)
    for copied in copies:
        assert all(torch.equal(a.cpu(), b) for a, b in zip(copied, replay.sample(64, generator), strict=True))
