"""Actor-critic networks: a policy head and a value head, on a shared body for images and on a tower each for vectors.

Every network maps observations [B, ...] to (logits f32[B, A], value f32[B]) and initialises itself from one seed with a generator of its
own, so that every node starts equal. Weights are orthogonal (gain sqrt 2; 0.01 for the policy head, 1 for the value head), biases 0;
``NatureCNN`` can start with more contrast.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from zpala.rl.environments import EnvironmentSpec

Activation = Literal["tanh", "relu"]

# Between 1 / the standard deviation of Pong's pixels (scaled to [0, 1]) over picture and time, 5, and 1 / that of one pixel over time, 40.
CONTRAST = 10.0


class ActorCritic(nn.Module, ABC):
    """What algorithms call. Subclasses give ``body``: observations [B, ...] -> features f32[B, F].

    Args:
        body_size: F.
        num_actions: A.
    """

    def __init__(self, body_size: int, num_actions: int) -> None:
        super().__init__()
        self._body_size, self.num_actions = body_size, num_actions

    def _add_heads(self) -> None:
        # Registered after the body: the order of the flat vector is the order of the forward pass.
        self.policy = _linear(self._body_size, self.num_actions)
        self.value = _linear(self._body_size, 1)

    @abstractmethod
    def body(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> the policy's features f32[B, F]."""

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [B, ...] -> (logits f32[B, A], value f32[B])."""
        features = self.body(observation)
        return self.policy(features), self.value(features).squeeze(-1)

    def logits(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> logits f32[B, A], without the value head."""
        logits: Tensor = self.policy(self.body(observation))
        return logits

    def values(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> values f32[B], without the policy head."""
        values: Tensor = self.value(self.body(observation))
        return values.squeeze(-1)

    @abstractmethod
    def describe(self) -> str:
        """Layers and sizes in one line; nodes whose lines differ must not average."""

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Sets every parameter from ``seed`` alone, independent of torch's global generator."""
        generator = torch.Generator().manual_seed(seed)
        gains = {id(self.policy): 0.01, id(self.value): 1.0}
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.orthogonal_(layer.weight, gain=gains.get(id(layer), math.sqrt(2.0)), generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class MLP(ActorCritic):
    """Fully connected layers on the flattened observation, one tower for the policy and one for the value.

    On small observations a shared tower lets the value's gradient, which is large while returns grow, push the policy's features around:
    In trials of CartPole (3 to 8 seeds, generalised advantages) two towers solved 8 of 8 runs and a shared one 1 of 6.

    Args:
        observation_shape: any; bytes are scaled to [0, 1].
        hidden_sizes: widths of the hidden layers, at least one.
    """

    def __init__(self, observation_shape: Sequence[int], num_actions: int, hidden_sizes: Sequence[int], activation: Activation) -> None:
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must be one or more positive widths, not {list(hidden_sizes)}")
        super().__init__(hidden_sizes[-1], num_actions)
        self._activation_name = activation
        self._activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        sizes = [math.prod(observation_shape), *hidden_sizes]
        self.hidden = nn.ModuleList(_linear(a, b) for a, b in itertools.pairwise(sizes))
        self.value_hidden = nn.ModuleList(_linear(a, b) for a, b in itertools.pairwise(sizes))
        self._sizes = sizes
        self._add_heads()

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        x = _flat(observation)
        return self.policy(self._tower(self.hidden, x)), self.value(self._tower(self.value_hidden, x)).squeeze(-1)

    def body(self, observation: Tensor) -> Tensor:
        """The policy's features."""
        return self._tower(self.hidden, _flat(observation))

    def values(self, observation: Tensor) -> Tensor:
        values: Tensor = self.value(self._tower(self.value_hidden, _flat(observation)))
        return values.squeeze(-1)

    def _tower(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers:
            x = self._activation(layer(x))
        return x

    def describe(self) -> str:
        return f"mlp 2 x {'-'.join(map(str, self._sizes))} {self._activation_name}, policy {self.num_actions}, value 1"


class NatureCNN(ActorCritic):
    """Three convolutions and a linear layer of 512 (Mnih et al. 2015, doi 10.1038/nature14236), shared by policy and value.

    States of a game differ in few pixels; what they have in common only adds noise to the policy's gradient. With ``contrast`` the
    weights of every hidden unit start with mean 0 (an even background excites nobody), and the first layer's ten times larger
    (``CONTRAST``). That does what standardising the pixels would do, with no running statistics that nodes would have to agree on. On
    Pong the 512 initial features vary over states by 22 % of their mean instead of 7 %, a linear fit of "is the ball above or below my
    paddle" explains 69 % of the variance instead of 34 %. examples/results/README.md tells what it did for learning. Gradients grow
    with the features: learning rates published for RMSprop do not carry over.

    Args:
        observation_shape: (channels, height, width) of uint8 images, at least 36 x 36.
        channels_last: memory layout of the activations; parameters stay contiguous, results are equal up to rounding.
        contrast: initial weights as above; otherwise orthogonal.
    """

    def __init__(self, observation_shape: Sequence[int], num_actions: int, *, channels_last: bool = False, contrast: bool = False) -> None:
        if len(observation_shape) != 3 or min(observation_shape[1:]) < 36:
            raise ValueError(f"nature_cnn needs images (channels, height, width) of at least 36 x 36, not {tuple(observation_shape)}")
        super().__init__(512, num_actions)
        channels, height, width = observation_shape
        self.channels_last = channels_last
        self.contrast = contrast
        self.convolution1 = _convolution(channels, 32, 8, 4)
        self.convolution2 = _convolution(32, 64, 4, 2)
        self.convolution3 = _convolution(64, 64, 3, 1)
        height, width = ((((size - 8) // 4 + 1) - 4) // 2 + 1 - 3 + 1 for size in (height, width))
        self.hidden = _linear(64 * height * width, 512)
        self._channels = channels
        self._add_heads()

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        if self.contrast:
            for layer in (self.convolution1, self.convolution2, self.convolution3, self.hidden):
                layer.weight -= layer.weight.mean(tuple(range(1, layer.weight.dim())), keepdim=True)
            self.convolution1.weight *= CONTRAST

    def body(self, observation: Tensor) -> Tensor:
        if observation.dtype is not torch.uint8:
            raise TypeError(f"nature_cnn takes uint8 images, not {observation.dtype}")
        if self.channels_last:
            x = observation.to(torch.float32, memory_format=torch.channels_last).mul_(1.0 / 255.0)
        else:
            x = observation * (1.0 / 255.0)
        x = functional.relu(self.convolution1(x), inplace=True)
        x = functional.relu(self.convolution2(x), inplace=True)
        x = functional.relu(self.convolution3(x), inplace=True)
        return functional.relu(self.hidden(x.flatten(1)), inplace=True)

    def describe(self) -> str:
        return f"nature_cnn {self._channels}-32-64-64-{self.hidden.in_features}-512 relu, policy {self.num_actions}, value 1"


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    return layer


def _convolution(inputs: int, outputs: int, kernel_size: int, stride: int) -> nn.Conv2d:
    layer: nn.Conv2d = skip_init(nn.Conv2d, inputs, outputs, kernel_size=kernel_size, stride=stride)  # type: ignore[no-untyped-call]
    return layer


def _flat(observation: Tensor) -> Tensor:
    """Observations [B, ...] -> f32[B, D]; bytes scaled to [0, 1]."""
    x = observation.flatten(1)
    return x * (1.0 / 255.0) if x.dtype is torch.uint8 else x


def build_network(
    spec: EnvironmentSpec,
    name: Literal["auto", "mlp", "nature_cnn"],
    hidden_sizes: Sequence[int],
    activation: Activation,
    channels_last: bool,
    seed: int,
    *,
    contrast: bool = False,
) -> ActorCritic:
    """The network for ``spec``, on the CPU, initialised from ``seed``.

    Args:
        name: "auto" takes nature_cnn for byte images and mlp for everything else.
        channels_last, contrast: only for images.
    Raises:
        ValueError: the network does not fit the observations.
    """
    is_image = spec.observation_dtype == "uint8" and len(spec.observation_shape) == 3 and min(spec.observation_shape[1:]) >= 36
    network: ActorCritic
    if name == "nature_cnn" or (name == "auto" and is_image):
        if spec.observation_dtype != "uint8":
            raise ValueError(f"nature_cnn needs uint8 images, but {spec.id} gives {spec.observation_dtype}{list(spec.observation_shape)}")
        network = NatureCNN(spec.observation_shape, spec.num_actions, channels_last=channels_last, contrast=contrast)
    else:
        network = MLP(spec.observation_shape, spec.num_actions, hidden_sizes, activation)
    network.initialise(seed)
    return network
