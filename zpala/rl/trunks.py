"""Trunks: what a network makes of an observation before its heads. ``networks`` puts heads on them.

Weights are orthogonal with gain sqrt 2, biases 0; ``emphasise`` changes that where a trunk needs it.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from zpala.rl.activations import Convolution, Linear, Scaling
from zpala.rl.observations import ObservationPart
from zpala.rl.products import AffineLayer
from zpala.rl.tanh import tanh

Activation = Literal["tanh", "relu"]
NetworkName = Literal["auto", "mlp", "nature_cnn", "nips_cnn", "impala_resnet"]
IMAGE_MIN = 36  # pixels, of height and width: smaller ones are no images unless a network for images is asked for by name

# Between 1 / the standard deviation of Pong's pixels (scaled to [0, 1]) over picture and time, 5, and 1 / that of one pixel over time, 40.
CONTRAST = 10.0


class Trunk(nn.Module, ABC):
    """What ``inputs`` made of observations -> features f32[B, ``size``].

    Attributes:
        name: as ``network.name`` in the run file.
    """

    name: str
    size: int

    @abstractmethod
    def forward(self, observation: Any) -> Tensor:
        """Observations [B, ...] (of ``Combined`` a tuple) -> f32[B, ``size``]."""

    @abstractmethod
    def layers(self) -> str:
        """Sizes from the channels of the observation on, and the activation, in a few characters."""

    def emphasise(self) -> None:
        """Changes initial weights, after all of them have been set."""


class MLP(Trunk):
    """Fully connected layers on the flattened observation; bytes are scaled to [0, 1].

    Args:
        hidden_sizes: widths of the hidden layers, at least one.
    """

    name = "mlp"

    def __init__(self, observation_shape: Sequence[int], hidden_sizes: Sequence[int], activation: Activation) -> None:
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must be one or more positive widths, not {list(hidden_sizes)}")
        super().__init__()
        self.size = hidden_sizes[-1]
        self._activation_name = activation
        self._activation = {"tanh": tanh, "relu": torch.relu}[activation]
        self._sizes = [math.prod(observation_shape), *hidden_sizes]
        self.hidden = nn.ModuleList(linear(a, b) for a, b in itertools.pairwise(self._sizes))

    def forward(self, observation: Tensor) -> Tensor:
        x = _flat(observation)
        for layer in self.hidden:
            x = self._activation(layer(x))
        return x

    def layers(self) -> str:
        return f"{'-'.join(map(str, self._sizes))} {self._activation_name}"


class ImageTrunk(Trunk):
    """What trunks for images (channels, height, width) of bytes have in common.

    Args:
        size_min: of height and width, in pixels.
        channels_last: memory layout of the activations; parameters stay contiguous, results are equal up to rounding.
    """

    def __init__(self, observation_shape: Sequence[int], size_min: int, channels_last: bool) -> None:
        if len(observation_shape) != 3 or min(observation_shape[1:]) < size_min:
            raise ValueError(
                f"{self.name} needs images (channels, height, width) of at least {size_min} x {size_min}, not {tuple(observation_shape)}"
            )
        super().__init__()
        self.scaled = Scaling(channels_last)


class Convolutions(ImageTrunk):
    """Convolutions without padding, then a linear layer, all of them rectified.

    States of a game differ in few pixels; what they have in common only adds noise to the policy's gradient. With ``contrast`` the
    weights of every hidden unit start with mean 0 (an even background excites nobody), and the first layer's ten times larger
    (``CONTRAST``). That does what standardising the pixels would do, with no running statistics that nodes would have to agree on. On
    Pong the 512 initial features of ``NatureCNN`` vary over states by 22 % of their mean instead of 7 %, a linear fit of "is the ball above
    or below my paddle" explains 69 % of the variance instead of 34 %. examples/results/README.md tells what it did for learning. Gradients
    grow with the features: learning rates published for RMSprop do not carry over.

    Args:
        contrast: initial weights as above; otherwise orthogonal.
    Attributes:
        CONVOLUTIONS: (channels, kernel size, stride) of each.
        UNITS: width of the linear layer.
    """

    CONVOLUTIONS: ClassVar[tuple[tuple[int, int, int], ...]]
    UNITS: ClassVar[int]
    convolution1: Convolution
    convolution2: Convolution

    def __init__(self, observation_shape: Sequence[int], *, channels_last: bool = False, contrast: bool = False) -> None:
        size_min = 1
        for _, kernel_size, stride in reversed(self.CONVOLUTIONS):
            size_min = (size_min - 1) * stride + kernel_size
        super().__init__(observation_shape, size_min, channels_last)
        self.contrast = contrast
        self.size = self.UNITS
        channels, height, width = observation_shape
        self._channels = [channels, *(layer[0] for layer in self.CONVOLUTIONS)]
        self._convolutions: list[Convolution] = []
        for inputs, (outputs, kernel_size, stride) in zip(self._channels[:-1], self.CONVOLUTIONS, strict=True):
            last = len(self._convolutions) == len(self.CONVOLUTIONS) - 1
            self._convolutions.append(_convolution(inputs, outputs, kernel_size, stride, rectified=True, flat=last))
            self.add_module(f"convolution{len(self._convolutions)}", self._convolutions[-1])
            height, width = ((pixels - kernel_size) // stride + 1 for pixels in (height, width))
        self.hidden = _rectified_linear(self._channels[-1] * height * width, self.size)

    def forward(self, observation: Tensor) -> Tensor:
        x = self.scaled(observation)
        for convolution in self._convolutions:
            x = convolution(x)
        features: Tensor = self.hidden(x)
        return features

    def emphasise(self) -> None:
        if self.contrast:
            layers: list[Convolution | Linear] = [*self._convolutions, self.hidden]
            for layer in layers:
                layer.weight -= layer.weight.mean(tuple(range(1, layer.weight.dim())), keepdim=True)
            self.convolution1.weight *= CONTRAST

    def layers(self) -> str:
        return f"{'-'.join(map(str, self._channels))}-{self.hidden.in_features}-{self.size} relu"


class NatureCNN(Convolutions):
    """Three convolutions and a linear layer of 512 (Mnih et al. 2015, doi 10.1038/nature14236). Images of at least 36 x 36."""

    name = "nature_cnn"
    CONVOLUTIONS, UNITS = ((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512
    convolution3: Convolution


class NipsCNN(Convolutions):
    """Two convolutions and a linear layer of 256 (Mnih et al. 2013, arXiv 1312.5602; also A3C's and PAAC's). Images of at least 20 x 20."""

    name = "nips_cnn"
    CONVOLUTIONS, UNITS = ((16, 8, 4), (32, 4, 2)), 256


class Block(nn.Module):
    """x + f(x), where f rectifies, convolves, rectifies and convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution1 = _convolution(channels, channels, 3, 1, padding=1, rectified=True)
        self.convolution2 = _convolution(channels, channels, 3, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution2(self.convolution1(functional.relu(x)))
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


class ImpalaResNet(ImageTrunk):
    """The deep network of Espeholt et al. 2018 (IMPALA, arXiv 1802.01561, figure 3). Images of any size.

    Fifteen convolutions in three stages of 16, 32 and 32 channels, then a linear layer of 256.

    Two kinds of weights start smaller than the others, or the value of a first frame of Pong is 24 instead of 1: those of the convolutions
    whose input is not rectified by the root of 2, and those of the second convolution of a block by the root of the number of blocks (Zhang
    et al. 2019, Fixup, arXiv 1901.09321, of which this is a part), else every block would double the variance.
    """

    name = "impala_resnet"
    size = 256
    CHANNELS = (16, 32, 32)

    def __init__(self, observation_shape: Sequence[int], *, channels_last: bool = False) -> None:
        super().__init__(observation_shape, 1, channels_last)
        channels, height, width = observation_shape
        self._channels = [channels, *self.CHANNELS]
        self.stages = nn.ModuleList(Stage(a, b) for a, b in itertools.pairwise(self._channels))
        for _ in self.CHANNELS:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.hidden = _rectified_linear(self._channels[-1] * height * width, self.size)

    def emphasise(self) -> None:
        stages = [module for module in self.stages if isinstance(module, Stage)]
        blocks = [block for stage in stages for block in (stage.block1, stage.block2)]
        for stage in stages:
            stage.convolution.weight *= 0.5**0.5
        for block in blocks:
            block.convolution2.weight *= len(blocks) ** -0.5

    def forward(self, observation: Tensor) -> Tensor:
        x = self.scaled(observation)
        for stage in self.stages:
            x = stage(x)
        features: Tensor = self.hidden(functional.relu(x, inplace=True).flatten(1))
        return features

    def layers(self) -> str:
        return f"{'-'.join(map(str, self._channels))}-{self.hidden.in_features}-{self.size} relu"


class Combined(Trunk):
    """Several images and one vector, as ``inputs.Unpacking`` gives them: a trunk for every image, then an MLP on all of it.

    Args:
        parts: of an observation.
        images: the trunk of every part that is an image, by the part's name, in their order.
    """

    def __init__(
        self, parts: Sequence[ObservationPart], images: Mapping[str, Trunk], hidden_sizes: Sequence[int], activation: Activation
    ) -> None:
        super().__init__()
        self.images = nn.ModuleList(images.values())
        self._parts = [part for part in parts if part.name not in images]
        numbers = sum(math.prod(part.shape) for part in self._parts)
        self.together = MLP((numbers + sum(trunk.size for trunk in images.values()),), hidden_sizes, activation)
        self.size = self.together.size
        self.name = "+".join([*(trunk.name for trunk in images.values()), "mlp"])

    def forward(self, observation: Any) -> Tensor:
        vector, *images = observation
        features = [trunk(image) for trunk, image in zip(self.images, images, strict=True)]
        together: Tensor = self.together(torch.cat([vector, *features], dim=-1))
        return together

    def layers(self) -> str:
        images = [trunk.layers() for trunk in self.images if isinstance(trunk, Trunk)]
        return ", ".join([*images, self.together.layers()])


def build_trunk(
    shape: Sequence[int],
    dtype: object,
    name: NetworkName,
    hidden_sizes: Sequence[int],
    activation: Activation,
    *,
    channels_last: bool,
    contrast: bool,
    what: str,
) -> Trunk:
    """The trunk for observations of one kind.

    Args:
        name: "auto" takes nature_cnn for images of bytes, mlp for everything else.
        what: gives these observations, for the error text.
    Raises:
        ValueError: they do not fit.
    """
    if name == "auto":
        name = "nature_cnn" if dtype == "uint8" and len(shape) == 3 and min(shape[1:]) >= IMAGE_MIN else "mlp"
    if name == "mlp":
        return MLP(shape, hidden_sizes, activation)
    if dtype != "uint8":
        raise ValueError(f"{name} needs uint8 images, but {what} gives {dtype}{list(shape)}. For vectors there is the mlp.")
    if name == "impala_resnet":
        if contrast:
            raise ValueError(
                "initial_weights = contrast is for nature_cnn and nips_cnn: padded convolutions see an edge in every background"
            )
        return ImpalaResNet(shape, channels_last=channels_last)
    kind = NipsCNN if name == "nips_cnn" else NatureCNN
    return kind(shape, channels_last=channels_last, contrast=contrast)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose weights somebody sets later."""
    layer: nn.Linear = skip_init(AffineLayer, inputs, outputs)  # type: ignore[no-untyped-call]
    return layer


def _rectified_linear(inputs: int, outputs: int) -> Linear:
    layer: Linear = skip_init(Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    return layer


def _convolution(
    inputs: int, outputs: int, kernel_size: int, stride: int, padding: int = 0, *, rectified: bool = False, flat: bool = False
) -> Convolution:
    layer: Convolution = skip_init(  # type: ignore[no-untyped-call]
        Convolution, inputs, outputs, kernel_size, stride, padding, rectified=rectified, flat=flat
    )
    return layer


def _flat(observation: Tensor) -> Tensor:
    """Observations [B, ...] -> f32[B, D]; bytes scaled to [0, 1]."""
    x = observation.flatten(1)
    return x * (1.0 / 255.0) if x.dtype is torch.uint8 else x
