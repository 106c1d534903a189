"""Which arguments a class takes, and whether a recipe's value can be one of them.

PML's constructors hand ``**kwargs`` to their base classes, so one signature does not tell: all that the
constructors along the class's bases take by name is collected.
"""

import functools
import inspect
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.utils.data import Sampler

from .problems import expected, got

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor: default and annotation, if there are any, and whether it is needed."""

    default: Any
    annotation: Any
    needed: bool


@dataclass(frozen=True)
class Signature:
    """What a class takes by name; an open one takes any other name too."""

    arguments: dict[str, Argument]
    open: bool


@functools.cache
def signature_of(cls: type) -> Signature:
    """Collect the arguments along ``cls``'s bases, as far as each constructor hands unknown names on."""
    found: dict[str, Argument] = {}
    first = True
    for owner in cls.__mro__:
        init = owner.__dict__.get("__init__")
        if owner is nn.Module:  # takes **kwargs too, but refuses any
            break
        if init is None or owner in (
            object,
            Sampler,
        ):  # older torch's Sampler has an argument that it ignores
            continue
        hints = _hints(init)
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in _BY_NAME and parameter.name not in found:
                needed = first and parameter.default is _MISSING
                annotation = hints.get(parameter.name, _MISSING)
                found[parameter.name] = Argument(parameter.default, annotation, needed)
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return Signature(found, open=False)
        first = False
    else:
        return Signature(found, open=not first)
    return Signature(found, open=False)


def why_not(argument: Argument, value: Any) -> str | None:
    """``got ..., expected ...`` where ``value``, plain data, cannot be ``argument``; None where it can.

    An annotation decides, as far as it speaks of plain data. Without one the default does: where it is true
    or false, only these will do (``no`` is text, and text is true), where it is a number, a number or a list.
    """
    if value is None and argument.default is None:
        return None
    if value != value:
        return "got NaN, expected a number"
    annotation = _plain(argument.annotation)
    if annotation is not None:
        return _mismatch(annotation, value)
    default_is_number = isinstance(argument.default, int | float)
    if isinstance(argument.default, bool):
        return None if isinstance(value, bool) else f"got {got(value)}, expected true or false"
    if default_is_number and (isinstance(value, bool) or not isinstance(value, int | float | list)):
        return f"got {got(value)}, expected a number"
    return None


def takes_plain(argument: Argument | None) -> bool:
    """Whether the annotation says that plain data will do, as ``str | Module`` does."""
    return argument is not None and _plain(argument.annotation) is not None


def _mismatch(annotation: Any, value: Any) -> str | None:
    try:
        # As JSON, because there a list may be a tuple while a whole number may still not be text.
        _adapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        wanted = dict.fromkeys(expected(item) for item in error.errors(include_url=False))
        return f"got {got(value)}, expected {' or '.join(wanted)}"
    return None


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _hints(init: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(init)
    except (AttributeError, NameError, SyntaxError, TypeError):  # such as names that only a type checker sees
        return {}


def _plain(annotation: Any) -> Any:
    """The part of an annotation that plain data can meet: ``str`` of ``str | Module``; None if none."""
    if annotation in (int, float, bool, str, type(None)):
        return annotation
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return annotation
    if origin in (typing.Union, types.UnionType):
        kept = [plain for member in members if (plain := _plain(member)) is not None]
        return typing.Union[tuple(kept)] if any(member is not type(None) for member in kept) else None  # noqa: UP007
    if origin in (list, tuple, dict, Sequence, Mapping):
        kept = [member if member is Ellipsis else _plain(member) for member in members]
        return None if None in kept else origin[tuple(kept)]
    return None
