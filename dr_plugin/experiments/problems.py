"""What is wrong with a recipe, said in one line: where, got, expected, and the nearest name that exists."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

Key = tuple[str | int, ...]
_LONGEST_VALUE = 60
_MOST_NAMES = 40


class RecipeError(ValueError):
    """A recipe that cannot be run; each of ``lines`` is one complete message.

    Example:
        >>> str(RecipeError("seed: got -1, expected 0 or more"))
        'seed: got -1, expected 0 or more'
    """

    def __init__(self, *lines: str) -> None:
        self.lines = [one_line(line) for line in lines]
        super().__init__("\n".join(self.lines))

    def __reduce__(self) -> tuple[type["RecipeError"], tuple[str, ...]]:
        return RecipeError, tuple(self.lines)


@dataclass(frozen=True)
class Problem:
    """One fault: the key that has it, and the rest of the line."""

    key: Key
    text: str


def dotted(key: Key) -> str:
    """``("stages", 1, "miner")`` as people read it.

    Example:
        >>> dotted(("stages", 1, "miner"))
        'stages[1].miner'
    """
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def got(value: Any) -> str:
    """``value`` as it would stand in a recipe, quoted where it is text, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # not plain data, or an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def one_of(names: Iterable[str]) -> str:
    """``expected one of ...``, without burying the reader in names."""
    listed = list(names)
    shown = ", ".join(listed[:_MOST_NAMES])
    rest = len(listed) - _MOST_NAMES
    return f"expected one of {shown}" + (f", ... ({rest} more)" if rest > 0 else "")


def nearest(name: object, names: Iterable[str]) -> str:
    """``; did you mean X?`` where one of ``names`` is close to ``name``, else nothing."""
    if not isinstance(name, str):
        return ""
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower()[:200], by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def one_line(text: str) -> str:
    """``text`` with whatever would break or garble a line of a terminal written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def expected(error: ErrorDetails) -> str:
    """What pydantic expected, in the words of a recipe's reader."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind].format_map(
            {name: f"{bound:g}" for name, bound in context.items() if _is_number(bound)}
        )
    if kind == "literal_error":
        return "one of " + str(context["expected"]).replace(" or ", ", ").replace("'", "")
    if kind == "string_pattern_mismatch":
        return "letters, digits, - and _ only"
    if kind == "value_error":
        return str(context["error"])
    return error["msg"][:1].lower() + error["msg"][1:]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


_EXPECTED = {
    "missing": "a value: this key is needed",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text (in quotes where it looks like something else)",
    "string_too_short": "text that is not empty",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "model_type": "keys and values",
    "dict_type": "keys and values",
    "none_required": "null",
}
