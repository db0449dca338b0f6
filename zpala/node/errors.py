"""The errors that end a node before or while it runs, each with its exit status (design D18). Texts name the file, the line and the fix."""

from __future__ import annotations

from zpala.exit_codes import ExitCode


class NodeError(RuntimeError):
    """Ends the node with ``exit_code`` and one paragraph of text for the person at the keyboard."""

    exit_code: int = ExitCode.UNEXPECTED

    def __init__(self, text: str, exit_code: int | None = None) -> None:
        super().__init__(text)
        self.text = text
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(NodeError):
    """What was asked for cannot be understood or does not fit together; nothing was started."""

    exit_code = ExitCode.USAGE


class PortInUse(NodeError):
    """The port that this node has to listen on is held by another process."""

    exit_code = ExitCode.NETWORK


class NoOwnLine(NodeError):
    """No line of hosts.txt is this machine's and free, or several are and only ``--name`` can tell which is meant."""

    exit_code = ExitCode.NETWORK


class SecurityRefused(NodeError):
    """A key is missing, open to others or not that of its line; or others could reach the node without one and without ``--insecure``."""

    exit_code = ExitCode.SECURITY


class ActorError(NodeError):
    """An actor's environments hung or answered nonsense."""

    exit_code = ExitCode.ACTORS


class NumericalError(NodeError):
    """A loss or gradient is not finite."""

    exit_code = 5
