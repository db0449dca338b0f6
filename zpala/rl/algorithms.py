"""The learning algorithms by name, a person's own among them, and how one is built from the settings of a run.

An algorithm of one's own is a subclass of ``Algorithm`` in a file (``path/to/mine.py:Class``) or a module (``module:Class``). It is code of
the person who starts the node, never a peer's.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from zpala.rl.a2c import A2C
from zpala.rl.algorithm import Algorithm
from zpala.rl.dqn import DQN
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import Network
from zpala.rl.nstep_q import NStepQ
from zpala.rl.optimizers import Optimizer
from zpala.rl.ppo import PPO
from zpala.rl.user_modules import NoSuchModule, import_named, raised_at
from zpala.rl.vtrace import VTrace

ALGORITHMS: Mapping[str, type[Algorithm]] = {"a2c": A2C, "ppo": PPO, "nstep_q": NStepQ, "dqn": DQN, "vtrace": VTrace}

_NOT_SETTINGS = {"name", "args"}  # fields of [algorithm] that no algorithm is told


class AlgorithmError(ValueError):
    """An algorithm that cannot be used as asked; the text names it, what is wrong, and the fix."""


def find_algorithm(name: str) -> type[Algorithm]:
    """The class that ``name`` means: one of ``ALGORITHMS``, ``path/to/mine.py:Class`` or ``module:Class``.

    Raises:
        AlgorithmError: there is none, its file or module raised, or what is there is no algorithm.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    module_name, _, attribute = name.rpartition(":")
    if not module_name:
        close = difflib.get_close_matches(name.lower(), ALGORITHMS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise AlgorithmError(
            f"there is no algorithm {name!r}.{hint} There are {', '.join(ALGORITHMS)}; one's own is path/to/mine.py:Class or module:Class"
        )
    try:
        module = import_named(module_name, attribute, "algorithm")
    except NoSuchModule as error:
        raise AlgorithmError(f"{name}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever it raises is its own error
        raise AlgorithmError(f"{name}: {module_name} cannot be imported: {type(error).__name__}: {error}{raised_at(error)}") from error
    found = getattr(module, attribute, None)
    if found is None:
        classes = [each for each, value in vars(module).items() if _is_algorithm(value) and value.__module__ == module.__name__]
        have = f"its algorithms are {', '.join(classes)}" if classes else "nothing there is a subclass of zpala.rl.algorithm.Algorithm"
        raise AlgorithmError(f"{name}: {module_name} has no class {attribute!r}; {have}")
    if not _is_algorithm(found):
        what = f"a class, but no subclass of Algorithm: write class {attribute}(Algorithm), from zpala.rl.algorithm import Algorithm"
        raise AlgorithmError(f"{name}: {attribute} is {what if inspect.isclass(found) else f'no class, but a {type(found).__name__}'}")
    kind: type[Algorithm] = found
    if missing := sorted(kind.__abstractmethods__):
        raise AlgorithmError(f"{name}: {attribute} does not define {', '.join(missing)}: see what each has to do in zpala/rl/algorithm.py")
    if not is_dataclass(getattr(kind, "Settings", None)):
        raise AlgorithmError(f"{name}: {attribute}.Settings has to be a frozen dataclass of its constants; one without fields will do")
    return kind


def build_settings(name: str, values: Mapping[str, Any]) -> Any:
    """The ``Settings`` of algorithm ``name``: every field from the value of the same name, or else from the table ``values["args"]``.

    Raises:
        AlgorithmError: see ``find_algorithm``; or the table has an entry that is no field, that is set elsewhere or is of another type; or
            a field has no value.
    """
    kind = find_algorithm(name)
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind.Settings) if field.init}
    filled = {field: value for field, value in values.items() if field in known and field not in _NOT_SETTINGS}
    has = f"it has {', '.join(known)}" if known else "it has none"
    hints = _hints(kind)
    for arg, value in values.get("args", {}).items():
        if arg in filled:
            raise AlgorithmError(
                f"algorithm.args.{arg}: the run file has a field of its own for {arg}: set that, and leave it out of the table"
            )
        if arg not in known:
            close = difflib.get_close_matches(arg, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise AlgorithmError(f"algorithm.args.{arg}: {name} has no such setting ({has}){hint}")
        filled[arg] = _of_type(hints.get(arg, Any), arg, value)
    without = [
        field for field, each in known.items() if field not in filled and each.default is MISSING and each.default_factory is MISSING
    ]
    if without:
        given = " ".join(f"--algorithm-arg {field}=..." for field in without)
        raise AlgorithmError(f"{name} needs {', '.join(without)}, which has no default: give {given} ({has})")
    try:
        return kind.Settings(**filled)
    except Exception as error:  # a check of its own
        raise AlgorithmError(f"{name}: its settings are refused: {type(error).__name__}: {error}{raised_at(error)}") from error


def build_algorithm(
    name: str, values: Mapping[str, object], network: Network, flat: FlatParameters, optimizer: Optimizer, *, seed: int
) -> Algorithm:
    """The algorithm that ``name`` means.

    Args:
        values: for the fields of its ``Settings``, see ``build_settings``; others are not looked at.
        network, flat, optimizer, seed: see ``Algorithm``.
    Raises:
        AlgorithmError: see ``build_settings``; or the constructor of an algorithm of one's own raised.
    """
    kind = find_algorithm(name)
    settings = build_settings(name, values)
    if name in ALGORITHMS:
        return kind(network, flat, optimizer, settings, seed=seed)
    try:
        return kind(network, flat, optimizer, settings, seed=seed)
    except Exception as error:
        raise AlgorithmError(f"{name} cannot be made: {type(error).__name__}: {error}{raised_at(error)}") from error


def _is_algorithm(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Algorithm) and value is not Algorithm


def _hints(kind: type[Algorithm]) -> dict[str, Any]:
    """Types of the settings; none if they cannot be told, as of names that exist for a type checker only."""
    try:
        return get_type_hints(kind.Settings)
    except Exception:
        return {}


def _of_type(hint: Any, arg: str, value: object) -> object:
    # As JSON, whose strict rules know that a tuple is written as a list, a path as a string and 1.0 as 1; as TOML has it, too.
    try:
        checked: object = TypeAdapter(hint).validate_json(json.dumps(value, default=str), strict=True)
    except PydanticUserError as error:
        raise AlgorithmError(f"algorithm.args.{arg}: a {hint} cannot be given by a run file: {error.message.splitlines()[0]}") from None
    except ValidationError as error:
        expected = getattr(hint, "__name__", None) if get_origin(hint) is None else None
        raise AlgorithmError(
            f"algorithm.args.{arg} = {value!r} is not allowed: expected {expected or hint} ({error.errors(include_url=False)[0]['msg']})"
        ) from None
    return checked
