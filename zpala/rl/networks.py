"""Actor-critic networks: a policy head and a value head, on one trunk for both or on a trunk each.

Every network maps observations [B, ...] to (logits f32[B, A], value f32[B]) and initialises itself from one seed with a generator of its
own, so that every node starts equal. Weights are orthogonal (gain sqrt 2; 0.01 for the policy head, 1 for the value head), biases 0;
``NatureCNN`` and ``NipsCNN`` can start with more contrast.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from zpala.rl.action_spaces import Discrete
from zpala.rl.environments import EnvironmentSpec

Activation = Literal["tanh", "relu"]
NetworkName = Literal["auto", "mlp", "nature_cnn", "nips_cnn", "impala_resnet"]

# Between 1 / the standard deviation of Pong's pixels (scaled to [0, 1]) over picture and time, 5, and 1 / that of one pixel over time, 40.
CONTRAST = 10.0


class Trunk(nn.Module, ABC):
    """Observations [B, ...] -> features f32[B, ``size``]."""

    size: int

    @abstractmethod
    def features(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> f32[B, ``size``]."""

    @abstractmethod
    def layers(self) -> str:
        """Sizes from the channels of the observation on, and the activation, in a few characters."""

    def emphasise(self) -> None:
        """Changes initial weights, after all of them have been set."""


