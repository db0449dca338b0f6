"""What the policy-gradient algorithms share: sampling actions, the memory of a recurrent network, the values behind a rollout, one step.

Acting may go group by group: the sampled actions do not depend on how the environments are grouped.

A recurrent network's state goes on from rollout to rollout and is forgotten where a game begins. The slab keeps what it was after every
step, so that the values behind a rollout can be asked for, and the first one is kept for learning: the update goes through the whole
rollout again from there, and its gradient reaches back to the rollout's beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from zpala.rl.algorithm import Algorithm
from zpala.rl.execution import Fixed
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActorCritic, Network, Output
from zpala.rl.optimizers import Optimizer
from zpala.rl.policies import Evaluated
from zpala.rl.returns import Discounts, discounts, lambda_returns
from zpala.rl.rollout import PerStep, Rollout

# What acting may leave in the slab: ``per_step`` of an algorithm has those that it wants.
STATES, DRAWS, LOG_PROBABILITIES, VALUES = "states", "draws", "log_probabilities", "values"


@dataclass(frozen=True, slots=True)
class PolicyGradientSettings:
    """Constants that all of them have.

    Attributes:
        gamma: discount per env_step.
        gae_lambda: 1: advantages are n-step returns minus values; less: of lower variance and more bias (generalised advantages).
        entropy_coefficient, value_coefficient: weights of the mean entropy and the mean squared value error in the loss.
        max_grad_norm: the gradient is scaled down to this L2 norm.
        normalize_advantage: the policy's part of the loss sees advantages with mean 0 and standard deviation 1 over the steps of a loss.
        clip_rewards: learn from rewards clipped to [-1, 1].
    """

    gamma: float = 0.99
    gae_lambda: float = 1.0
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5
    max_grad_norm: float = 0.5
    normalize_advantage: bool = False
    clip_rewards: bool = False


class Sight(NamedTuple):
    """What acting goes by, for N environments. ``fresh`` and ``state``: only of a network with a memory."""

    observation: Tensor  # [N, ...]
    noise: Tensor  # f32[N, ...]
    fresh: Tensor | None  # bool[N]
    state: Tensor | None  # f32[N, S]


class Columns(NamedTuple):
    """What learning takes from the slab. Where games were truncated it is known already what the values behind the rollout are."""

    draws: Tensor  # [T, N, ...] of the policy
    rewards: Tensor  # f32[T, N], raw
    terminated: Tensor  # bool[T, N]
    truncated: Tensor  # bool[T, N]
    valid: Tensor  # bool[T, N]
    final_values: Tensor | None  # f32[T, N]; None: no game was truncated
    behind: Tensor  # the value of observation T, f32[N]; without final_values the observation, [N, ...]


class Batch(NamedTuple):
    """A rollout on the network's device. ``final_values``: None when no game was truncated."""

    observations: Tensor  # [T, N, ...]
    draws: Tensor  # [T, N, ...] of the policy
    rewards: Tensor  # f32[T, N], clipped if the settings say so
    discount: Discounts  # f32[T, N] each
    valid: Tensor  # bool[T, N]
    final_values: Tensor | None  # f32[T, N]
    bootstrap_values: Tensor  # f32[N]


