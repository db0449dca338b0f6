"""Optimisers over flat vectors: a handful of in-place kernels for the whole network.

The state stays local to the node and travels only at adoption (design D15). ``state`` holds every vector by name,
f32[numel]; ``steps`` counts the steps taken. Padding has gradient 0 and stays 0 in the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

SHARED = 32_768  # elements from which on torch shares an operation among its threads
_LATE = 1e12  # steps after which alpha ** steps is 0, whatever alpha below 1 is; in a f32 one more is as many


class Optimizer(Protocol):
    """What the learner needs of an optimiser; its vectors are changed in place and may be overwritten at adoption."""

    steps: int

    @property
    def state(self) -> Mapping[str, Tensor]: ...

    def step(self, parameters: Tensor, gradients: Tensor, lr: float) -> None:
        """One step downhill, in place; all f32[numel]."""


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Which optimiser, and its constants; see ``RMSprop`` and ``Adam``."""

    name: Literal["rmsprop", "adam"] = "rmsprop"
    alpha: float = 0.99
    epsilon: float = 1e-5
    epsilon_inside_root: bool = False
    initial_square_average: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999


class RMSprop:
    """v = alpha v + (1 - alpha) g^2;  x -= lr g / (sqrt(v) + epsilon), or x -= lr g / sqrt(v + epsilon) with ``epsilon_inside_root``.

    torch puts epsilon outside and starts v at 0; TensorFlow 1 puts it inside and starts v at 1, which makes the first steps small.
    With epsilon outside it is what Adam is without a first moment (beta1 = 0) after so many steps that its corrections are 1, and torch has
    a kernel for Adam that goes over the vectors once. Source: Tieleman & Hinton 2012, lecture 6.5.
    """

    def __init__(
        self,
        numel: int,
        device: torch.device | str = "cpu",
        *,
        alpha: float = 0.99,
        epsilon: float = 1e-5,
        epsilon_inside_root: bool = False,
        initial_square_average: float = 0.0,
    ) -> None:
        self.steps = 0
        self._alpha, self._epsilon, self._inside = alpha, epsilon, epsilon_inside_root
        self._square_average = torch.full((numel,), initial_square_average, dtype=torch.float32, device=device)
        self._scratch = torch.zeros_like(self._square_average)  # of the kernel: the gradient again
        self._late = torch.full((), _LATE, dtype=torch.float32, device=device)

    @property
    def state(self) -> dict[str, Tensor]:
        return {"square_average": self._square_average}

    @torch.no_grad()
    def step(self, parameters: Tensor, gradients: Tensor, lr: float) -> None:
        self.steps += 1
        v, scratch = self._square_average, self._scratch
        if self._inside:
            v.mul_(self._alpha).addcmul_(gradients, gradients, value=1.0 - self._alpha)
            parameters.addcmul_(gradients, torch.add(v, self._epsilon, out=scratch).rsqrt_(), value=-lr)
        else:
            _adam(parameters, gradients, scratch, v, self._late, lr=lr, beta1=0.0, beta2=self._alpha, epsilon=self._epsilon)


class Adam:
    """Adam with bias correction, without weight decay: torch's own fused kernel. Source: Kingma & Ba 2015, arXiv 1412.6980."""

    def __init__(
        self, numel: int, device: torch.device | str = "cpu", *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-5
    ) -> None:
        self.steps = 0
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self._first = torch.zeros(numel, dtype=torch.float32, device=device)
        self._second = torch.zeros_like(self._first)
        self._step = torch.zeros((), dtype=torch.float32, device=device)  # the kernel's, which counts for itself

    @property
    def state(self) -> dict[str, Tensor]:
        return {"first_moment": self._first, "second_moment": self._second}

    @torch.no_grad()
    def step(self, parameters: Tensor, gradients: Tensor, lr: float) -> None:
        self._step.fill_(self.steps)
        self.steps += 1
        _adam(
            parameters, gradients, self._first, self._second, self._step, lr=lr, beta1=self._beta1, beta2=self._beta2, epsilon=self._epsilon
        )


def _adam(
    parameters: Tensor,
    gradients: Tensor,
    first: Tensor,
    second: Tensor,
    step: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """torch's fused kernel. ``step``: a f32 scalar, the steps before this one; it is counted up."""
    adam(
        [parameters],
        [gradients],
        [first],
        [second],
        [],
        [step],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=0.0,
        eps=epsilon,
        maximize=False,
    )


def build_optimizer(settings: OptimizerSettings, numel: int, device: torch.device | str = "cpu") -> RMSprop | Adam:
    """The optimiser that ``settings`` describe, for vectors f32[numel] on ``device``."""
    if settings.name == "adam":
        return Adam(numel, device, beta1=settings.beta1, beta2=settings.beta2, epsilon=settings.epsilon)
    return RMSprop(
        numel,
        device,
        alpha=settings.alpha,
        epsilon=settings.epsilon,
        epsilon_inside_root=settings.epsilon_inside_root,
        initial_square_average=settings.initial_square_average,
    )


def clip_gradient_norm(gradients: Tensor, max_norm: float) -> Tensor:
    """Scales the flat ``gradients`` f32[numel] in place to an L2 norm of at most ``max_norm``; returns the norm before, a f32 scalar.

    Nothing leaves the device. Equal to ``torch.nn.utils.clip_grad_norm_`` but for rounding.
    """
    # torch's norm is one thread's: on the CPU, whoever goes over the vector next with several threads fetches most of it from that one's
    # core, which takes five times as long as the norm itself. A product is shared among them as all the rest is.
    shared = gradients.device.type == "cpu" and gradients.numel() >= SHARED
    norm: Tensor = torch.dot(gradients, gradients).sqrt() if shared else torch.linalg.vector_norm(gradients)
    gradients.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm
