"""Node 0 gossips with everyone, the others only with node 0.

::

            1
            │
        4 ─ 0 ─ 2
            │
            3

Degree size - 1 in the middle and 1 elsewhere, diameter 2. A node is in one exchange at a time, so the middle is the bottleneck, and
when it stops nobody mixes: meant for comparisons.
"""


def neighbours(index: int, size: int) -> set[int]:
    """Node 0, or for node 0 everyone else."""
    return set(range(1, size)) if index == 0 else {0}
