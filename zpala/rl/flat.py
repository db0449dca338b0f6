"""All parameters of a network as views of one flat vector, all gradients as views of another.

One optimiser step, one snapshot copy and one averaging kernel instead of one per tensor. The layout is canonical on every node
(design D9): ``named_parameters`` order, each tensor logically contiguous at an offset that is a multiple of 64 bytes, padding 0. Memory
layouts such as channels-last are for activations only. Whoever writes ``parameters`` in place changes the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT = 16  # floats: 64 bytes, a cache line and an AVX-512 register


@dataclass(frozen=True, slots=True)
class FlatEntry:
    """Where one named parameter lies: ``size`` floats from float ``offset`` on."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class FlatParameters:
    """Moves the parameters of ``module`` (f32) into one vector on ``device`` and makes them views of it, their gradients of another.

    What else the module computes with, its buffers, moves to ``device`` as it is.

    Attributes:
        parameters, gradients: f32[numel].
        entries: one per parameter, in order.
        numel: length of both vectors, padding included, a multiple of 16.
        learnt_from: where the first parameter that takes a gradient starts; running statistics lie before it.
    Raises:
        TypeError: a parameter is not float32.
        ValueError: two names share one parameter, or there is none.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        named = list(module.named_parameters(remove_duplicate=False))
        if not named or len({id(parameter) for _, parameter in named}) != len(named):
            raise ValueError("a flat vector needs at least one parameter, and every name its own")
        entries: list[FlatEntry] = []
        offset = 0
        for name, parameter in named:
            if parameter.dtype is not torch.float32:
                raise TypeError(f"parameter {name} is {parameter.dtype}, only float32 can be flattened")
            entries.append(FlatEntry(name, tuple(parameter.shape), offset, parameter.numel()))
            offset += _padded(parameter.numel())
        self.entries = tuple(entries)
        self.numel = offset
        learnt = (entry.offset for entry, (_, parameter) in zip(entries, named, strict=True) if parameter.requires_grad)
        self.learnt_from = next(learnt, offset)
        self.parameters = torch.zeros(offset, dtype=torch.float32, device=device)
        self.gradients = torch.zeros(offset, dtype=torch.float32, device=device)
        self._members: list[nn.Parameter] = []
        self._parameter_views = self.views(self.parameters)
        self._gradient_views = self.views(self.gradients)
        for (name, old), view, gradient in zip(named, self._parameter_views.values(), self._gradient_views.values(), strict=True):
            view.copy_(old.detach())
            # A new Parameter on the view, not ``old.data = view``: only so does autograd notice when the flat vector changes between a
            # forward and its backward pass, and raise instead of giving wrong gradients.
            parameter = nn.Parameter(view, requires_grad=old.requires_grad)
            parameter.grad = gradient
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner).register_parameter(leaf, parameter)
            self._members.append(parameter)
        for name, buffer in list(module.named_buffers(remove_duplicate=False)):
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, buffer.to(device))

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Cuts any f32[numel] vector of this layout into its named tensors, without copying."""
        if vector.shape != (self.numel,):
            raise ValueError(f"expected a vector of {self.numel} floats, not of shape {tuple(vector.shape)}")
        return {entry.name: vector[entry.offset : entry.offset + entry.size].view(entry.shape) for entry in self.entries}

    def named_parameters(self) -> dict[str, Tensor]:
        """The live parameters by name, as views."""
        return dict(self._parameter_views)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copies ``tensors`` into the live parameters.

        Raises:
            ValueError: a name is missing, unknown or of another shape; nothing was changed.
        """
        for entry in self.entries:
            if entry.name not in tensors or tuple(tensors[entry.name].shape) != entry.shape:
                found = tuple(tensors[entry.name].shape) if entry.name in tensors else "nothing"
                raise ValueError(f"parameter {entry.name}: expected shape {entry.shape}, found {found}")
        if unknown := sorted(tensors.keys() - self._parameter_views.keys()):
            raise ValueError(f"unknown parameters: {', '.join(unknown)}")
        for name, view in self._parameter_views.items():
            view.copy_(tensors[name])

    def zero_gradients(self) -> None:
        """Sets every gradient to 0 and keeps it a view (never use ``zero_grad``, which drops it)."""
        self.gradients.zero_()

    def check(self) -> None:
        """Asserts that every parameter and every gradient still is its view of the flat vectors.

        Raises:
            RuntimeError: one has been replaced; names it.
        """
        for entry, parameter in zip(self.entries, self._members, strict=True):
            view, gradient = self._parameter_views[entry.name], self._gradient_views[entry.name]
            if parameter.data_ptr() != view.data_ptr() or parameter.stride() != view.stride():
                raise RuntimeError(f"parameter {entry.name} left the flat vector")
            if parameter.grad is None or parameter.grad.data_ptr() != gradient.data_ptr() or parameter.grad.stride() != gradient.stride():
                raise RuntimeError(f"the gradient of {entry.name} left the flat vector")
