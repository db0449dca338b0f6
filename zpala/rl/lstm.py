"""A memory between a trunk and its heads: an LSTM that forgets when a game begins."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

FILLING = 4  # at most so many times the cells are computed that there are


class LSTM(nn.Module):
    """Hochreiter & Schmidhuber 1997, with a forget gate. Weights are orthogonal; biases are 0, of the forget gate 1, so that it
    remembers at first (Jozefowicz et al. 2015, section 3.2).

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

    def step(self, x: Tensor, fresh: Tensor, state: Tensor) -> Tensor:
        """One step of N games.

        Args:
            x: f32[N, inputs].
            fresh: bool[N], a game begins: the state before it is taken as 0.
            state: f32[N, 2 * size].
        Returns:
            the state after it, f32[N, 2 * size]; its first half is what the core puts out.
        """
        hidden, cell = torch.where(fresh.unsqueeze(-1), 0.0, state).chunk(2, dim=-1)
        return torch.cat(self.cell(x, (hidden, cell)), dim=-1)

    def forward(self, x: Tensor, fresh: Tensor, state: Tensor) -> Tensor:
        """T steps of N games: what ``step`` gives one after the other, by torch's kernel for whole sequences.

        Every stretch of a column between two beginnings is a sequence of its own. All are laid side by side and filled up to the longest;
        where that would be much more than the T * N steps themselves, ``step`` is called T times. So it is on CUDA, where cuDNN's kernel
        takes TF32 for float32: learning would see other outputs than acting did.

        Args:
            x: f32[T, N, inputs].
            fresh: bool[T, N]: see ``step``.
            state: f32[N, 2 * size], before the first step.
        Returns:
            f32[T, N, size].
        """
        if x.is_cuda:
            return self._step_by_step(x, fresh, state)
        steps, games, _ = x.shape
        begins = fresh.t().clone()
        begins[:, 0] = True
        sequence = begins.flatten().cumsum(0) - 1  # of each cell, game after game
        starts = begins.flatten().nonzero().squeeze(-1)
        position = torch.arange(steps * games, device=x.device) - starts[sequence]
        longest, count = int(position.max()) + 1, len(starts)
        if longest * count > FILLING * steps * games:
            return self._step_by_step(x, fresh, state)
        side_by_side = x.new_zeros((longest, count, x.shape[-1]))
        side_by_side[position, sequence] = x.transpose(0, 1).flatten(0, 1)
        before = x.new_zeros((count, 2 * self.size))
        before[sequence[::steps]] = torch.where(fresh[0].unsqueeze(-1), 0.0, state)
        hidden, cell = before.unsqueeze(0).chunk(2, dim=-1)
        weights = [self.cell.weight_ih, self.cell.weight_hh, self.cell.bias_ih, self.cell.bias_hh]
        outputs, _, _ = torch.lstm(side_by_side, (hidden.contiguous(), cell.contiguous()), weights, True, 1, 0.0, True, False, False)
        return outputs[position, sequence].view(games, steps, self.size).transpose(0, 1)

    def _step_by_step(self, x: Tensor, fresh: Tensor, state: Tensor) -> Tensor:
        outputs = []
        for x_t, fresh_t in zip(x.unbind(0), fresh.unbind(0), strict=True):
            state = self.step(x_t, fresh_t, state)
            outputs.append(state[:, : self.size])
        return torch.stack(outputs)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Sets its weights, gate by gate."""
        for weight in (self.cell.weight_ih, self.cell.weight_hh):
            for gate in weight.chunk(4):
                nn.init.orthogonal_(gate, generator=generator)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)
        self.cell.bias_ih[self.size : 2 * self.size] = 1.0  # torch's order of gates: input, forget, cell, output

    def describe(self) -> str:
        return f"lstm {self.size}"
