"""What the policy-gradient algorithms share: sampling actions, the memory of a recurrent network, the values behind a rollout, one step.

Acting may go group by group: the sampled actions do not depend on how the environments are grouped.

A recurrent network's state goes on from rollout to rollout and is forgotten where a game begins. The slab keeps what it was after every
step, so that the values behind a rollout can be asked for, and the first one is kept for learning: the update goes through the whole
rollout again from there, and its gradient reaches back to the rollout's beginning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from zpala.rl.algorithm import Algorithm
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActorCritic, Network, Output
from zpala.rl.optimizers import Optimizer, clip_gradient_norm
from zpala.rl.policies import Evaluated
from zpala.rl.returns import Discounts, discounts, lambda_returns
from zpala.rl.rollout import PerStep, Rollout

STATES, DRAWS = "states", "draws"


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
            self._noise = torch.empty(shape, device=self.device)
            if self.device.type != "cpu":
                self._observations = torch.empty_like(rollout.observations, device=self.device)
            if self.network.state_size:
                self._state = torch.zeros((rollout.num_envs, self.network.state_size), device=self.device)
                self._fresh = torch.ones((rollout.num_steps, rollout.num_envs), dtype=torch.bool, device=self.device)
        self.policy.fill(self._noise, self._generator)
        if self._reuses:
            self.network.activations.begin(rollout.num_steps * rollout.num_envs)
        if self.network.state_size:
            self._first_state = self._state.clone()

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

    def _look(self, rollout: Rollout, t: int, start: int, stop: int) -> Output:
        """What the network says of observation ``t`` of the environments [start, stop), remembering it if it has a memory."""
        observation = self._observation(rollout, t, start, stop)
        if not self.network.state_size:
            return cast(Output, self._actor(observation))
        return self._remember(rollout, t, start, stop, observation)

    def _look_for_policy(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        """The same, without the value."""
        observation = self._observation(rollout, t, start, stop)
        if not self.network.state_size:
            return self._actor.policies(observation)
        return self._remember(rollout, t, start, stop, observation).policy

    def _remember(self, rollout: Rollout, t: int, start: int, stop: int, observation: Tensor) -> Output:
        # Row t - 1 of the slab says whether a game ended there; before row 0 that is the last row of the rollout before, which still stands
        # there. A reset step is followed by the first observation of a game, too. In a new slab every game has just ended.
        ended = rollout.terminated[t - 1, start:stop] | rollout.truncated[t - 1, start:stop] | ~rollout.valid[t - 1, start:stop]
        self._fresh[t, start:stop] = ended
        step = self._actor.step(observation, self._fresh[t, start:stop], self._state[start:stop])
        self._state[start:stop] = rollout.extra[STATES][t, start:stop] = step.state
        return Output(step.policy, step.values)

    def _draw(self, outputs: Tensor, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        """One draw of the policy for each row of ``outputs`` f32[stop - start, P]."""
        draws = self.policy.draw(outputs, self._noise[t, start:stop])
        if self.policy.latent:
            rollout.extra[DRAWS][t, start:stop] = draws
        return draws

    def _observation(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        """Observation ``t`` on the device."""
        observation = rollout.observations[t, start:stop]
        if self._observations is None:
            return observation
        return self._observations[t, start:stop].copy_(observation, non_blocking=True)

    # -- for subclasses: learning ------------------------------------------------------------------------------------------------------

    def _batch(self, rollout: Rollout) -> Batch:
        """The whole rollout on the device, ends of games as discounts, with the values behind it by the present parameters."""
        observations = self._observations if self._observations is not None else rollout.observations
        rewards, valid = self._move(rollout.rewards), self._move(rollout.valid)
        terminated, truncated = self._move(rollout.terminated), self._move(rollout.truncated)
        draws = rollout.extra[DRAWS] if self.policy.latent else self._move(rollout.actions)
        if self._constants.clip_rewards:
            rewards = rewards.clamp(-1.0, 1.0)
        final_values, bootstrap_values = self._values_behind(rollout)
        discount = discounts(terminated, truncated, self._constants.gamma)
        return Batch(observations[:-1], draws, rewards, discount, valid, final_values, bootstrap_values)

    def _forward(self, batch: Batch) -> Output:
        """What the network says of the whole rollout, f32[T * N, P] and f32[T * N]."""
        with self.network.activations.recalling() if self._reuses else nullcontext():
            if not self.network.state_size:
                return cast(Output, self.network(batch.observations.flatten(0, 1)))
            return self.network.unroll(batch.observations, self._fresh, self._first_state)

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
        """What is remembered when observation T comes: 0 where a game begins with it (its value is not used then)."""
        ended = self._move(rollout.terminated[-1] | rollout.truncated[-1] | ~rollout.valid[-1])
        return torch.where(ended.unsqueeze(-1), 0.0, rollout.extra[STATES][-1])

    def _descend(self, total: Tensor, learning_rate: float, numbers: Sequence[Tensor]) -> tuple[bool, float, list[float]]:
        """One optimiser step down the gradient of ``total``, scaled to ``max_grad_norm``; none if loss or gradient are not finite.

        Returns: whether they are finite, the L2 norm before clipping, and ``numbers`` (scalars of the device) as floats.
        """
        self.flat.zero_gradients()
        total.backward()  # type: ignore[no-untyped-call]
        self._differentiated()
        norm = clip_gradient_norm(self.flat.gradients, self._constants.max_grad_norm)
        # The one moment when the host waits for the device: nothing may be applied before it is known to be finite.
        loss, grad_norm, *floats = torch.stack([total.detach(), norm, *(number.detach() for number in numbers)]).tolist()
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            self.optimizer.step(self.flat.parameters, self.flat.gradients, learning_rate)
        return finite, grad_norm, floats

    def _differentiated(self) -> None:
        """The gradient of a loss lies in ``flat.gradients``, not scaled yet: learners of one model that go in step average it here."""

    def _observe(self, batch: Batch) -> None:
        """Lets running statistics of observations, if there are any, see the rollout, when everything has been learnt from it."""
        self.network.observe(batch.observations.flatten(0, 1), batch.valid.flatten())

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def explained_variance(values: Tensor, returns: Tensor, valid: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the valid steps, a f32 scalar; 0 when all returns are equal. All arguments have one shape."""
    if not bool(valid.all()):
        values, returns = values[valid], returns[valid]
    variance = torch.var(returns, correction=0)
    return torch.where(variance > 0.0, 1.0 - torch.var(returns - values, correction=0) / variance, 0.0)
