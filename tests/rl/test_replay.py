from __future__ import annotations

import ctypes
import gc
import itertools
import math
import tracemalloc
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

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


GAMMA = 0.75  # its powers and all sums of the test are exact


class Sum(NamedTuple):
    """What a transition of several steps should be, and why it has no more of them."""

    told: Told
    discount: float
    end: str


def summed(story: list[Told], games: list[Game], kept: int, n_steps: int, clip: bool) -> list[Sum]:
    """The slow reference, step by step: the last ``kept`` steps of ``story``, whose games' lengths and ends the script says."""

    def counted(reward: float) -> float:
        return max(-1.0, min(1.0, reward)) if clip else reward

    ends: dict[int, str] = {}
    length = 0
    for game in itertools.cycle(games):
        if (length := length + game.length) > len(story):
            break
        ends[length - 1] = "terminated" if game.terminated else "truncated"
    found = []
    for start in range(len(story) - kept, len(story)):
        here, total = start, counted(story[start].reward)
        while not (end := "full" if here - start + 1 == n_steps else ends.get(here, "newest" if here == len(story) - 1 else "")):
            here += 1
            total += GAMMA ** (here - start) * counted(story[here].reward)
        first, last = story[start], story[here]
        found.append(Sum(Told(first.observation, first.action, total, last.after, last.terminated), GAMMA ** (here - start + 1), end))
    return found


@pytest.mark.parametrize("priority_alpha", [0.0, 0.6])
@pytest.mark.parametrize("size", [0, 4], ids=["vectors", "pictures"])
@pytest.mark.parametrize("mode", MODES)
def test_transitions_of_several_steps_are_those_of_the_script(mode: AutoresetMode, size: int, priority_alpha: float) -> None:
    """While the ring is wrapped many times; most rollouts are shorter than the longest transitions, and 50 steps are more than it holds."""
    script = scripts(3, seed=size)
    environments, stories = recorded(script, mode, size)
    player, rows = Player(environments), 13
    replay = Replay(environments.spec, 3 * rows, 3, priority_alpha=priority_alpha)
    generator = torch.Generator().manual_seed(0)
    valid = np.zeros((0, 3), dtype=np.bool_)
    why: Counter[tuple[int, str]] = Counter()
    for steps in (1, 1, 5, 13, 3, 2, 8, 1, 7, 13, 4, 11, 6, 1, 9, 12, 10, 13, 13, 2):
        rollout = player.play(steps)
        replay.add(rollout)
        valid = np.concatenate([valid, rollout.valid.numpy()])
        state = generator.get_state()
        plain = replay.sample(14 * 3 * rows, generator)
        for n_steps, clip in itertools.product((1, 2, 3, 5, 50), (False, True)):
            kept = valid[-rows:].sum(axis=0)
            sums = [one for n in range(3) for one in summed(stories[n], script[n], int(kept[n]), n_steps, clip)]
            generator.set_state(state)
            batch = replay.sample(14 * 3 * rows, generator, n_steps=n_steps, gamma=GAMMA, clip_rewards=clip)
            assert set(zip(told(batch), batch.discounts.tolist(), strict=True)) == {(one.told, one.discount) for one in sums}
            assert all(
                torch.equal(getattr(batch, name), getattr(plain, name)) for name in ("indices", "observations", "actions", "weights")
            )
            why.update((n_steps, one.end) for one in sums)
    assert len(valid) > 8 * rows
    assert bool(valid.all()) is (mode is AutoresetMode.SAME_STEP)
    assert all(why[n_steps, end] > 20 for n_steps in (2, 3, 5) for end in ("terminated", "truncated", "newest", "full")), why
    assert {end for n_steps, end in why if n_steps == 1} == {"full"}
    assert {end for n_steps, end in why if n_steps == 50} == {"terminated", "truncated", "newest"}


def test_what_is_behind_the_end_of_a_transition_does_not_touch_it() -> None:
    """The next game's rewards and those of overwritten rows are no numbers; with them only their own transitions are none."""
    rollout = Rollout(spec(num_actions=4), 6, 1)
    rollout.observations.copy_(torch.arange(7.0)[:, None, None].expand(7, 1, 3))
    rollout.final_observations.fill_(50.0)
    rollout.actions.zero_()
    rollout.valid.fill_(True)
    rollout.terminated.fill_(False)
    rollout.truncated.fill_(False)
    rollout.truncated[2] = True
    rollout.rewards[:, 0] = torch.tensor([1.0, 2.0, 4.0, float("nan"), 0.5, 0.25])
    replay = Replay(rollout.spec, 6, 1)
    replay.add(rollout)
    batch = replay.sample(100, torch.Generator().manual_seed(0), n_steps=4, gamma=0.5)
    expected = {0: (3.0, 50.0, 0.125), 1: (4.0, 50.0, 0.25), 2: (4.0, 50.0, 0.5), 4: (0.625, 6.0, 0.25), 5: (0.25, 6.0, 0.5)}
    seen = {}
    for index, reward, behind, discount in zip(
        batch.indices.tolist(), batch.rewards.tolist(), batch.next_observations[:, 0].tolist(), batch.discounts.tolist(), strict=True
    ):
        seen[index] = (reward, behind, discount)
    assert math.isnan(seen.pop(3)[0])
    assert seen == expected
    with pytest.raises(ValueError, match="at least one step, not 0"):
        replay.sample(1, torch.Generator(), n_steps=0)


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
        ends["truncated"] += int(kept[-1].truncated.sum())
        ends["terminated"] += int(kept[-1].terminated.sum())
        assert len(replay) == 80 * len(kept)
        if played not in (1, 5, 7, 14):
            continue
        whole = {name: torch.cat([rollout.tensors()[name][:20] for rollout in kept]).flatten(0, 1) for name in kept[0].tensors()}
        after = torch.cat([rollout.observations[1:] for rollout in kept]).flatten(0, 1)
        cut_off = whole["truncated"] & ~whole["terminated"]
        after[cut_off] = whole["final_observations"][cut_off]
        seen: set[int] = set()
        for _ in range(16):
            batch = replay.sample(64, generator)
            where = batch.indices - 80 * (played - len(kept))
            assert torch.equal(batch.observations, whole["observations"][where])
            assert torch.equal(batch.next_observations, after[where])
            assert torch.equal(batch.actions, whole["actions"][where])
            assert torch.equal(batch.rewards, whole["rewards"][where])
            assert torch.equal(batch.terminated, whole["terminated"][where])
            seen.update(where.tolist())
        assert len(seen) > 0.8 * len(replay)
    environments.close()
    assert all(ends[name] >= count for name, count in least.items()), ends


@pytest.mark.parametrize("priority_alpha", [0.0, 1.0])
def test_games_so_short_that_frames_run_out_of_room_cost_the_oldest_steps_only(priority_alpha: float) -> None:
    """Every game is one step, and has eight frames that are like no other's. The last rollout alone is too long."""
    environments, stories = recorded([[Game(1, False, True)]] * 4, AutoresetMode.SAME_STEP, 84, noise_only=True)
    player = Player(environments)
    replay = Replay(environments.spec, 4000, 4, priority_alpha=priority_alpha)
    generator = torch.Generator().manual_seed(0)
    held = []
    for steps in (25, 25, 50, 75, 60, 220):
        replay.add(player.play(steps))
        held.append(len(replay))
        newest = {step for story in stories for step in story[-(len(replay) // 4) :]}
        drawn = set(draw_all(replay, generator, times=1))
        assert drawn <= newest
        assert len(drawn) > len(newest) / 2
    assert held[:4] == [100, 200, 400, 700]
    assert all(780 < size < 850 for size in held[4:]), held


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
    Replay(given, 1600, 16, priority_alpha=priority_alpha).add(rollout)  # NumPy imports parts of itself when they are first used
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


def test_its_memory_is_not_only_promised() -> None:
    """It would be found missing when the ring is nearly full, after hours."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else it may be made of what earlier tests gave back, which is there already
    needed, before = bytes_needed(spec_of(84), 8_000, 16), anonymous_bytes()
    replay = Replay(spec_of(84), 8_000, 16)
    assert anonymous_bytes() - before > 0.95 * needed
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


def anonymous_bytes() -> int:
    """Memory of this process that is there, without that of files."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


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
    replay.update_priorities(old[:1], torch.tensor([20.0]))
    batch = replay.sample(64, generator)
    assert torch.equal(batch.weights, torch.ones(64))
    assert len(set(batch.indices.tolist())) == 10
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
