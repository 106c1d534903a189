"""From ``{type: Name, **arguments}`` to an object: found, checked, then built."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import families
from .families import KINDS, NESTED
from .problems import Key, Problem, got, nearest, one_of
from .signatures import Signature, signature_of, takes_plain, why_not


@dataclass(frozen=True)
class Supply:
    """What a run gives to a slot, by argument name, to each class that takes an argument of this name.

    Attributes:
        values: The recipe's own value comes first, but for the kind's ``supplied``, which it may not give.
        binding: Names whose value the recipe may repeat but not contradict, each with the value's source.
        lacking: Names that the run could give and does not in this recipe, each with what to do about it.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    binding: Mapping[str, str] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)


class BuildError(ValueError):
    """A class that refused its arguments."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.text)


@dataclass(frozen=True)
class Part:
    """A slot whose class is found and whose arguments fit: all but built.

    Attributes:
        cls: The class.
        arguments: All that it is to be called with; slots among them are parts.
        key: The slot's key.
        given: Names of the arguments that the recipe gives.
        known: Whether its class and those of the parts in it come from the families, none from a dotted path.
    """

    cls: type
    arguments: dict[str, Any]
    key: Key
    given: frozenset[str]
    known: bool

    def build(self) -> Any:
        """Call the class.

        Raises:
            BuildError: if its constructor raises anything.
        """
        arguments = {name: _map_parts(value, Part.build) for name, value in self.arguments.items()}
        try:
            return self.cls(**arguments)
        except Exception as error:  # a constructor may refuse its arguments with any exception
            raise BuildError(self._problem(_reason(error))) from error

    def _problem(self, reason: str) -> Problem:
        name, colon, rest = reason.partition(": ")
        if colon and name in self.given:  # our own classes begin with the argument's name
            return Problem((*self.key, name), rest)
        return Problem(self.key, f"{self.cls.__name__} refuses its arguments: {reason}")


def plan(kind: str, value: Any, key: Key, supply: Supply, problems: list[Problem]) -> Part | None:
    """Find the class of a slot and check its arguments by name and type, and the slots in it.

    Args:
        kind: One of `KINDS`.
        value: ``{"type": Name, **arguments}``.
        key: Where the slot stands.
        supply: What the run gives.
        problems: What is wrong is added to this list; the result is None then.
    """
    before = len(problems)
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        names = ", ".join(families.names(kind)[:3])
        problems.append(
            Problem(key, f"got {got(value)}, expected {{type: Name, ...}} with a name such as {names}")
        )
        return None
    try:
        cls = families.find(kind, value["type"])
    except families.NotFoundError as error:
        problems.append(Problem((*key, "type"), str(error)))
        return None
    given = {name: argument for name, argument in value.items() if name != "type"}
    signature = signature_of(cls)
    arguments: dict[str, Any] = {}
    for name, argument in given.items():
        if (text := _refusal(kind, cls, signature, name)) is not None:
            problems.append(Problem((*key, name), f"got {got(argument)}, {text}"))
        else:
            arguments[name] = _argument(name, argument, signature, (*key, name), supply, problems)
    problems += _missing(cls, signature, given, supply, key)
    if len(problems) > before:
        return None
    arguments |= {n: v for n, v in supply.values.items() if n in signature.arguments and n not in arguments}
    parts = [part for argument in arguments.values() for part in _parts(argument)]
    known = "." not in value["type"] and all(part.known for part in parts)
    return Part(cls, arguments, key, frozenset(given), known)


def _refusal(kind: str, cls: type, signature: Signature, name: str) -> str | None:
    """Why a recipe may not give this argument; None where it may."""
    if name in KINDS[kind].supplied and name in signature.arguments:
        return "expected nothing: the run gives this argument itself"
    if name in signature.arguments or signature.open:
        return None
    known = [known for known in signature.arguments if known not in KINDS[kind].supplied]
    wanted = one_of(known) if known else f"expected no argument of {cls.__name__}"
    return wanted + nearest(name, known)


def _argument(
    name: str, value: Any, signature: Signature, key: Key, supply: Supply, problems: list[Problem]
) -> Any:
    """The argument to call with: a part, a list or mapping of parts, or the plain value."""
    kind = NESTED.get(name)
    if _is_slot(value):
        if kind is not None:
            return plan(kind, value, key, supply, problems)
        text = f"got {got(value)}, expected no slot: inside a slot these are called {', '.join(NESTED)}"
        problems.append(Problem(key, text))
    elif kind is not None and isinstance(value, list) and any(map(_is_slot, value)):
        return [plan(kind, item, (*key, index), supply, problems) for index, item in enumerate(value)]
    elif kind is not None and isinstance(value, dict) and any(map(_is_slot, value.values())):
        return {inner: plan(kind, item, (*key, inner), supply, problems) for inner, item in value.items()}
    elif kind is not None and value is not None and not takes_plain(signature.arguments.get(name)):
        problems.append(Problem(key, f"got {got(value)}, expected {{type: Name, ...}} or null"))
    elif name in signature.arguments:
        source = supply.binding.get(name)
        reason = why_not(signature.arguments[name], value)
        if reason is None and source is not None and value != supply.values[name]:
            reason = f"got {got(value)}, expected {got(supply.values[name])}, {source}; leave it out"
        if reason is not None:
            problems.append(Problem(key, reason))
    return value


def _missing(
    cls: type, signature: Signature, given: Mapping[str, Any], supply: Supply, key: Key
) -> list[Problem]:
    return [
        Problem(
            (*key, name),
            f"got nothing, expected {supply.lacking.get(name, 'a value')}: {cls.__name__} needs it",
        )
        for name, argument in signature.arguments.items()
        if argument.needed and name not in given and name not in supply.values
    ]


def _is_slot(value: Any) -> bool:
    return isinstance(value, Mapping) and "type" in value


def _parts(value: Any) -> list[Part]:
    if isinstance(value, Part):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, Part)]


def _map_parts(value: Any, function: Callable[[Part], Any]) -> Any:
    if isinstance(value, Part):
        return function(value)
    if isinstance(value, list):
        return [function(item) if isinstance(item, Part) else item for item in value]
    if isinstance(value, dict):
        return {name: function(item) if isinstance(item, Part) else item for name, item in value.items()}
    return value


def _reason(error: Exception) -> str:
    """The error's text or, where it has none, the line of code that raised it."""
    text = " ".join(str(error).split())
    if text:
        return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: {line or 'no reason given'}"
