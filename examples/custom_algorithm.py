"""A learning algorithm of one's own, named by its file and class: REINFORCE (Williams 1992, doi 10.1007/BF00992696).

    zpala launch -n 2 --algorithm examples/custom_algorithm.py:Reinforce --num-steps 100 --lr 0.01 --total-env-steps 200000

``--algorithm-arg baseline=false`` sets a field of ``ReinforceSettings``; ``gamma`` has a field of its own in the run file. What the methods
may rely on stands in zpala/rl/algorithm.py; gossip averages the parameters of the network between two updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zpala.rl import ActorCritic, Algorithm, FlatParameters, Network, Optimizer, Rollout, Statistics, clip_gradient_norm


@dataclass(frozen=True)
class ReinforceSettings:
    """``baseline``: subtract from what followed an action what followed in the other environments at the same time."""

    gamma: float
    baseline: bool = True
    max_grad_norm: float = 0.5


class Reinforce(Algorithm):
    """Makes every action more probable in proportion to the discounted rewards that followed it within the game and the rollout.

    Any action space will do: the network's ``distribution`` says what its outputs mean. The network's value is not used.
    """

    Settings = ReinforceSettings
    network: ActorCritic

    def __init__(self, network: Network, flat: FlatParameters, optimizer: Optimizer, settings: ReinforceSettings, *, seed: int) -> None:
        super().__init__(network, flat, optimizer, settings, seed=seed)
        self.settings = settings
        self.policy = self.network.distribution
        if self.network.state_size or self.policy.latent:
            raise ValueError("leave network.core and network.squash_actions as they are")
        self.generator = torch.Generator(self.device).manual_seed(seed)

    @torch.no_grad()
    def act(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        return self.draw(self.network.policies(rollout.observations[t, start:stop].to(self.device)), self.generator)

    def draw(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.empty((len(outputs), *self.policy.noise_shape), device=outputs.device)
        self.policy.fill(noise, generator)
        return self.policy.draw(outputs, noise)

    @torch.no_grad()
    def choose(self, observations: Tensor, begins: Tensor, sampler: torch.Generator | None) -> Tensor:
        outputs = self.network.policies(observations.to(self.device)).cpu()
        return self.policy.mode(outputs) if sampler is None else self.draw(outputs, sampler)

    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        weight = rollout.valid / rollout.valid.sum().clamp(min=1)  # rows that only reset an environment teach nothing
        followed = torch.zeros_like(rollout.rewards)
        later = torch.zeros(rollout.num_envs)
        for t in reversed(range(rollout.num_steps)):
            goes_on = ~(rollout.terminated[t] | rollout.truncated[t])
            later = followed[t] = rollout.rewards[t] + self.settings.gamma * goes_on * later
        if self.settings.baseline and rollout.num_envs > 1:
            followed -= (followed * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1e-9)

        outputs = self.network.policies(rollout.observations[:-1].flatten(0, 1).to(self.device))
        log_probabilities = self.policy.log_probabilities(outputs, rollout.actions.flatten(0, 1).to(self.device))
        loss = -torch.dot(log_probabilities, (followed * weight).flatten().to(self.device))
        self.flat.zero_gradients()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradient_norm(self.flat.gradients, self.settings.max_grad_norm)
        finite = bool(loss.isfinite() and norm.isfinite())
        if finite:
            self.optimizer.step(self.flat.parameters, self.flat.gradients, learning_rate)
        return Statistics(finite, {"policy_loss": loss.item(), "grad_norm": norm.item()})
