"""What happens to observations before a trunk sees them: packed rows are unpacked, vectors normalised by running statistics.

The statistics are parameters of the network without a gradient, so they lie in the flat vector: they are averaged with the neighbours, go
to a node that joins and into every checkpoint. They are kept as sums, never as mean and variance, because averaging two nodes' sums is
merging their statistics: (a/2 + b/2) / (m/2 + n/2) is the mean of all m + n observations, each of them with the same weight, and a delta
that moves sums from one node to another changes no total.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from zpala.rl.observations import ObservationPart

HORIZON = 1_000_000.0  # observations of one node after which an old one weighs 1 / e
CLIP = 10.0
EPSILON = 1e-8
FOLD = 10_000  # observations
STATISTICS = "inputs.normalizer."  # how the names of running statistics begin, among a network's parameters

# What a trunk takes: one observation [B, ...], or of a packed row its vectors as one f32[B, D] and then its images u8[B, C, H, W].
Prepared = Tensor | tuple[Tensor, ...]


class Normalizer(nn.Module):
    """(x - mean) / std of every element, limited to +-10 (as OpenAI baselines' VecNormalize and stable-baselines3's).

    Owned here: ``weight``, ``total`` and ``squares``, the weighted sums of 1, x and x^2 over everything observed, divided by ``HORIZON``,
    so that they stay of the size of a parameter. An observation's weight is 1 when it is seen and falls by a factor of 1 - 1 / HORIZON with
    every later one: a policy that finds new places is believed. Before the first observation x is x.

    The variance is a difference of two sums in float32: standard deviations below some thousandths of the mean are not resolved, and
    elements without variance become 0. A small rollout would add to these sums less than they resolve, so what is observed is first
    collected in float64, on the node, and added when it is a hundredth of what was before, or ``FOLD`` observations.

    Args:
        size: D, elements of an observation.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.total = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.squares = nn.Parameter(torch.zeros(size), requires_grad=False)
        self._collected: Tensor  # f64[1 + 2 D], sums of 1, x and x^2
        self.register_buffer("_collected", torch.zeros(1 + 2 * size, dtype=torch.float64), persistent=False)
        self._waiting = self._folded = 0  # observations collected, and added

    def forward(self, x: Tensor) -> Tensor:
        """f32[B, D] -> f32[B, D]."""
        mean, scale = self.statistics()
        return ((x - mean) * scale).clamp(-CLIP, CLIP)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation, f32[D] each; 0 and 1 before the first observation, 1 / std is 0 where nothing varies."""
        seen = self.weight > 0.0
        weight = torch.where(seen, self.weight, 1.0)
        mean, square = self.total / weight, self.squares / weight
        variance = square - mean.square()
        varies = variance > 1e-6 * square
        scale = torch.where(varies, (variance + EPSILON).rsqrt(), 0.0)
        return mean, torch.where(seen, scale, 1.0)

    @torch.no_grad()
    def observe(self, x: Tensor, valid: Tensor) -> None:
        """Counts ``x`` f32[B, D] where ``valid`` bool[B]."""
        x = torch.where(valid.unsqueeze(-1), x, 0.0).double()
        self._collected += torch.cat([valid.sum().double().unsqueeze(0), x.sum(0), x.square().sum(0)])
        self._waiting += len(valid)
        if self._waiting < min(FOLD, self._folded // 100):
            return
        count = self._collected[0]
        kept = torch.exp(-count / HORIZON)
        share = torch.where(count > 0.0, (1.0 - kept) / count.clamp(min=1.0), 0.0)
        collected = torch.split(self._collected, [1, self.size, self.size])
        for sums, added in zip((self.weight, self.total, self.squares), collected, strict=True):
            sums.copy_(sums.double() * kept + share * added)
        self._collected.zero_()
        self._folded, self._waiting = self._folded + self._waiting, 0


class Unpacking(nn.Module):
    """Packed rows u8[B, row_bytes] -> (vectors f32[B, D], images u8[B, C, H, W] ...). Has no parameters.

    Args:
        parts: of the row.
        images: names of the parts that are handed on as images; all others become numbers of the vector, bytes scaled to [0, 1].
    """

    def __init__(self, parts: Sequence[ObservationPart], images: Collection[str]) -> None:
        super().__init__()
        self._images = [part for part in parts if part.name in images]
        self._vectors = [part for part in parts if part.name not in images]
        self.size = sum(math.prod(part.shape) for part in self._vectors)

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        vectors = [self._bytes(rows, part) for part in self._vectors]
        numbers = [
            x.view(torch.float32) if part.dtype == "float32" else x * (1.0 / 255.0) for part, x in zip(self._vectors, vectors, strict=True)
        ]
        images = [self._bytes(rows, part).reshape(-1, *part.shape) for part in self._images]
        return torch.cat(numbers, dim=-1) if numbers else rows.new_empty((len(rows), 0), dtype=torch.float32), *images

    def _bytes(self, rows: Tensor, part: ObservationPart) -> Tensor:
        return rows[:, part.offset : part.offset + part.nbytes]


class Inputs(nn.Module):
    """Observations [B, ...] as the slab has them -> what trunks take.

    Args:
        unpacking: for packed rows.
        normalizer: for vectors; bytes that are no image are taken as numbers.
    """

    def __init__(self, unpacking: Unpacking | None, normalizer: Normalizer | None) -> None:
        super().__init__()
        self.unpacking = unpacking
        self.normalizer = normalizer

    def forward(self, observation: Tensor) -> Prepared:
        if self.unpacking is None and self.normalizer is None:
            return observation
        vector, *images = self._split(observation)
        if self.normalizer is not None:
            vector = self.normalizer(vector)
        return vector if self.unpacking is None else (vector, *images)

    def observe(self, observation: Tensor, valid: Tensor) -> None:
        """Counts observations [B, ...] where ``valid`` bool[B]."""
        if self.normalizer is not None:
            self.normalizer.observe(self._split(observation)[0], valid)

    def describe(self) -> str:
        return "" if self.normalizer is None else "normalized "

    def _split(self, observation: Tensor) -> tuple[Tensor, ...]:
        return (observation.flatten(1).to(torch.float32),) if self.unpacking is None else self.unpacking(observation)
