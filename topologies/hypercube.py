r"""The corners of a cube of log2(size) dimensions; neighbours differ in one bit of their number.

::

          6 ────── 7
         /│       /│
        2 ────── 3 │
        │ 4 ─────│ 5
        │/       │/
        0 ────── 1

Degree and diameter log2(size). Exists for 1, 2, 4, 8, ... nodes; ``exponential`` is like it and takes any size.
"""


def neighbours(index: int, size: int) -> set[int]:
    """Every node whose number differs in exactly one bit. Raises ValueError unless the size is a power of two."""
    dimensions = size.bit_length() - 1
    if size != 1 << dimensions:
        raise ValueError(f"a hypercube needs a power of two, {1 << dimensions} or {2 << dimensions} nodes; 'exponential' takes any size")
    return {index ^ (1 << dimension) for dimension in range(dimensions)}
