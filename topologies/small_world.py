r"""A ring with a shortcut from every node to a far one: short ways everywhere, and no more sessions in a big cluster than in a small one.

::

           0 ──── 1 ──── 2
        │ \           │
        │   \         │       Shortcuts of 8 nodes, from each in turn:
        7     \       3       0-5 (drawn), 1-4, 2-0, 3-7, 4-6, 5-2, 6-1, 7-5
        │       \     │
        │         \   │
        6 ──────── 5 ─ 4

Degree about 4 on average, diameter about log(size). The shortcuts are a fixed function of the size, so every node draws the same graph
without talking to anyone. Source: "Collective dynamics of small-world networks" (Watts and Strogatz, 1998), edges added instead of moved.
"""


def neighbours(index: int, size: int) -> set[int]:
    """Both ring neighbours, the end of the own shortcut, and the starts of the shortcuts that end here."""
    ring = {(index - 1) % size, (index + 1) % size}
    starts = {start for start in range(size) if _shortcut(start, size) == index}
    return (ring | starts | {_shortcut(index, size)}) - {index}


def _shortcut(start: int, size: int) -> int:
    """Where the shortcut of a node ends: 2 to size - 2 places further, scattered by Knuth's multiplicative hash."""
    if size < 4:
        return start
    scattered = (start + 1) * 2654435761 % 2**32 * (size - 3) >> 32
    return (start + 2 + scattered) % size