class PolicyGradient(Algorithm):
    """Draws from the network's policy and steps once per loss. See ``Algorithm``.

    Args:
        reuse_activations: what the trunk's convolutions computed when the actions were chosen is kept for learning; only for who learns
            from a rollout as a whole, with the parameters that it acted with.
    """

    Settings = PolicyGradientSettings
    network: ActorCritic

    def __init__(
        self,
        network: Network,
        flat: FlatParameters,
        optimizer: Optimizer,
        settings: Any,
        *,
        seed: int,
        reuse_activations: bool = False,
    ) -> None:
        super().__init__(network, flat, optimizer, settings, seed=seed)
        self.policy = self.network.distribution
        self._reuses = reuse_activations and self.network.activations.possible
        self._actor = self.network  # with which it acts
        self._constants: PolicyGradientSettings = settings
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._kept: tuple[str, ...] = ()  # what acting leaves in the slab
        self._noise = torch.empty(0)
        self._observations: Tensor | None = None
        self._state = self._first_state = torch.empty(0)  # f32[N, S], now and before the rollout
        self._fresh = torch.empty(0)  # bool[T, N]: observation t begins a game
        self._remembered: Tensor | None = None  # f32[B, S], in evaluation

    def per_step(self) -> dict[str, PerStep]:
        found = {}
        if self.network.state_size:
            found[STATES] = PerStep(shape=(self.network.state_size,))
        if self.policy.latent:
            found[DRAWS] = PerStep(shape=self.policy.noise_shape)
        return found

    def begin(self, rollout: Rollout, progress: float) -> None:
        """All noise of the rollout at once."""
        shape = (rollout.num_steps, rollout.num_envs, *self.policy.noise_shape)
        if self._noise.shape != shape:
            self._kept = tuple(name for name in self.per_step() if name in (STATES, DRAWS, LOG_PROBABILITIES, VALUES))
            self._noise = torch.empty(shape, device=self.device)
            if self.device.type != "cpu":
                self._observations = torch.empty_like(rollout.observations, device=self.device)
            if self.network.state_size:
                self._state = torch.zeros((rollout.num_envs, self.network.state_size), device=self.device)
                self._first_state = torch.empty_like(self._state)
                self._fresh = torch.ones((rollout.num_steps, rollout.num_envs), dtype=torch.bool, device=self.device)
        self.policy.fill(self._noise, self._generator)
        if self._reuses:
            self.network.activations.begin(rollout.num_steps * rollout.num_envs)
        if self.network.state_size:
            self._first_state.copy_(self._state)

    def act(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        cells = t, slice(start, stop)
        with self._looking(rollout, t, start, stop):
            sight = Sight(self._observation(rollout, t, start, stop), self._noise[cells], *self._memory(rollout, t, start, stop))
            actions, *kept = self.executor.run(self._act, sight, {})
            for name, tensor in zip(self._kept, kept, strict=True):
                rollout.extra[name][cells] = tensor
            if self.network.state_size:
                self._state[start:stop] = rollout.extra[STATES][cells]
        return actions

    @torch.inference_mode()
    def choose(self, observations: Tensor, begins: Tensor, sampler: torch.Generator | None) -> Tensor:
        observations = self._move(observations)
        if self.network.state_size:
            if self._remembered is None or len(self._remembered) != len(begins):
                self._remembered = torch.zeros((len(begins), self.network.state_size), device=self.device)
            step = self.network.step(observations, self._move(begins), self._remembered)
            outputs, self._remembered = step.policy.cpu(), step.state
        else:
            outputs = self.network.policies(observations).cpu()
        if sampler is None:
            return self.policy.actions(self.policy.mode(outputs))
        noise = torch.empty((len(outputs), *self.policy.noise_shape))
        self.policy.fill(noise, sampler)
        return self.policy.actions(self.policy.draw(outputs, noise))

    def local_state(self) -> Mapping[str, Tensor]:
        """The random stream that actions are drawn from."""
        return {"generator": self._generator.get_state()}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])

    # -- for subclasses: acting --------------------------------------------------------------------------------------------------------

    def _looking(self, rollout: Rollout, t: int, start: int, stop: int) -> AbstractContextManager[Any]:
        """Around what the network says of observation ``t`` of the environments [start, stop): no graph; kept, if it is used again."""
        if not self._reuses:
            return torch.inference_mode()
        return self.network.activations.keeping(t * rollout.num_envs + start, t * rollout.num_envs + stop)

    def _act(self, sight: Sight, fixed: Fixed) -> tuple[Tensor, ...]:
        """One draw of the policy for each row: the actions, and of what was found with them what the slab keeps."""
        found: dict[str, Tensor] = {}
        if sight.fresh is not None and sight.state is not None:
            outputs, found[VALUES], found[STATES] = self._actor.step(sight.observation, sight.fresh, sight.state)
        elif VALUES in self._kept:
            outputs, found[VALUES] = self._actor(sight.observation)
        else:
            outputs = self._actor.policies(sight.observation)
        draws = found[DRAWS] = self.policy.draw(outputs, sight.noise)
        if LOG_PROBABILITIES in self._kept:
            found[LOG_PROBABILITIES] = self.policy.log_probabilities(outputs, draws)
        return self.policy.actions(draws), *(found[name] for name in self._kept)

    def _memory(self, rollout: Rollout, t: int, start: int, stop: int) -> tuple[Tensor | None, Tensor | None]:
        """Where a game begins with observation ``t``, and what is remembered until then; nothing without a memory."""
        if not self.network.state_size:
            return None, None
        # Row t - 1 of the slab says whether a game ended there; before row 0 that is the last row of the rollout before, which still stands
        # there. A reset step is followed by the first observation of a game, too. In a new slab every game has just ended.
        ended = rollout.terminated[t - 1, start:stop] | rollout.truncated[t - 1, start:stop] | ~rollout.valid[t - 1, start:stop]
        self._fresh[t, start:stop] = ended
        return self._fresh[t, start:stop], self._state[start:stop]

    def _observation(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        """Observation ``t`` on the device."""
        observation = rollout.observations[t, start:stop]
        if self._observations is None:
            return observation
        return self._observations[t, start:stop].copy_(observation, non_blocking=True)

    # -- for subclasses: learning ------------------------------------------------------------------------------------------------------

    def _columns(self, rollout: Rollout) -> Columns:
        """Where games were truncated, the values behind them are found out here: how many there are decides a shape."""
        draws = rollout.extra[DRAWS] if self.policy.latent else rollout.actions
        slab = rollout.rewards, rollout.terminated, rollout.truncated, rollout.valid
        if rollout.truncated.any():
            return Columns(draws, *slab, *self._values_behind(rollout))
        return Columns(draws, *slab, None, rollout.observations[-1])

    def _fixed(self, rollout: Rollout) -> Fixed:
        """What learning needs beside ``Columns`` and lies on the device already, always in the same place."""
        memory = {"fresh": self._fresh, "first_state": self._first_state} if self.network.state_size else {}
        return {"observations": self._seen(rollout), **memory, **rollout.extra}

    def _batch(self, columns: Columns, fixed: Fixed) -> Batch:
        """The whole rollout, ends of games as discounts, with the values behind it by the present parameters."""
        rewards = columns.rewards.clamp(-1.0, 1.0) if self._constants.clip_rewards else columns.rewards
        behind = columns.behind
        if columns.final_values is None:
            states = None
            if self.network.state_size:
                ended = columns.terminated[-1] | columns.truncated[-1] | ~columns.valid[-1]
                states = _remembered_behind(ended, fixed[STATES])
            with torch.no_grad():
                behind = self._values(columns.behind, states)
        discount = discounts(columns.terminated, columns.truncated, self._constants.gamma)
        return Batch(fixed["observations"], columns.draws, rewards, discount, columns.valid, columns.final_values, behind)

    def _forward(self, batch: Batch) -> Output:
        """What the network says of the whole rollout, f32[T * N, P] and f32[T * N]."""
        with self.network.activations.recalling() if self._reuses else nullcontext():
            if not self.network.state_size:
                return cast(Output, self.network(batch.observations.flatten(0, 1)))
            return self.network.unroll(batch.observations, self._fresh, self._first_state)

    def _seen(self, rollout: Rollout) -> Tensor:
        """The observations [T, N, ...] that actions were chosen from, on the device."""
        return (rollout.observations if self._observations is None else self._observations)[:-1]

    def _evaluate(self, outputs: Tensor, batch: Batch) -> Evaluated:
        """Log-probabilities of what was drawn, and entropies, f32[T * N] each, from policy outputs f32[T * N, P]."""
        return self.policy.evaluate(outputs, batch.draws.flatten(0, 1))

    def _returns(self, batch: Batch, values: Tensor) -> Tensor:
        """What the values of the rollout's steps should be, f32[T, N]; minus ``values`` f32[T, N] it is the advantage."""
        return lambda_returns(batch.rewards, batch.discount, values, batch.final_values, batch.bootstrap_values, self._constants.gae_lambda)

    @torch.no_grad()
    def _values_behind(self, rollout: Rollout) -> tuple[Tensor | None, Tensor]:
        """V of every truncated game's final observation, f32[T, N] with 0 elsewhere (None: no such game); V of observation T, f32[N]."""
        last = self._move(rollout.observations[-1])
        where = rollout.truncated.nonzero(as_tuple=True)
        if len(where[0]) == 0:
            return None, self._values(last, None if not self.network.state_size else self._state_behind(rollout))
        places = self._move(where[0]), self._move(where[1])
        states = None
        if self.network.state_size:
            states = torch.cat([self._state_behind(rollout), rollout.extra[STATES][places]])
        values = self._values(torch.cat([last, self._move(rollout.final_observations[where])]), states)
        final = torch.zeros((rollout.num_steps, rollout.num_envs), device=self.device)
        final[places] = values[rollout.num_envs :]
        return final, values[: rollout.num_envs]

    def _values(self, observations: Tensor, states: Tensor | None) -> Tensor:
        """V f32[B] of observations [B, ...], seen in ``states`` f32[B, S] by a network with a memory."""
        if states is None:
            return self.network.values(observations)
        fresh = torch.zeros(len(observations), dtype=torch.bool, device=self.device)
        return self.network.step(observations, fresh, states).values

    def _state_behind(self, rollout: Rollout) -> Tensor:
        """What is remembered when observation T comes."""
        ended = rollout.terminated[-1] | rollout.truncated[-1] | ~rollout.valid[-1]
        return _remembered_behind(self._move(ended), rollout.extra[STATES])

    def _differentiated(self) -> None:
        """The gradient of a loss lies in ``flat.gradients``, not scaled yet: learners of one model that go in step average it here."""

    def _observe(self, rollout: Rollout) -> None:
        """Lets running statistics of observations, if there are any, see the rollout, when everything has been learnt from it."""
        if self.network.inputs.normalizer is not None:
            self.network.observe(self._seen(rollout).flatten(0, 1), self._move(rollout.valid).flatten())

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def _remembered_behind(ended: Tensor, states: Tensor) -> Tensor:
    """The last of the ``states`` f32[T, N, S]; 0 where a game begins behind it, ``ended`` bool[N] (its value is not used then)."""
    return torch.where(ended.unsqueeze(-1), 0.0, states[-1])


def explained_variance(values: Tensor, returns: Tensor, valid: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the valid steps, a f32 scalar; 0 when all returns are equal. All arguments have one shape."""
    count = valid.sum().clamp(min=1)

    def variance(x: Tensor) -> Tensor:
        mean = torch.where(valid, x, 0.0).sum() / count
        return torch.where(valid, (x - mean).square(), 0.0).sum() / count

    of_returns = variance(returns)
    return torch.where(of_returns > 0.0, 1.0 - variance(returns - values) / of_returns, 0.0)
