"""zpala: actor-learners on many machines that gossip their parameters over ZeroMQ. The command line is ``zpala`` (see ``zpala.cli``)."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
