r"""Everyone gossips with everyone: the default, and the fastest mixing per exchange.

::

        0 ───── 1
        │ \   / │
        │   X   │
        │ /   \ │
        3 ───── 2

Degree size - 1, diameter 1. Every node keeps a session to every other node.
"""


def neighbours(index: int, size: int) -> set[int]:
    """All other nodes."""
    return set(range(size)) - {index}
