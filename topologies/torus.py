"""A grid whose rows and columns close to rings, as square as the size allows.

::

        │    │    │    │
      ─ 0 ── 1 ── 2 ── 3 ─
        │    │    │    │
      ─ 4 ── 5 ── 6 ── 7 ─
        │    │    │    │
      ─ 8 ── 9 ── 10 ─ 11 ─
        │    │    │    │

Degree 4, diameter about sqrt(size). The number of rows is the largest divisor of the size that is not above its root, so a prime size
has one row: a plain ring.
"""

from math import isqrt


def neighbours(index: int, size: int) -> set[int]:
    """Left, right, above and below, around the edges."""
    rows = max(divisor for divisor in range(1, isqrt(size) + 1) if size % divisor == 0)
    columns = size // rows
    row, column = divmod(index, columns)
    beside = {row * columns + (column + step) % columns for step in (-1, 1)}
    above_and_below = {(row + step) % rows * columns + column for step in (-1, 1)}
    return (beside | above_and_below) - {index}
