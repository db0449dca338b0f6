"""What the environment of the run looks like, found out before anything is started: it is made once, looked at and closed.

Owns the texts for an environment that cannot be made. Runs in the main thread of a node, and in ``zpala launch`` before its nodes.
"""

from __future__ import annotations

from zpala.config import EnvironmentConfig
from zpala.node.errors import UsageError
from zpala.rl.environments import EnvironmentSpec, UnknownEnvironment, UnsupportedEnvironment, environment_spec
from zpala.rl.user_modules import raised_at


def specification(config: EnvironmentConfig) -> EnvironmentSpec:
    """The spec of the environment that ``config`` names.

    Raises:
        UsageError: there is none of that name, zpala cannot learn it, or its constructor or factory raised.
    """
    try:
        return environment_spec(config.id, config.args, config.atari_settings(), config.max_episode_steps)
    except (UnknownEnvironment, UnsupportedEnvironment) as error:
        raise UsageError(f"environment.id: {error}") from error
    except Exception as error:  # whatever the constructor of somebody else's class may raise
        given = ", ".join(f"{name}={value!r}" for name, value in config.args.items())
        raise UsageError(
            f"environment.id: {config.id!r} cannot be made with {given or 'no arguments'}: {type(error).__name__}: {error}"
            f"{raised_at(error)}. Arguments of an environment are given by --env-arg."
        ) from error
