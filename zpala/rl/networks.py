"""Networks: trunks with heads. ``ActorCritic`` is what policy-gradient algorithms call, ``ActionValues`` what Q-learning calls.

Every network initialises itself from one seed with a generator of its own, so that every node starts equal. Weights are orthogonal (gain
sqrt 2; 0.01 for the policy head, 1 for heads of values), biases 0, unless a trunk says otherwise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from zpala.rl.action_spaces import Discrete
from zpala.rl.activations import Activations
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.inputs import Inputs, Normalizer, Prepared, Unpacking
from zpala.rl.lstm import LSTM
from zpala.rl.observations import ObservationPart
from zpala.rl.policies import Gaussian, Policy, policy_for
from zpala.rl.precision import Precision, arithmetic
from zpala.rl.trunks import IMAGE_MIN, MLP, Activation, Combined, ImageTrunk, NetworkName, Trunk, build_trunk, linear

Core = Literal["none", "lstm"]
Heads = Literal["actor_critic", "action_values"]


class Network(nn.Module, ABC):
    """What both kinds have in common.

    Attributes:
        inputs: what happens to an observation before the trunks see it.
        trunk: the only one, or the policy's.
        activations: its memory of what it computed when actions were chosen.
        precision: with which its trunks compute.
    """

    inputs: Inputs
    trunk: Trunk
    activations: Activations
    precision: Precision = "float32"

    def observe(self, observations: Tensor, valid: Tensor) -> None:
        """Lets the running statistics of observations, if the network has any, see ``observations`` [B, ...] where ``valid`` bool[B]."""
        self.inputs.observe(observations, valid)

    def _features(self, trunk: Trunk, x: Prepared) -> Tensor:
        """What ``trunk`` makes of prepared observations, f32[B, size]."""
        with arithmetic(self.precision, (x if isinstance(x, Tensor) else x[0]).device):
            features: Tensor = trunk(x)
        return features.float()

    @abstractmethod
    def describe(self) -> str:
        """Layers and sizes in one line; nodes whose lines differ must not average."""

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Sets every parameter from ``seed`` alone, independent of torch's global generator."""
        generator = torch.Generator().manual_seed(seed)
        gains = self._gains()
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.orthogonal_(layer.weight, gain=gains.get(id(layer), math.sqrt(2.0)), generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for module in self.modules():
            if isinstance(module, Trunk):
                module.emphasise()
            elif isinstance(module, LSTM):
                module.initialise(generator)

    @abstractmethod
    def _gains(self) -> dict[int, float]:
        """Gains of layers by ``id``, where they are not sqrt 2."""


class Output(NamedTuple):
    """What an ``ActorCritic`` makes of observations."""

    policy: Tensor  # f32[B, P], see ``policies``
    values: Tensor  # f32[B]


class Step(NamedTuple):
    """What an ``ActorCritic`` with a memory makes of one observation of N games."""

    policy: Tensor  # f32[N, P]
    values: Tensor  # f32[N]
    state: Tensor  # f32[N, S], remembered from now on


class ActorCritic(Network):
    """A policy head and a value head, on one trunk for both or on a trunk each, with a memory between trunk and heads if wanted.

    Args:
        critic: the value's own trunk; None: it shares the policy's.
        core: the memory behind the policy's trunk, and its twin behind the critic's.
    Attributes:
        distribution: what the outputs of the policy head mean.
        state_size: S, floats of memory for each game; 0 without a core.
    """

    def __init__(self, inputs: Inputs, trunk: Trunk, distribution: Policy, *, critic: Trunk | None = None, core_size: int = 0) -> None:
        super().__init__()
        # Registered in the order of the forward pass, which is that of the flat vector.
        self.inputs = inputs
        self.trunk = trunk
        self.activations = Activations(trunk)
        self.core = LSTM(trunk.size, core_size) if core_size else None
        self.critic = critic
        self.critic_core = LSTM(critic.size, core_size) if critic is not None and core_size else None
        self.distribution = distribution
        width = core_size or trunk.size
        gaussian = isinstance(distribution, Gaussian)
        self.policy = linear(width, distribution.outputs // 2 if gaussian else distribution.outputs)
        self.log_std = nn.Parameter(torch.zeros(distribution.outputs // 2)) if gaussian else None
        self.value = linear(core_size or (trunk if critic is None else critic).size, 1)
        self._cores = [core for core in (self.core, self.critic_core) if core is not None]
        self.state_size = sum(core.state_size for core in self._cores)

    def forward(self, observation: Tensor) -> Output:
        """Observations [B, ...] -> what the heads say. Not for a network with a memory."""
        x = self.inputs(observation)
        features = self._features(self.trunk, x)
        return Output(self._policy(features), self.value(features if self.critic is None else self._features(self.critic, x)).squeeze(-1))

    def policies(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> policy outputs f32[B, P], without the value."""
        return self._policy(self._features(self.trunk, self.inputs(observation)))

    def values(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> values f32[B], without the policy."""
        x = self.inputs(observation)
        values: Tensor = self.value(self._features(self.trunk if self.critic is None else self.critic, x))
        return values.squeeze(-1)

    def step(self, observation: Tensor, fresh: Tensor, state: Tensor) -> Step:
        """One observation of N games, with a memory.

        Args:
            observation: [N, ...].
            fresh: bool[N], this observation is the first of a game: what was before is forgotten.
            state: f32[N, S], what is remembered from before.
        """
        x = self.inputs(observation)
        states = [core.step(self._features(tower, x), fresh, part) for core, tower, part in self._memories(state)]
        features = [after.chunk(2, dim=-1)[0] for after in states]
        return Step(self._policy(features[0]), self.value(features[-1]).squeeze(-1), torch.cat(states, dim=-1))

    def unroll(self, observations: Tensor, fresh: Tensor, state: Tensor) -> Output:
        """What ``step`` says of T observations of N games, one after the other.

        Args:
            observations: [T, N, ...].
            fresh: bool[T, N].
            state: f32[N, S], what is remembered from before the first.
        Returns:
            of T * N observations.
        """
        x = self.inputs(observations.flatten(0, 1))
        features = [
            core(self._features(tower, x).view(*fresh.shape, -1), fresh, part).flatten(0, 1) for core, tower, part in self._memories(state)
        ]
        return Output(self._policy(features[0]), self.value(features[-1]).squeeze(-1))

    def describe(self) -> str:
        twice = "" if self.critic is None else "2 x "
        core = f", {self.core.describe()}" if self.core is not None else ""
        return (
            f"{self.inputs.describe()}{self.trunk.name} {twice}{self.trunk.layers()}{core}, policy {self.distribution.describe()}, value 1"
        )

    def _memories(self, state: Tensor) -> Iterator[tuple[LSTM, Trunk, Tensor]]:
        """Each core with the trunk before it and its part of the state."""
        towers = [self.trunk] if self.critic is None else [self.trunk, self.critic]
        return zip(self._cores, towers, state.chunk(len(self._cores), dim=-1), strict=True)

    def _policy(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.policy(features)
        return outputs if self.log_std is None else torch.cat([outputs, self.log_std.expand_as(outputs)], dim=-1)

    def _gains(self) -> dict[int, float]:
        return {id(self.policy): 0.01, id(self.value): 1.0}


class ActionValues(Network):
    """One value for every action.

    Args:
        dueling: value + advantage - mean advantage, from a head each (Wang et al. 2016, arXiv 1511.06581, equation 9).
    """

    def __init__(self, inputs: Inputs, trunk: Trunk, num_actions: int, *, dueling: bool = False) -> None:
        super().__init__()
        self.inputs = inputs
        self.trunk = trunk
        self.activations = Activations(trunk)
        self.num_actions = num_actions
        self.advantage = linear(trunk.size, num_actions)
        self.value = linear(trunk.size, 1) if dueling else None

    def forward(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> f32[B, A]."""
        features = self._features(self.trunk, self.inputs(observation))
        advantages: Tensor = self.advantage(features)
        if self.value is None:
            return advantages
        values: Tensor = self.value(features) + advantages - advantages.mean(-1, keepdim=True)
        return values

    def describe(self) -> str:
        dueling = "" if self.value is None else "dueling "
        return f"{self.inputs.describe()}{self.trunk.name} {self.trunk.layers()}, {dueling}values {self.num_actions}"

    def _gains(self) -> dict[int, float]:
        return {id(self.advantage): 1.0, id(self.value): 1.0}


def build_network(
    spec: EnvironmentSpec,
    name: NetworkName,
    hidden_sizes: Sequence[int],
    activation: Activation,
    channels_last: bool,
    seed: int,
    *,
    heads: Heads = "actor_critic",
    contrast: bool = False,
    separate_critic: bool | Literal["auto"] = "auto",
    core: Core = "none",
    core_size: int = 128,
    normalize_observations: bool = False,
    squash_actions: bool = False,
    dueling: bool = False,
    precision: Precision = "float32",
) -> Network:
    """The network for ``spec``, on the CPU, initialised from ``seed``.

    Args:
        name: "auto" takes nature_cnn for byte images and mlp for everything else.
        channels_last, contrast: only for images.
        separate_critic: actor_critic: a trunk for the value alone; "auto": for the mlp without a core. On small observations a shared
            tower lets the value's gradient, which is large while returns grow, push the policy's features around: in trials of CartPole (3
            to 8 seeds, generalised advantages) two towers solved 8 of 8 runs and a shared one 1 of 6.
        core, core_size: actor_critic: a memory of so many units between trunk and heads.
        normalize_observations: vectors get mean 0 and standard deviation 1, see ``inputs.Normalizer``.
        squash_actions: actor_critic: see ``policies.SquashedGaussian``.
        dueling: action_values: see ``ActionValues``.
        precision: of its trunks, see ``precision``; "tf32" is a matter of the process.
    Raises:
        ValueError: the network does not fit observations or actions, or its weights cannot begin so.
    """

    kind: Mapping[str, Any] = {
        "name": name,
        "hidden_sizes": hidden_sizes,
        "activation": activation,
        "channels_last": channels_last,
        "contrast": contrast,
    }

    def trunk() -> Trunk:
        if not spec.parts:
            return build_trunk(spec.observation_shape, spec.observation_dtype, what=spec.id, **kind)
        images = {part.name: build_trunk(part.shape, part.dtype, what=f"{spec.id}'s {part.name}", **kind) for part in _images(spec, name)}
        return Combined(spec.parts, images, hidden_sizes, activation)

    first = trunk()
    unpacking = Unpacking(spec.parts, [part.name for part in _images(spec, name)]) if spec.parts else None
    inputs = Inputs(unpacking, _normalizer(spec, first, unpacking) if normalize_observations else None)
    network: Network
    if heads == "action_values":
        if not isinstance(spec.actions, Discrete):
            raise ValueError(f"values of actions need a Discrete action space, not {spec.actions.describe()}")
        network = ActionValues(inputs, first, spec.actions.n, dueling=dueling)
    else:
        separate = isinstance(first, MLP) and core == "none" if separate_critic == "auto" else separate_critic
        distribution = policy_for(spec.actions, squash=squash_actions)
        size = core_size if core == "lstm" else 0
        network = ActorCritic(inputs, first, distribution, critic=trunk() if separate else None, core_size=size)
    network.precision = precision
    network.initialise(seed)
    return network


def _images(spec: EnvironmentSpec, name: NetworkName) -> list[ObservationPart]:
    """The parts of a packed observation that get a trunk for images."""
    found = [part for part in spec.parts if part.dtype == "uint8" and len(part.shape) == 3 and min(part.shape[1:]) >= IMAGE_MIN]
    if name == "mlp":
        return []
    if name != "auto" and not found:
        raise ValueError(
            f"{name} needs uint8 images, but no part of what {spec.id} gives is one of at least {IMAGE_MIN} x {IMAGE_MIN}. "
            "For vectors there is the mlp."
        )
    return found


def _normalizer(spec: EnvironmentSpec, trunk: Trunk, unpacking: Unpacking | None) -> Normalizer:
    if isinstance(trunk, ImageTrunk):
        raise ValueError(
            f"normalize_observations is for vectors, and {spec.id} gives images of bytes: {trunk.name} scales them itself. "
            "Leave it at false, or try initial_weights = contrast"
        )
    size = math.prod(spec.observation_shape) if unpacking is None else unpacking.size
    if not size:
        raise ValueError(f"normalize_observations is for vectors, and {spec.id} gives images only. Leave it at false")
    return Normalizer(size)
