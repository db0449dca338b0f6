"""Environments whose spaces are what matters, for the tests of what goes with what."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from tests.rl.scripted import ScriptedEnv


class ChoicesEnv(ScriptedEnv):
    action_space = spaces.MultiDiscrete([2, 3])  # type: ignore[assignment]


class PartsEnv(ScriptedEnv):
    """Sees a place and a map that is too small for an image."""

    observation_space = spaces.Dict({"place": spaces.Box(-1.0, 1.0, (2,)), "map": spaces.Box(0, 255, (3, 8, 8), np.uint8)})  # type: ignore[assignment]


def make_choices() -> ScriptedEnv:
    return ChoicesEnv()


def make_parts() -> ScriptedEnv:
    return PartsEnv()
