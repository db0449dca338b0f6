"""A memory between a trunk and its heads: an LSTM that forgets when a game begins."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class LSTM(nn.Module):
    """Hochreiter & Schmidhuber 1997, with a forget gate. Weights are orthogonal, biases 0.

    Args:
        inputs: width of what comes in.
        size: units; its state is the hidden and the cell vector, one after the other.
    """

    def __init__(self, inputs: int, size: int) -> None:
        if size < 1:
            raise ValueError(f"core_size must be at least 1, not {size}")
        super().__init__()
        self.size = size
        self.state_size = 2 * size
        self.cell: nn.LSTMCell = skip_init(nn.LSTMCell, inputs, size)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, fresh: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Goes through T steps of N games.

        Args:
            x: f32[T, N, inputs].
            fresh: bool[T, N], a game begins: the state before it is taken as 0.
            state: f32[N, 2 * size].
        Returns:
            outputs f32[T, N, size], and the states after every step f32[T, N, 2 * size].
        """
        kept = (~fresh).to(x.dtype).unsqueeze(-1)
        outputs, states = [], []
        for x_t, kept_t in zip(x.unbind(0), kept.unbind(0), strict=True):
            hidden, cell = (state * kept_t).chunk(2, dim=-1)
            hidden, cell = self.cell(x_t, (hidden, cell))
            state = torch.cat([hidden, cell], dim=-1)
            outputs.append(hidden)
            states.append(state)
        return torch.stack(outputs), torch.stack(states)

    def initialise(self, generator: torch.Generator) -> None:
        """Sets its weights, gate by gate."""
        for weight in (self.cell.weight_ih, self.cell.weight_hh):
            for gate in weight.chunk(4):
                nn.init.orthogonal_(gate, generator=generator)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)

    def describe(self) -> str:
        return f"lstm {self.size}"
