"""Each node gossips with the one before and the one after it: fewest sessions, slowest mixing.

::

        0 ── 1 ── 2
        │         │
        5 ── 4 ── 3

Degree 2 (1 for two nodes), diameter size / 2. Mixing takes about size^3 exchanges: for small clusters only.
"""


def neighbours(index: int, size: int) -> set[int]:
    """The nodes before and after, around the end."""
    return {(index - 1) % size, (index + 1) % size} - {index}
