"""What the layers of a trunk computed when actions were chosen, kept so that learning need not compute it again.

Where no parameter changes between acting and learning, the forward pass of an update says what the forward passes of acting have said
already. So the layers that cost most keep their outputs, row by row; the update then goes *backward* through one batch of the whole
rollout, and forward through nothing but what is cheap (rectifiers, pools, heads). Results are those of a second forward pass, and the
gradients too. Keeping T small graphs instead would save the same pass, but go backward through T small batches.

Owned: one tensor per layer, for all cells [T * N] of a rollout, time first; together as large as what a forward pass of the whole rollout
keeps for its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zpala.rl.products import AffineLayer, affine

_convolution_backward = torch.ops.aten.convolution_backward
_threshold_backward = torch.ops.aten.threshold_backward


class Activations:
    """The memory of all ``Scaling``, ``Convolution`` and ``Linear`` layers of ``trunk``."""

    def __init__(self, trunk: nn.Module) -> None:
        layers = [layer for layer in trunk.modules() if isinstance(layer, Scaling | Convolution | Linear)]
        for layer in layers:
            layer.activations = self
        self.possible = any(isinstance(layer, Convolution) for layer in layers)  # whether there is anything worth keeping
        self.mode: Literal["off", "keep", "recall"] = "off"
        self._kept: dict[int, Tensor] = {}
        self._cells = self._written = 0
        self._rows = slice(0)

    def begin(self, cells: int) -> None:
        """A new rollout of so many cells: what was kept is worth nothing any more."""
        if cells != self._cells:
            self._kept.clear()
        self._cells, self._written = cells, 0

    @contextmanager
    def keeping(self, first: int, stop: int) -> Iterator[None]:
        """Within, a forward pass without a graph is one of the cells [first, stop), and is kept."""
        self.mode, self._rows = "keep", slice(first, stop)
        try:
            with torch.no_grad():
                yield
            self._written += stop - first
        finally:
            self.mode = "off"

    @contextmanager
    def recalling(self) -> Iterator[None]:
        """Within, a forward pass with a graph is one of all cells in order.

        Raises:
            RuntimeError: there are cells of which nothing was kept.
        """
        if self._written != self._cells:
            raise RuntimeError(f"the rollout has {self._cells} steps, but actions were chosen for {self._written}")
        self.mode = "recall"
        try:
            yield
        finally:
            self.mode = "off"

    def recall(self, layer: nn.Module, *arguments: Any) -> tuple[Tensor, ...]:
        """``arguments`` as ``layer`` computed with them (it may have been bfloat16), and what it made of all cells."""
        kept = self._kept[id(layer)]
        return *(argument.to(kept.dtype) for argument in arguments), kept

    def rows(self, layer: nn.Module, like: Tensor, *, flat: bool, dtype: torch.dtype | None = None) -> Tensor:
        """Where ``layer`` writes what it makes of the present cells: a view shaped as ``like``, in the same layout unless ``flat``.

        Args:
            dtype: that of ``like`` unless given.
        """
        kept = self._kept.get(id(layer))
        if kept is None:
            shape = (self._cells, *like.shape[1:])
            last = like.dim() == 4 and not flat and like.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            kept = self._kept[id(layer)] = torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)
        return kept[self._rows]


class Scaling(nn.Module):
    """Images of bytes [B, channels, height, width] -> f32 in [0, 1]. Has no parameters; can keep its outputs.

    Args:
        channels_last: memory layout of its outputs.
    """

    activations: Activations | None = None

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last

    def forward(self, images: Tensor) -> Tensor:
        memory = self.activations
        if memory is not None and memory.mode == "recall":
            return memory.recall(self)[0]
        if images.dtype is not torch.uint8:
            raise TypeError(f"networks for images take uint8, not {images.dtype}")
        if self.channels_last:
            # The bytes change places before they become floats: a quarter of the memory, and half the time of both at once.
            images = torch.stack(images.unbind(1), dim=-1).permute(0, 3, 1, 2)
        if memory is not None and memory.mode == "keep":
            x = memory.rows(self, images, flat=False, dtype=torch.float32).copy_(images)
        else:
            x = images.to(torch.float32)
        return x.mul_(1.0 / 255.0)


class Convolution(nn.Conv2d):
    """A convolution that can keep its outputs.

    Args:
        rectified: its outputs are max(x, 0).
        flat: they are f32[B, channels * height * width].
    """

    activations: Activations | None = None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        *,
        rectified: bool = False,
        flat: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(inputs, outputs, kernel_size, stride, padding, device=device)
        self.rectified, self.flat = rectified, flat

    def forward(self, x: Tensor) -> Tensor:
        memory = self.activations
        if memory is not None and memory.mode == "recall":
            recalled: Tensor = _RecalledConvolution.apply(*memory.recall(self, x, self.weight, self.bias), self)  # type: ignore[no-untyped-call]
            return recalled.flatten(1) if self.flat else recalled
        y = super().forward(x)
        if memory is not None and memory.mode == "keep":
            rows = memory.rows(self, y, flat=self.flat)
            y = torch.clamp_min(y, 0.0, out=rows) if self.rectified else rows.copy_(y)
            return y.flatten(1) if self.flat else y
        # Flat first, then rectified: the gradient that comes back is flat, too, and channels-last would have to be put in order for it.
        y = y.flatten(1) if self.flat else y
        return functional.relu(y, inplace=True) if self.rectified else y


class Linear(AffineLayer):
    """A rectified linear layer that can keep its outputs."""

    activations: Activations | None = None

    def forward(self, x: Tensor) -> Tensor:
        memory = self.activations
        if memory is not None and memory.mode == "recall":
            recalled: Tensor = _RecalledLinear.apply(*memory.recall(self, x, self.weight, self.bias))  # type: ignore[no-untyped-call]
            return recalled
        y = super().forward(x)
        if memory is not None and memory.mode == "keep":
            return torch.clamp_min(y, 0.0, out=memory.rows(self, y, flat=True))
        return functional.relu(y, inplace=True)


class _RecalledConvolution(torch.autograd.Function):
    """Forward: what was kept. Backward: of the convolution, and of its rectifier if it has one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor, layer: Convolution) -> Tensor:
        ctx.save_for_backward(x, weight, kept)
        ctx.layer = layer
        return kept.view_as(kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept = ctx.saved_tensors
        layer: Convolution = ctx.layer
        if layer.rectified:
            gradient = _threshold_backward(gradient, kept, 0.0)
        wanted = (ctx.needs_input_grad[0], True, True)
        x_gradient, weight_gradient, bias_gradient = _convolution_backward(
            gradient, x, weight, [len(weight)], layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups, wanted
        )
        return x_gradient, weight_gradient, bias_gradient, None, None


class _RecalledLinear(torch.autograd.Function):
    """Forward: what was kept. Backward: of the linear layer and its rectifier."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, kept)
        return kept.view_as(kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept = ctx.saved_tensors
        gradient = _threshold_backward(gradient, kept, 0.0)
        x_gradient = affine(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        return x_gradient, affine(gradient.t(), x.t()), gradient.sum(0), None
