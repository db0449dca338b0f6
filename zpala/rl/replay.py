"""Replay memory: the last env_steps of a node, from which off-policy algorithms draw transitions. Local to the node, never averaged.

Owned here: the ring, what a transition is, and how frames are shared. The algorithm owns the random generator and says when to draw.

A transition is what one valid cell of a rollout tells: observation, action, reward, the observation after it, and whether the game
terminated. The observation after it is the final one where the game was truncated, since its value goes on, and the next one of the rollout
everywhere else: behind ``terminated`` that may be the next game's, whose value nobody may use. Masked reset steps are stored and never
drawn. The observation behind the last step of a rollout is stored with that step, so every transition is complete as soon as it is there.

A transition of up to n steps (Sutton 1988, doi 10.1007/BF00115009; Hessel et al. 2018, arXiv 1710.02298) is put together when it is drawn:
it begins with a cell and goes on through the rows behind it, until the game ends in any way or the newest row is reached. The memory is the
same for every n. That the later actions were those of an older policy is not corrected for, as in Rainbow.

Frames. An Atari observation is a stack of the last C frames, so that two consecutive ones have C - 1 frames in common. Each frame is stored
once, and an observation is the list of its frames' numbers. What is not the observation before, moved by one frame, is stored whole (equal
neighbours within it once); this is decided by comparing, not by what a simulator is believed to do. Measured with ale-py 0.11.2 and
``AtariEnvironments`` on Pong, Breakout and Qbert, with and without ``life_loss``, no-ops and time limits of both kinds: every game begins
with three black frames and one picture, however it began (in Qbert the picture may be black, too); every final observation is the one
before, moved by one; a lost life changes nothing. So a game costs one frame more than it has steps, and one more if it was truncated. Other
observations are stacks of one frame: themselves.

Frames are written one after the other into a ring of their own. It has some room to spare; where games are so short that it runs out, the
oldest steps leave early, and the memory holds fewer than its capacity.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zpala.rl.environments import EnvironmentSpec
from zpala.rl.priorities import Priorities, tree_bytes
from zpala.rl.rollout import Rollout

_ABSURD_BYTE = 173
_SPARE_BYTES = 16 * 2**20  # room for frames beyond one per step, where a thirty-second of the capacity is less
_SMALLEST_ERROR = 1e-6  # no transition is left out for ever because its error once was 0


class Transitions(NamedTuple):
    """A batch on the CPU, in memory of its own; page-locked when the replay is pinned, so that a CUDA device copies asynchronously."""

    observations: Tensor  # dtype[B, ...]
    actions: Tensor  # i64[B]
    rewards: Tensor  # f32[B] raw unless clipping was asked for; the discounted sum over the k steps of the transition, k >= 1
    next_observations: Tensor  # dtype[B, ...] behind the last of them; where terminated: of the next game
    terminated: Tensor  # bool[B] whether the last of them was the end
    discounts: Tensor  # f32[B] gamma ** k, of what the next observation is worth where it is worth anything
    weights: Tensor  # f32[B] in (0, 1]: importance sampling weights; 1 when drawn uniformly
    indices: Tensor  # i64[B] rows ever added before it * environments + environment: names a transition for ever


class Replay:
    """The last ``capacity`` env_steps of ``num_envs`` environments. One thread uses it. Its memory is taken, and touched, at once.

    Args:
        capacity: in env_steps, rounded down to whole rows of ``num_envs``; masked reset steps count.
        priority_alpha: 0: uniform. More: proportional prioritisation, p = (|error| + 1e-6) ** alpha (Schaul et al. 2016, arXiv 1511.05952,
            section 3.3). A new transition has the largest p so far.
        pinned: batches are page-locked. The memory itself is not: it is too large for that.
    """

    def __init__(self, spec: EnvironmentSpec, capacity: int, num_envs: int, *, priority_alpha: float = 0.0, pinned: bool = False) -> None:
        layout = _layout(spec, capacity, num_envs)
        self.num_envs = num_envs
        self.capacity = layout.rows * num_envs
        self._layout, self._alpha, self._pinned = layout, priority_alpha, pinned
        self._shape, self._dtype = spec.observation_shape, torch.from_numpy(np.zeros(1, dtype=spec.observation_dtype)).dtype
        self._frames = np.full((layout.frames, layout.frame_bytes), _ABSURD_BYTE, dtype=np.uint8).view(layout.word)
        cells = (layout.rows, num_envs)
        self._stacks = np.full((*cells, layout.stack), 0, dtype=np.int64)  # numbers of the frames of an observation, oldest first
        self._next_stacks = np.full((*cells, layout.stack), 0, dtype=np.int64)
        self._actions = np.full(cells, 0, dtype=np.int64)
        self._rewards = np.full(cells, 0.0, dtype=np.float32)
        self._terminated = np.full(cells, False)
        self._ended = np.full(cells, False)  # terminated or truncated: the next row is of another game
        self._valid = np.full(cells, False)
        self._priorities = Priorities(self.capacity) if priority_alpha else None
        self._largest = 1.0  # p of new transitions
        self._frame_count = 0  # frames ever written; number n lies in place n % frames until n + frames is written
        self._oldest = self._newest = 0  # rows [oldest, newest) are there; row r lies in place r % rows
        self._size = 0
        self._head: NDArray[np.int64] | None = None  # [N, C] the stacks of the observations behind the newest row

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return self._size

    def add(self, rollout: Rollout) -> None:
        """Takes a full rollout over; the oldest transitions leave.

        Raises:
            ValueError: the rollout does not begin with the observations that the one before ended with, or does not fit at all.
        """
        arrays = rollout.arrays()
        if rollout.num_envs != self.num_envs or rollout.num_steps > self._layout.rows:
            raise ValueError(
                f"a replay of {self._layout.rows} rows of {self.num_envs} environments does not take a rollout of "
                f"{rollout.num_steps} rows of {rollout.num_envs}"
            )
        observations, finals = self._as_frames(arrays["observations"]), self._as_frames(arrays["final_observations"])
        head = self._begin(observations[0])
        cut_off = arrays["truncated"] & ~arrays["terminated"]
        was_oldest, was_newest = self._oldest, self._newest
        for t in range(rollout.num_steps):
            if self._newest - self._oldest == self._layout.rows:
                self._drop_oldest()
            following = self._store_moved(head, observations[t], observations[t + 1])
            place = self._newest % self._layout.rows
            self._stacks[place], self._next_stacks[place] = head, following
            for n in np.flatnonzero(cut_off[t]):
                if not np.array_equal(finals[t, n], observations[t + 1, n]):
                    cell = slice(n, n + 1)
                    self._next_stacks[place, n] = self._store_moved(head[cell], observations[t, cell], finals[t, cell])[0]
            self._actions[place] = arrays["actions"][t]
            self._rewards[place] = arrays["rewards"][t]
            self._terminated[place] = arrays["terminated"][t]
            self._ended[place] = arrays["terminated"][t] | arrays["truncated"][t]
            self._valid[place] = arrays["valid"][t]
            self._size += int(np.count_nonzero(self._valid[place]))
            self._newest += 1
            self._head = head = following
        if self._priorities is not None:
            self._priorities.set(self._cells(was_oldest, self._oldest), 0.0)
            added = self._cells(max(was_newest, self._oldest), self._newest)
            self._priorities.set(added, np.where(self._valid.reshape(-1)[added], self._largest, 0.0))

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        beta: float = 1.0,
        n_steps: int = 1,
        gamma: float = 1.0,
        clip_rewards: bool = False,
    ) -> Transitions:
        """Draws transitions with replacement. Which ones does not depend on how long they are.

        Args:
            generator: of the CPU.
            beta: with priorities: weights are (size * P(i)) ** -beta, divided by the largest of the batch.
            n_steps: a transition has so many steps, fewer where the game ended or the newest step is among them.
            gamma: discount per step.
            clip_rewards: the reward of every step is clipped to [-1, 1] before they are summed.
        Raises:
            ValueError: nothing is stored yet, or a transition shall have no step.
        """
        if n_steps < 1:
            raise ValueError(f"a transition has at least one step, not {n_steps}")
        if self._size == 0:
            raise ValueError("the replay is empty: nothing can be drawn")
        cells = self._draw_uniformly(batch_size, generator) if self._priorities is None else self._priorities.draw(batch_size, generator)
        rows, environments = np.divmod(cells, self.num_envs)
        rows = self._oldest + (rows - self._oldest) % self._layout.rows
        rewards, last, steps = self._summed(cells, rows, n_steps, gamma, clip_rewards)
        return Transitions(
            observations=self._observations(self._stacks, cells),
            actions=self._ready(self._actions.reshape(-1)[cells]),
            rewards=self._ready(rewards),
            next_observations=self._observations(self._next_stacks, last),
            terminated=self._ready(self._terminated.reshape(-1)[last]),
            discounts=self._ready((gamma**steps).astype(np.float32)),
            weights=self._ready(self._weights(cells, beta)),
            indices=torch.from_numpy(rows * self.num_envs + environments),
        )

    def update_priorities(self, indices: Tensor, errors: Tensor) -> None:
        """Gives transitions the priorities of their errors. Those that have left are passed over; without priorities nothing happens.

        Args:
            indices: i64[B] as ``sample`` gave them.
            errors: [B] temporal-difference errors of any sign, on any device.
        Raises:
            ValueError: an error is not finite.
        """
        if self._priorities is None:
            return
        magnitudes = errors.detach().abs().double().cpu().numpy()
        if not np.isfinite(magnitudes).all():
            raise ValueError("an error that is not finite is no priority")
        numbers = indices.numpy()
        there = numbers >= self._oldest * self.num_envs
        priorities = (magnitudes[there] + _SMALLEST_ERROR) ** self._alpha
        self._priorities.set(numbers[there] % self.capacity, priorities)
        self._largest = max(self._largest, float(priorities.max(initial=0.0)))

    # -- writing -----------------------------------------------------------------------------------------------------------------------

    def _as_frames(self, observations: NDArray[Any]) -> NDArray[Any]:
        """word[T, N, C, W], a view of [T, N, ...]."""
        words = observations.view(np.uint8).reshape(*observations.shape[:2], self._layout.stack, self._layout.frame_bytes)
        return words.view(self._layout.word)

    def _begin(self, first: NDArray[Any]) -> NDArray[np.int64]:
        """The stacks i64[N, C] of the rollout's first observations, which are those behind the last one."""
        if self._head is None:
            return np.stack([self._store_whole(first[n]) for n in range(self.num_envs)])
        if not np.array_equal(self._frames[self._head % self._layout.frames], first):
            raise ValueError("the rollout does not go on where the one before ended: its first observations are others")
        return self._head

    def _store_moved(self, stacks: NDArray[np.int64], before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.int64]:
        """Stores what is new in ``after`` [n, C, W] and returns its stacks i64[n, C]; ``stacks`` are those of ``before``."""
        new = np.empty_like(stacks)
        moved = (after[:, :-1] == before[:, 1:]).all(axis=(1, 2))
        new[:, :-1] = stacks[:, 1:]
        if moved.all():
            new[:, -1] = self._store(after[:, -1])
            return new
        new[moved, -1] = self._store(after[moved, -1])
        for n in np.flatnonzero(~moved):
            new[n] = self._store_whole(after[n])
        return new

    def _store_whole(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Stores ``frames`` [C, W], of equal neighbours the first; returns their numbers i64[C]."""
        other = np.ones(len(frames), dtype=np.bool_)
        other[1:] = (frames[1:] != frames[:-1]).any(axis=1)
        numbers: NDArray[np.int64] = self._store(frames[other])[np.cumsum(other) - 1]
        return numbers

    def _store(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Writes ``frames`` [k, W] and returns their numbers i64[k]; steps whose frames are overwritten leave."""
        numbers = np.arange(self._frame_count, self._frame_count + len(frames))
        self._frames[numbers % self._layout.frames] = frames
        self._frame_count += len(frames)
        gone = self._frame_count - self._layout.frames
        while self._oldest < self._newest and self._stacks[self._oldest % self._layout.rows].min() < gone:
            self._drop_oldest()
        return numbers

    def _drop_oldest(self) -> None:
        self._size -= int(np.count_nonzero(self._valid[self._oldest % self._layout.rows]))
        self._oldest += 1

    # -- reading -----------------------------------------------------------------------------------------------------------------------

    def _cells(self, first_row: int, last_row: int) -> NDArray[np.int64]:
        """Where the transitions of the rows [first_row, last_row) lie."""
        return np.arange(first_row * self.num_envs, last_row * self.num_envs) % self.capacity

    def _draw_uniformly(self, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        """Cells with a valid step. At most every second cell is a masked one, so a few tries are enough."""
        first, cells = self._oldest * self.num_envs, (self._newest - self._oldest) * self.num_envs
        drawn = np.empty(0, dtype=np.int64)
        while len(drawn) < count:
            tried = (first + torch.randint(cells, (count - len(drawn),), generator=generator).numpy()) % self.capacity
            drawn = np.concatenate([drawn, tried[self._valid.reshape(-1)[tried]]])
        return drawn

    def _summed(
        self, cells: NDArray[np.int64], rows: NDArray[np.int64], n_steps: int, gamma: float, clip: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
        """What begins at ``cells``, which are of ``rows``: the sums of rewards, the cells of the last steps, the numbers of steps."""
        ended, valid, rewards = self._ended.reshape(-1), self._valid.reshape(-1), self._rewards.reshape(-1)
        sums = _clipped(rewards[cells], clip).astype(np.float64)
        last, steps = cells.copy(), np.ones(len(cells))
        longer = np.arange(len(cells))  # which of the batch may have one step more
        for k in range(1, n_steps):
            following = (last[longer] + self.num_envs) % self.capacity
            goes_on = ~ended[last[longer]] & (rows[longer] + k < self._newest) & valid[following]
            longer, following = longer[goes_on], following[goes_on]
            if len(longer) == 0:
                break
            sums[longer] += gamma**k * _clipped(rewards[following], clip)
            last[longer] = following
            steps[longer] += 1.0
        return sums.astype(np.float32), last, steps

    def _weights(self, cells: NDArray[np.int64], beta: float) -> NDArray[np.float32]:
        if self._priorities is None:
            return np.ones(len(cells), dtype=np.float32)
        priorities = self._priorities.get(cells)
        return np.asarray((priorities / priorities.min()) ** -beta, dtype=np.float32)

    def _observations(self, stacks: NDArray[np.int64], cells: NDArray[np.int64]) -> Tensor:
        places = stacks.reshape(self.capacity, -1)[cells] % self._layout.frames
        batch = torch.empty((len(cells), *self._shape), dtype=self._dtype, pin_memory=self._pinned)
        out = self._as_frames(batch.numpy()[np.newaxis])[0]
        np.take(self._frames, places, axis=0, out=out, mode="clip")  # "raise" would go through a buffer
        return batch

    def _ready(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self._pinned else tensor


def bytes_needed(spec: EnvironmentSpec, capacity: int, num_envs: int, *, priority_alpha: float = 0.0) -> int:
    """Memory of ``Replay`` with these arguments, without making it."""
    layout = _layout(spec, capacity, num_envs)
    cells = layout.rows * num_envs
    per_cell = 2 * 8 * layout.stack + 8 + 4 + 1 + 1 + 1
    return layout.frames * layout.frame_bytes + cells * per_cell + (tree_bytes(cells) if priority_alpha else 0)


def _clipped(rewards: NDArray[np.float32], clip: bool) -> NDArray[np.float32]:
    return np.clip(rewards, np.float32(-1.0), np.float32(1.0)) if clip else rewards


class _Layout(NamedTuple):
    rows: int  # of steps
    frames: int  # places in the ring of frames
    stack: int  # frames of an observation
    frame_bytes: int
    word: np.dtype[Any]  # in which frames are copied and compared


def _layout(spec: EnvironmentSpec, capacity: int, num_envs: int) -> _Layout:
    rows = capacity // num_envs
    if rows < 1:
        raise ValueError(f"a replay of {capacity} env_steps has no room for one step of {num_envs} environments")
    stack = spec.observation_shape[0] if spec.atari else 1
    frame_bytes = math.prod(spec.observation_shape) // stack * np.dtype(spec.observation_dtype).itemsize
    # A step stores at most a whole observation and a whole final one. However short the games are, the stacks of one row and what follows
    # it must not overwrite each other.
    most = 2 * stack * num_envs
    spare = max(most * (stack + 2), min(most * rows, max(rows * num_envs // 32, _SPARE_BYTES // frame_bytes)))
    return _Layout(rows, rows * num_envs + spare, stack, frame_bytes, np.dtype(np.uint64 if frame_bytes % 8 == 0 else np.uint8))