class ActorCritic(Trunk):
    """What algorithms call: a trunk with two heads. A subclass is a ``Trunk`` of some kind, and adds its heads when its layers are there.

    Attributes:
        name: as ``network.name`` in the run file.
        num_actions: A.
        critic: the value's own trunk; None: it shares the policy's.
    """

    name: ClassVar[str]
    num_actions: int
    critic: Trunk | None

    def _add_heads(self, num_actions: int, critic: Trunk | None) -> None:
        # Registered after the trunk: the order of the flat vector is the order of the forward pass.
        self.num_actions = num_actions
        self.critic = critic
        self.policy = _linear(self.size, num_actions)
        self.value = _linear(self.size, 1)

    def body(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> the policy's features f32[B, F]."""
        return self.features(observation)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [B, ...] -> (logits f32[B, A], value f32[B])."""
        features = self.features(observation)
        return self.policy(features), self.value(self._value_features(observation, features)).squeeze(-1)

    def logits(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> logits f32[B, A], without the value."""
        logits: Tensor = self.policy(self.features(observation))
        return logits

    def values(self, observation: Tensor) -> Tensor:
        """Observations [B, ...] -> values f32[B], without the policy."""
        values: Tensor = self.value(self._value_features(observation, None))
        return values.squeeze(-1)

    def _value_features(self, observation: Tensor, shared: Tensor | None) -> Tensor:
        """What the value head sees; ``shared``: the policy's features, where they are known already."""
        if self.critic is not None:
            return self.critic.features(observation)
        return self.features(observation) if shared is None else shared

    def describe(self) -> str:
        """Layers and sizes in one line; nodes whose lines differ must not average."""
        twice = "" if self.critic is None else "2 x "
        return f"{self.name} {twice}{self.layers()}, policy {self.num_actions}, value 1"

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
        for trunk in self.modules():
            if isinstance(trunk, Trunk):
                trunk.emphasise()


class Perceptron(Trunk):
    """Fully connected layers on the flattened observation; bytes are scaled to [0, 1].

    Args:
        hidden_sizes: widths of the hidden layers, at least one.
    """

    def __init__(self, observation_shape: Sequence[int], hidden_sizes: Sequence[int], activation: Activation) -> None:
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must be one or more positive widths, not {list(hidden_sizes)}")
        super().__init__()
        self.size = hidden_sizes[-1]
        self._activation_name = activation
        self._activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        self._sizes = [math.prod(observation_shape), *hidden_sizes]
        self.hidden = nn.ModuleList(_linear(a, b) for a, b in itertools.pairwise(self._sizes))

    def features(self, observation: Tensor) -> Tensor:
        return self._tower(self.hidden, observation)

    def layers(self) -> str:
        return f"{'-'.join(map(str, self._sizes))} {self._activation_name}"

    def _tower(self, layers: nn.ModuleList, observation: Tensor) -> Tensor:
        x = _flat(observation)
        for layer in layers:
            x = self._activation(layer(x))
        return x


class MLP(Perceptron, ActorCritic):
    """``Perceptron`` with heads, and one tower for the policy and one for the value unless told otherwise.

    On small observations a shared tower lets the value's gradient, which is large while returns grow, push the policy's features around:
    In trials of CartPole (3 to 8 seeds, generalised advantages) two towers solved 8 of 8 runs and a shared one 1 of 6.
    """

    name = "mlp"

    def __init__(
        self,
        observation_shape: Sequence[int],
        num_actions: int,
        hidden_sizes: Sequence[int],
        activation: Activation,
        *,
        separate_critic: bool = True,
    ) -> None:
        super().__init__(observation_shape, hidden_sizes, activation)
        self.value_hidden = nn.ModuleList(_linear(a, b) for a, b in itertools.pairwise(self._sizes)) if separate_critic else None
        self._add_heads(num_actions, None)

    def _value_features(self, observation: Tensor, shared: Tensor | None) -> Tensor:
        if self.value_hidden is not None:
            return self._tower(self.value_hidden, observation)
        return super()._value_features(observation, shared)

    def layers(self) -> str:
        return super().layers() if self.value_hidden is None else f"2 x {super().layers()}"


class ImageTrunk(Trunk):
    """What trunks for images (channels, height, width) of bytes have in common.

    Args:
        name: for the error text.
        size_min: of height and width, in pixels.
        channels_last: memory layout of the activations; parameters stay contiguous, results are equal up to rounding.
    """

    def __init__(self, name: str, observation_shape: Sequence[int], size_min: int, channels_last: bool) -> None:
        if len(observation_shape) != 3 or min(observation_shape[1:]) < size_min:
            raise ValueError(
                f"{name} needs images (channels, height, width) of at least {size_min} x {size_min}, not {tuple(observation_shape)}"
            )
        super().__init__()
        self.channels_last = channels_last

    def _scaled(self, observation: Tensor) -> Tensor:
        if observation.dtype is not torch.uint8:
            raise TypeError(f"networks for images take uint8, not {observation.dtype}")
        if self.channels_last:
            return observation.to(torch.float32, memory_format=torch.channels_last).mul_(1.0 / 255.0)
        return observation * (1.0 / 255.0)


class Convolutions(ImageTrunk):
    """Convolutions without padding, then a linear layer, all of them rectified.

    States of a game differ in few pixels; what they have in common only adds noise to the policy's gradient. With ``contrast`` the
    weights of every hidden unit start with mean 0 (an even background excites nobody), and the first layer's ten times larger
    (``CONTRAST``). That does what standardising the pixels would do, with no running statistics that nodes would have to agree on. On
    Pong the 512 initial features of ``NatureCNN`` vary over states by 22 % of their mean instead of 7 %, a linear fit of "is the ball above
    or below my paddle" explains 69 % of the variance instead of 34 %. examples/results/README.md tells what it did for learning. Gradients
    grow with the features: learning rates published for RMSprop do not carry over.

    Args:
        convolutions: (channels, kernel size, stride) of each.
        size: width of the linear layer.
        contrast: initial weights as above; otherwise orthogonal.
    """

    convolution1: nn.Conv2d
    convolution2: nn.Conv2d

    def __init__(
        self,
        name: str,
        observation_shape: Sequence[int],
        convolutions: Sequence[tuple[int, int, int]],
        size: int,
        channels_last: bool,
        contrast: bool,
    ) -> None:
        size_min = 1
        for _, kernel_size, stride in reversed(convolutions):
            size_min = (size_min - 1) * stride + kernel_size
        super().__init__(name, observation_shape, size_min, channels_last)
        self.contrast = contrast
        self.size = size
        channels, height, width = observation_shape
        self._channels = [channels, *(layer[0] for layer in convolutions)]
        self._convolutions: list[nn.Conv2d] = []
        for inputs, (outputs, kernel_size, stride) in zip(self._channels[:-1], convolutions, strict=True):
            self._convolutions.append(_convolution(inputs, outputs, kernel_size, stride))
            self.add_module(f"convolution{len(self._convolutions)}", self._convolutions[-1])
            height, width = ((pixels - kernel_size) // stride + 1 for pixels in (height, width))
        self.hidden = _linear(self._channels[-1] * height * width, size)

    def features(self, observation: Tensor) -> Tensor:
        x = self._scaled(observation)
        for convolution in self._convolutions:
            x = functional.relu(convolution(x), inplace=True)
        return functional.relu(self.hidden(x.flatten(1)), inplace=True)

    def emphasise(self) -> None:
        if self.contrast:
            layers: list[nn.Conv2d | nn.Linear] = [*self._convolutions, self.hidden]
            for layer in layers:
                layer.weight -= layer.weight.mean(tuple(range(1, layer.weight.dim())), keepdim=True)
            self.convolution1.weight *= CONTRAST

    def layers(self) -> str:
        return f"{'-'.join(map(str, self._channels))}-{self.hidden.in_features}-{self.size} relu"


class PlainCNN(Convolutions, ActorCritic):
    """``CONVOLUTIONS`` as (channels, kernel, stride), then a linear layer of ``UNITS``."""

    CONVOLUTIONS: ClassVar[tuple[tuple[int, int, int], ...]]
    UNITS: ClassVar[int]

    def __init__(
        self,
        observation_shape: Sequence[int],
        num_actions: int,
        *,
        channels_last: bool = False,
        contrast: bool = False,
        separate_critic: bool = False,
    ) -> None:
        layers = (self.name, observation_shape, self.CONVOLUTIONS, self.UNITS, channels_last, contrast)
        super().__init__(*layers)
        self._add_heads(num_actions, Convolutions(*layers) if separate_critic else None)


class NatureCNN(PlainCNN):
    """Three convolutions and a linear layer of 512 (Mnih et al. 2015, doi 10.1038/nature14236). Images of at least 36 x 36."""

    name = "nature_cnn"
    CONVOLUTIONS, UNITS = ((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512
    convolution3: nn.Conv2d


class NipsCNN(PlainCNN):
    """Two convolutions and a linear layer of 256 (Mnih et al. 2013, arXiv 1312.5602; also A3C's and PAAC's). Images of at least 20 x 20."""

    name = "nips_cnn"
    CONVOLUTIONS, UNITS = ((16, 8, 4), (32, 4, 2)), 256


class Block(nn.Module):
    """x + f(x), where f rectifies, convolves, rectifies and convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution1 = _convolution(channels, channels, 3, 1, padding=1)
        self.convolution2 = _convolution(channels, channels, 3, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution2(functional.relu(self.convolution1(functional.relu(x)), inplace=True))
        return x + y


class Stage(nn.Module):
    """A convolution, a pool that halves height and width, then two residual blocks of two convolutions each; all 3 x 3 and padded."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = _convolution(inputs, outputs, 3, 1, padding=1)
        self.block1 = Block(outputs)
        self.block2 = Block(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.convolution(x), kernel_size=3, stride=2, padding=1)
        y: Tensor = self.block2(self.block1(x))
        return y


class Residual(ImageTrunk):
    """Fifteen convolutions in three stages of 16, 32 and 32 channels, then a linear layer of 256.

    Two kinds of weights start smaller than the others, or the value of a first frame of Pong is 24 instead of 1: those of the convolutions
    whose input is not rectified by the root of 2, and those of the second convolution of a block by the root of the number of blocks (Zhang
    et al. 2019, Fixup, arXiv 1901.09321, of which this is a part), else every block would double the variance.
    """

    size = 256
    CHANNELS = (16, 32, 32)

    def __init__(self, name: str, observation_shape: Sequence[int], channels_last: bool) -> None:
        super().__init__(name, observation_shape, 1, channels_last)
        channels, height, width = observation_shape
        self._channels = [channels, *self.CHANNELS]
        self.stages = nn.ModuleList(Stage(a, b) for a, b in itertools.pairwise(self._channels))
        for _ in self.CHANNELS:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.hidden = _linear(self._channels[-1] * height * width, self.size)

    def emphasise(self) -> None:
        stages = [module for module in self.stages if isinstance(module, Stage)]
        blocks = [block for stage in stages for block in (stage.block1, stage.block2)]
        for stage in stages:
            stage.convolution.weight *= 0.5**0.5
        for block in blocks:
            block.convolution2.weight *= len(blocks) ** -0.5

    def features(self, observation: Tensor) -> Tensor:
        x = self._scaled(observation)
        for stage in self.stages:
            x = stage(x)
        return functional.relu(self.hidden(functional.relu(x, inplace=True).flatten(1)), inplace=True)

    def layers(self) -> str:
        return f"{'-'.join(map(str, self._channels))}-{self.hidden.in_features}-{self.size} relu"


class ImpalaResNet(Residual, ActorCritic):
    """The deep network of Espeholt et al. 2018 (IMPALA, arXiv 1802.01561, figure 3), without its LSTM. Images of any size."""

    name = "impala_resnet"

    def __init__(
        self, observation_shape: Sequence[int], num_actions: int, *, channels_last: bool = False, separate_critic: bool = False
    ) -> None:
        super().__init__(self.name, observation_shape, channels_last)
        self._add_heads(num_actions, Residual(self.name, observation_shape, channels_last) if separate_critic else None)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    return layer


def _convolution(inputs: int, outputs: int, kernel_size: int, stride: int, padding: int = 0) -> nn.Conv2d:
    layer: nn.Conv2d = skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, inputs, outputs, kernel_size=kernel_size, stride=stride, padding=padding
    )
    return layer


def _flat(observation: Tensor) -> Tensor:
    """Observations [B, ...] -> f32[B, D]; bytes scaled to [0, 1]."""
    x = observation.flatten(1)
    return x * (1.0 / 255.0) if x.dtype is torch.uint8 else x


def build_network(
    spec: EnvironmentSpec,
    name: NetworkName,
    hidden_sizes: Sequence[int],
    activation: Activation,
    channels_last: bool,
    seed: int,
    *,
    contrast: bool = False,
    separate_critic: bool | Literal["auto"] = "auto",
) -> ActorCritic:
    """The network for ``spec``, on the CPU, initialised from ``seed``.

    Args:
        name: "auto" takes nature_cnn for byte images and mlp for everything else.
        channels_last, contrast: only for images.
        separate_critic: a trunk for the value alone; "auto": for the mlp.
    Raises:
        ValueError: the network does not fit the spaces, or its weights cannot begin so.
    """
    if spec.parts or not isinstance(spec.actions, Discrete):
        raise ValueError(
            f"{spec.id} has {'observations of several parts' if spec.parts else f'the actions {spec.actions.describe()}'}, and there is no "
            "network for them yet. A factory of your own can wrap it into one array and one Discrete action."
        )
    shape, num_actions = spec.observation_shape, spec.actions.n
    if name == "auto":
        is_image = spec.observation_dtype == "uint8" and len(shape) == 3 and min(shape[1:]) >= 36
        name = "nature_cnn" if is_image else "mlp"
    network: ActorCritic
    if name == "mlp":
        network = MLP(shape, num_actions, hidden_sizes, activation, separate_critic=separate_critic in (True, "auto"))
    elif spec.observation_dtype != "uint8":
        raise ValueError(
            f"{name} needs uint8 images, but {spec.id} gives {spec.observation_dtype}{list(shape)}. For vectors there is the mlp."
        )
    elif name == "impala_resnet":
        if contrast:
            raise ValueError(
                "initial_weights = contrast is for nature_cnn and nips_cnn: padded convolutions see an edge in every background"
            )
        network = ImpalaResNet(shape, num_actions, channels_last=channels_last, separate_critic=separate_critic is True)
    else:
        kind = NipsCNN if name == "nips_cnn" else NatureCNN
        network = kind(shape, num_actions, channels_last=channels_last, contrast=contrast, separate_critic=separate_critic is True)
    network.initialise(seed)
    return network
