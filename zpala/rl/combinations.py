"""What does not go together: algorithm, action space, network and their options. One table, read before anything is started.

What concerns the observations alone (a network for images on vectors, normalised images) is said by ``networks.build_network``, which makes
what it can make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zpala.rl.action_spaces import Box, Discrete
from zpala.rl.algorithm import Algorithm
from zpala.rl.algorithms import ALGORITHMS
from zpala.rl.environments import EnvironmentSpec


class UnsupportedCombination(ValueError):
    """Settings that are right each by itself and do not go together; the text has the field, the reason and the alternatives."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run is to be made of.

    Attributes:
        name, kind: of the algorithm.
        network: what ``build_network`` takes by keyword.
    """

    name: str
    kind: type[Algorithm]
    spec: EnvironmentSpec
    network: Mapping[str, Any]

    @property
    def learns_values(self) -> bool:
        return self.kind.HEADS == "action_values"


@dataclass(frozen=True, slots=True)
class Rule:
    """``reason`` and ``instead`` are sentences in which {name}, {id} and {actions} are the choice's, {policies} and {values} algorithms."""

    field: str
    clash: Callable[[Choice], bool]
    reason: str
    instead: str


RULES = (
    Rule(
        "algorithm.name",
        lambda choice: choice.learns_values and not isinstance(choice.spec.actions, Discrete),
        "{name} learns one value for every action and takes the best, so actions must be Discrete; those of {id} are {actions}",
        "Use {policies}",
    ),
    Rule(
        "network.core",
        lambda choice: choice.learns_values and choice.network["core"] != "none",
        "{name} has no use for a memory: what it learns from are single steps, and the state before them would be that of older parameters",
        "Leave network.core at none, or use {policies}",
    ),
    Rule(
        "network.separate_critic",
        lambda choice: choice.learns_values and choice.network["separate_critic"] is True,
        "{name} has values of actions and no critic beside them",
        "Leave it at auto",
    ),
    Rule(
        "network.dueling",
        lambda choice: not choice.learns_values and choice.network["dueling"],
        "{name} has a policy and no values of actions, which dueling is about",
        "Leave it at false, or use {values}",
    ),
    Rule(
        "network.squash_actions",
        lambda choice: choice.network["squash_actions"] and not isinstance(choice.spec.actions, Box),
        "it squashes a Gaussian into the bounds of a Box; the actions of {id} are {actions}",
        "Leave it at false",
    ),
)


def refuse_combinations(choice: Choice) -> None:
    """Raises ``UnsupportedCombination`` for the first rule that ``choice`` breaks."""
    for rule in RULES:
        if rule.clash(choice):
            words = {
                "name": choice.name,
                "id": choice.spec.id,
                "actions": choice.spec.actions.describe(),
                "policies": _names("actor_critic"),
                "values": _names("action_values"),
            }
            raise UnsupportedCombination(f"{rule.field}: {rule.reason.format(**words)}. {rule.instead.format(**words)}.")


def _names(heads: str) -> str:
    *first, last = [name for name, kind in ALGORITHMS.items() if heads == kind.HEADS] or ["another algorithm"]
    return f"{', '.join(first)} or {last}" if first else last
